"""Ids that come and go in a table of fixed size, far more of them than rows: planted, made on the fly, never stored.

    python -m benchmarks.endless_ids --ids 10000000
    python -m benchmarks.endless_ids --auc --living 50000 --births 100

Users and items are born at a steady rate, are popular by Zipf's law while they live, and die; each has a logit of its own, a
hash of its id, so that the best AUC is known. The model, two rows, their product and --hidden layers, is small on purpose: what
the host does for ids stands beside a short step. Printed are the programs compiled after the first minute; the time of a
step, and that of a table of as many rows whose ids are taken modulo its length, in turns; the memory of the process over time,
its own and with what of the spill's files is mapped; and whether rows that came back had the bits with which they left, of those
that left and came back in turns that are not timed (the hashes that this takes are no part of the memory). --auc trains
tables that hold all ids, and a part of them, on one stream.
"""

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax import metrics
from em3_jax.core import rng
from em3_jax.core.ahead import ahead
from em3_jax.tables import id_keys, id_table, swaps
from em3_jax.tables.residents import Moves, Residents
from em3_jax.tables.spill import Spill

WIDTH, SEED = 16, 0
TURN = 25  # steps of the static table, between twice as many timed ones of the other, and as many checked ones


class Planted:
    """Batches of a population that moves.

    There are `living` places, the first the most popular; of each the id is another one from time to time, `births` of them
    a step, so that popular ids die as well.

    Args:
      batch: B.
      skew: s of the popularity, rank ** -s.
    """

    def __init__(self, batch: int, births: float, living: int, skew: float, seed: int = 0):
        self.batch, self.births, self.living, self.power = batch, births, living, 1 / (1 - skew)
        self.key = rng.numpy_key(seed, "endless")

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids [B, 2] i64 of user and item, labels [B] f32)."""
        index = np.arange(2 * self.batch, dtype=np.int64) + step * 2 * self.batch
        place = (self.living * rng.uniform_hash(self.key, index, np.int64(1)) ** self.power).astype(np.int64)
        generation = (int(step * self.births) + place * 0x9E3779B1 % self.living) // self.living
        ids = (place + self.living * generation).reshape(-1, 2) * 2 + np.array([0, 1])  # users are even, items odd
        clicks = rng.uniform_hash(self.key, index[: self.batch], np.int64(3)) < 1 / (1 + np.exp(-self.logit(ids)))
        return ids, clicks.astype(np.float32)

    def logit(self, ids: np.ndarray) -> np.ndarray:
        """[B] the planted logits: a hash of each id."""
        return 4.0 * (rng.uniform_hash(self.key, ids, np.int64(4)) - 0.5).sum(axis=1)


def make_step(optimizer: id_table.RowOptimizer, hidden: list[int], seed: int):
    """((tables, layers), row_id [R], position [B, 2], label [B], step) -> (the same, logits [B]), and fresh layers."""
    sizes = [2 * WIDTH, *hidden, 1]
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    layers = [
        jax.random.normal(key, (a, b)) * (2 / a) ** 0.5 for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=False)
    ] * bool(hidden)

    def logit(rows: jax.Array, layers: list[jax.Array], position: jax.Array) -> jax.Array:
        one, other = rows[position[:, 0]], rows[position[:, 1]]
        x = jnp.concatenate([one, other], axis=1)
        for k, layer in enumerate(layers):
            x = (jax.nn.relu(x) if k else x) @ layer
        deep = x[:, 0] if layers else 0.0
        return one[:, 0] + other[:, 0] + (one[:, 1:] * other[:, 1:]).sum(axis=1) + deep

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, row_id, position, label, number):
        tables, layers = state
        rows = id_table.lookup(tables, row_id)

        def loss(rows, layers):
            z = logit(rows, layers, position)
            return jnp.sum(jnp.logaddexp(0.0, z) - label * z), z

        gradients, z = jax.grad(loss, argnums=(0, 1), has_aux=True)(rows, layers)
        layers = [layer - 1e-3 / len(label) * g for layer, g in zip(layers, gradients[1], strict=True)]
        return (id_table.update(tables, row_id, gradients[0], number, optimizer), layers), z

    return step, layers


class Table:
    """A table and its step; static, an id's row is the id modulo its length."""

    def __init__(self, capacity: int, batch: int, folder: Path | None, admit_after: int, evict: str, hidden: list[int]):
        self.capacity, self.size = capacity, 2 * batch + 1
        optimizer = id_table.rowwise_adagrad(0.1)
        self.tables = jax.jit(lambda key: id_table.init(key, capacity, WIDTH, 0.01, optimizer))(jax.random.key(SEED))
        self.step, self.layers = make_step(optimizer, hidden, SEED)
        self.number, self.residents = 0, None
        if folder is None:
            return
        self.spill = Spill(folder, swaps.row_bytes(self.tables))
        self.residents = Residents(capacity, admit_after, evict, self.spill)
        self.residents.pin(id_keys.of_numbers(0, np.array([-1]), id_keys.OTHER), np.array([1]))
        fresh = swaps.new_rows(SEED, 0.01, {"accumulator": ((), np.dtype(np.float32))}, WIDTH)
        self.swaps = swaps.Swaps(self.tables, self.spill, fresh)
        self.tables = self.swaps.compiled(self.tables)

    def named(self, ids: np.ndarray, label: np.ndarray) -> "Named":
        """A batch as the table names its ids, which may be done ahead of its step."""
        distinct, position = np.unique(ids, return_inverse=True)
        moves = None
        if self.residents is None:
            rows = 2 + distinct % (self.capacity - 2)
        else:
            self.residents.begin()
            keys, any_row = id_keys.of_numbers(1, distinct), np.full(len(distinct), -1)
            rows, moves = self.residents.call(keys, any_row, learn=True)
            rows = np.where(rows < 0, 1, rows)
        row_id, again = np.unique(rows, return_inverse=True)
        beyond = self.capacity + np.arange(self.size - len(row_id))
        row_id = np.concatenate([row_id, beyond]).astype(np.int32)
        return Named(row_id, again[position].reshape(ids.shape).astype(np.int32), label, moves)

    def run(self, source: Planted, steps: int, checked: "Checked | None" = None) -> Iterator[tuple[jax.Array, "Named"]]:
        """(logits [B] of a batch, on which the table is trained then, the batch), of the next steps; named in a thread ahead."""
        numbers = range(self.number, self.number + steps)
        for batch in ahead(self.named(*source(number)) for number in numbers):
            if batch.moves is not None:
                if checked:
                    checked.leave(self, batch.moves)
                self.tables = self.swaps(self.tables, batch.moves)
                if checked and checked.on:
                    checked.back(self, batch.moves)
            state, number = (self.tables, self.layers), np.int32(self.number)
            (self.tables, self.layers), logits = self.step(state, batch.row_id, batch.position, batch.label, number)
            self.number += 1
            yield logits, batch


class Named(NamedTuple):
    """A batch: rows [R] i32, the positions among them of each example's user and item [B, 2] i32, labels, what moves before."""

    row_id: np.ndarray
    position: np.ndarray
    label: np.ndarray
    moves: Moves | None


class Checked:
    """Hashes of rows as they leave, by their places in the spill, and whether they come back so.

    Attributes:
      on: what leaves is hashed, and what comes back and was hashed is compared.
    """

    def __init__(self):
        self.hashes, self.compared, self.different = np.zeros(0, np.uint64), 0, 0
        self.on = False

    def leave(self, table: Table, moves: Moves) -> None:
        self._grow(moves.out_place)
        self.hashes[moves.out_place] = self._of(table, moves.out) if self.on else 0

    def back(self, table: Table, moves: Moves) -> None:
        was = self.hashes[moves.back_place]
        self.compared += int(np.count_nonzero(was))
        self.different += int(np.count_nonzero((was != self._of(table, moves.back)) & (was != 0)))

    def _grow(self, places: np.ndarray) -> None:
        if len(places) and places.max() >= len(self.hashes):
            more = max(int(places.max()) + 1 - len(self.hashes), 1 << 20)
            self.hashes = np.concatenate([self.hashes, np.zeros(more, np.uint64)])

    def _of(self, table: Table, rows: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, max(len(rows), 1), swaps.AT_ONCE):
            part = rows[start : start + swaps.AT_ONCE]
            padded = np.concatenate([part, np.zeros(swaps.AT_ONCE - len(part), np.int64)]).astype(np.int32)
            taken = jax.tree.map(lambda leaf: np.asarray(_take(leaf, padded))[: len(part)], table.tables)  # noqa: B023
            flat = [x.reshape(len(part), math.prod(x.shape[1:])) for x in jax.tree.leaves(taken)]
            words = np.concatenate([x.view(np.uint32) for x in flat], axis=1)
            found.append(np.bitwise_xor.reduce(rng.hash_words(1, words, np.arange(words.shape[1])), axis=1))
        return np.concatenate([np.zeros(0, np.uint64), *found])


_take = jax.jit(lambda leaf, rows: jnp.take(leaf, rows, axis=0))


def memory() -> tuple[float, float]:
    """(anonymous, all) resident megabytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


def measure(args: argparse.Namespace) -> None:
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    source = Planted(args.batch, args.births, args.living, args.skew)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        endless = Table(args.capacity, args.batch, Path(folder), args.admit_after, args.evict, args.hidden)
        static = Table(args.capacity, args.batch, None, 1, args.evict, args.hidden)
        assert endless.residents is not None
        checked, began, shown, of_first_minute = Checked(), time.time(), time.time(), None
        seconds: dict[str, list[float]] = {"endless": [], "static": [], "checked": []}
        while endless.residents.admitted < args.ids:
            turns = ((endless, "endless", 2 * TURN), (static, "static", TURN), (endless, "checked", 2 * TURN))
            for table, name, steps in turns:
                start, checked.on = time.perf_counter(), name == "checked" or args.check_all
                for logits, _ in table.run(source, steps, checked):
                    last = logits
                jax.block_until_ready(last)
                seconds[name].append((time.perf_counter() - start) / steps)
            endless.swaps.fetch()
            endless.spill.flush()  # as a checkpoint does
            endless.spill.saved()
            now = time.time()
            if of_first_minute is None and now - began > 60:
                of_first_minute = len(compiled)
            if now - shown > args.every or endless.residents.admitted >= args.ids:
                shown = now
                _say(now - began, endless, seconds, len(compiled), checked.hashes.nbytes / 2**20)
        late = "nothing measured, it took less" if of_first_minute is None else len(compiled) - of_first_minute
        ratio = np.median(seconds["endless"][1:]) / np.median(seconds["static"][1:])
        print(
            f"programs compiled after the first minute: {late}; a step of the endless table / of the static one: {ratio:.3f} "
            f"(medians); {checked.compared:,} rows compared when they came back, {checked.different} differ"
        )


def _say(elapsed: float, endless: Table, seconds: dict[str, list[float]], compiled: int, hashes: float) -> None:
    own, (anonymous, everything) = endless.residents, (one - hashes for one in memory())
    assert own is not None
    recent = {name: 1e3 * float(np.median(values[-20:])) for name, values in seconds.items() if name != "checked"}
    print(
        f"{elapsed:6.0f} s  step {endless.number:,}  admitted {own.admitted:,}  spilled {len(own.spill):,}  came back "
        f"{own.returned:,}  compiled {compiled}  MB {anonymous:,.0f} own, {everything:,.0f} with mapped files  "
        + "  ".join(f"{name} {value:.1f} ms" for name, value in recent.items()),
        flush=True,
    )


def auc(args: argparse.Namespace) -> None:
    """Progressive AUC, of the second half of the stream, of tables that hold all ids, and a part."""
    source = Planted(args.batch, args.births, args.living, args.skew)
    steps, count = args.steps, int(args.living + args.steps * args.births)
    kinds = {"all ids": (2 * count, 1)}
    kinds |= {f"1 of {part}, admitted after {n}": (2 * count // part, n) for part, n in ((4, 1), (8, 1), (4, 2))}
    for name, (capacity, admit_after) in kinds.items():
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            table = Table(capacity, args.batch, Path(folder), admit_after, args.evict, args.hidden)
            found = []
            for step, (logits, batch) in enumerate(table.run(source, steps)):
                if step >= steps // 2:
                    found.append((np.asarray(logits), batch.label, source.logit(source(step)[0])))
            logits, label, best = (np.concatenate(one) for one in zip(*found, strict=True))
            own = table.residents
            assert own is not None
            print(
                f"{name:>24}: {capacity:,} rows, {own.admitted:,} admitted, {own.evicted:,} evicted, {own.returned:,} back; AUC "
                f"{metrics.auc(label, logits):.5f} of {metrics.auc(label, best):.5f} possible, {len(label):,} rows",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=100_000_000, help="distinct ids that are to be admitted")
    parser.add_argument("--capacity", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--living", type=int, default=1_000_000)
    parser.add_argument("--births", type=float, default=2000, help="a step")
    parser.add_argument("--skew", type=float, default=0.8)
    parser.add_argument("--admit-after", type=int, default=1)
    parser.add_argument("--evict", default="lfu")
    parser.add_argument("--hidden", type=int, nargs="*", default=[512, 256], help="widths of the model's layers")
    parser.add_argument("--every", type=float, default=20.0, help="seconds between lines")
    parser.add_argument("--folder", type=Path, help="where the spill lies; default: that of temporary files")
    parser.add_argument("--check-all", action="store_true", help="compare rows in all turns; then times mean nothing")
    parser.add_argument("--auc", action="store_true", help="compare AUCs instead")
    parser.add_argument("--steps", type=int, default=600, help="of --auc")
    args = parser.parse_args()
    (auc if args.auc else measure)(args)


if __name__ == "__main__":
    main()
