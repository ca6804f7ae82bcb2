"""What a service looks up of each item, computed a batch at a time; killed, it goes on where it stopped.

Letters: I items, n some of them, W width.
"""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
import xxhash

from em3_jax import tasks
from em3_jax.core import exchange
from em3_jax.core.errors import UserError
from em3_jax.core.progress import Progress
from em3_jax.core.types import Batch, State
from em3_jax.data.catalogue import CataloguePass
from em3_jax.data.format import FeatureSet
from em3_jax.export.model import original_ids
from em3_jax.features.placement import Features
from em3_jax.serving import store
from em3_jax.serving.id_index import IdIndex
from em3_jax.serving.vectors import PREFIX, SCALE, Vectors, stored
from em3_jax.tasks.wrapped import OnGivenTokens
from em3_jax.training import embeddings, step
from em3_jax.training.experiment import Experiment
from em3_jax.training.processes import Interrupts

SAVE_SECONDS = 5.0


def digests(feature_sets: Sequence[FeatureSet], items: np.ndarray) -> np.ndarray:
    """[n, 2] u64 hashes (XXH3, 128 bits) of the content of ascending items [n]: all bytes of their tokens and masks."""
    pieces = []
    for features in feature_sets:
        tokens, mask = (np.ascontiguousarray(part).reshape(len(items), -1) for part in features.of_items(items))
        pieces += [_hashed(tokens.view(np.uint8)), mask.view(np.uint8)]
    return _hashed(np.concatenate(pieces, axis=1)).view(np.uint64)


def _hashed(rows: np.ndarray) -> np.ndarray:
    """[n, 16] u8 hashes of contiguous rows [n, b] u8: one call a row, for in calls most of the time would go."""
    return np.frombuffer(b"".join(map(xxhash.xxh3_128_digest, rows)), np.uint8).reshape(len(rows), 16)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What was done: `count` items encoded, the others taken over; `vectors` is what is looked up, by name."""

    count: int
    vectors: dict[str, Vectors]

    @property
    def widths(self) -> dict[str, int]:
        """Name -> W."""
        return {name: one.width for name, one in self.vectors.items()}


def encode_items(
    folder: Path, parts: Experiment, state: State, *, dtype: str, batch_size: int, reusable: store.Version | None
) -> Encoded:
    """Writes what services look up of each item, one row more for unknown items, and where it comes from.

    Args:
      folder: of the version in the making; what is there of it already is kept.
      dtype: of the vectors on disk.
      batch_size: items encoded at once.
      reusable: an earlier version of the same model, from which items with the same content are taken.
    """
    items, sets = parts.work.dataset.num_items, parts.work.content_sets
    of_state, nothing = make_lookup(parts), nothing_known(parts, batch_size)
    lookup = functools.partial(of_state, state)
    widths = {name: one.shape[1] for name, one in jax.eval_shape(lookup, nothing).items()}
    vectors = {name: _file(folder, name, (items + 1, width), dtype) for name, width in widths.items()}
    digest = store.array_file(folder, "content_digest", (items, 2), np.uint64)
    has_content = store.array_file(folder, "has_content", (items + 1,), np.bool_)
    count = 0
    if sets:
        has_content[:items] = embeddings.has_content(parts)
        todo = np.arange(items) if reusable is None else _take_over(reusable, parts, vectors, digest)
        count = len(todo)
        if count:
            source = CataloguePass(todo, batch_size, () if parts.work.constants else tuple(sets))
            _encode(folder, lookup, source, sets, vectors, digest)
    if reusable is None:
        for name, one in lookup(nothing).items():
            vectors[name].write(items, np.asarray(one)[0])
    for name, array in vectors.items():
        for start in range(0, items + 1, 4096):
            if not array.finite(slice(start, start + 4096)):
                raise UserError(
                    f"{folder}: some vectors '{name}' are not finite in {dtype}; choose --dtype float32, or look at the run"
                )
    _flush((*_arrays(vectors), digest, has_content))
    return Encoded(count, vectors)


def _file(folder: Path, name: str, shape: tuple[int, int], dtype: str) -> Vectors:
    """Writable vectors of a version in the making."""
    values = store.array_file(folder, f"{PREFIX}{name}", shape, dtype)
    return Vectors(
        values, store.array_file(folder, f"{SCALE}{name}", shape[:1], np.float32) if dtype == "int8" else None
    )


def _arrays(vectors: dict[str, Vectors]) -> list[np.ndarray]:
    return [array for one in vectors.values() for array in one if array is not None]


def make_lookup(parts: Experiment) -> Callable[[State, Batch], dict[str, jax.Array]]:
    """(state, batch) -> {name: [B, W]} what is looked up of its items, whose tokens come with it or lie on the device.

    Tokens are standardised where the run does it, once in tables or in each step: what is computed of another number of items, or
    fused with something else, differs in the last bit. From tables they are taken by a program of their own, so that the other,
    which takes long to compile, is the same for items without content.
    """
    task = OnGivenTokens(parts.work.task) if parts.work.constants else parts.work.task
    mesh, shards = parts.program.mesh, parts.work.shards
    program = step.make_apply(task, task.lookup, mesh, shards)

    @jax.jit
    def content(tables: Features, batch: Batch) -> Batch:
        with exchange.blocks_on(mesh if shards.in_blocks else None):
            inputs = tasks.gathered(None, tables, batch)
        return batch | {"tokens": inputs.tokens, "tokens_mask": inputs.tokens_mask}

    def lookup(state: State, batch: Batch) -> dict[str, jax.Array]:
        batch = parts.program.place(batch)
        if parts.work.constants and "tokens" not in batch:
            batch = content(parts.work.constants, batch)
        return program(state.params, state.tables, state.memory, {}, batch)

    return lookup


def _encode(
    folder: Path,
    lookup: Callable,
    source: CataloguePass,
    feature_sets: Sequence[FeatureSet],
    vectors: dict[str, Vectors],
    digest: np.ndarray,
) -> None:
    """Encodes the items of `source`, from the batch on that progress.json names."""
    todo, batch_size = source.rows, source.batch_size
    progress = folder / "progress.json"
    done = json.loads(progress.read_text(encoding="utf-8")) if progress.exists() else 0
    saved = time.monotonic()
    waiting: list[tuple[np.ndarray, dict[str, jax.Array]]] = []  # so that the devices compute while others are hashed

    def keep(most: int) -> None:
        while len(waiting) > most:
            members, found = waiting.pop(0)
            for name, one in found.items():
                vectors[name].write(members, np.asarray(one)[: len(members)])

    encoded = min(done * batch_size, len(todo))
    bar = Progress(len(todo), encoded, unit="item")
    with contextlib.closing(bar), Interrupts() as interrupts:
        for k in range(done, len(source)):
            members = todo[k * batch_size : (k + 1) * batch_size]
            digest[members] = digests(feature_sets, members)  # reads them from the disk, if that has to be
            waiting.append((members, lookup(source[k])))
            keep(most=2)
            encoded += len(members)
            bar.advance(len(members))
            if interrupts.received or time.monotonic() - saved > SAVE_SECONDS:
                keep(most=0)
                _save(progress, [*_arrays(vectors), digest], k + 1)
                saved = time.monotonic()
            if interrupts.received:
                raise UserError(f"{folder}: stopped after {encoded:,} items; run the same command again to go on")
        keep(most=0)


def _save(progress: Path, arrays: list[np.ndarray], count: int) -> None:
    """First the numbers, then the file that vouches for them."""
    _flush(arrays)
    store.write_json(progress, count)


def _flush(arrays: Iterable[np.ndarray]) -> None:
    for array in arrays:
        assert isinstance(array, np.memmap)  # as `store.array_file` makes them
        array.flush()


def nothing_known(parts: Experiment, size: int) -> Batch:
    """A batch of items without any content, of the same shapes as those of other items: one program encodes both."""
    shapes = {features.name: features.tokens.shape[1:] for features in parts.work.content_sets}
    tokens = {f.name: np.zeros((size, *shapes[f.name]), f.tokens.dtype) for f in parts.work.content_sets}
    masks = {name: np.zeros((size, shape[0]), bool) for name, shape in shapes.items()}
    batch = {"item_id": np.zeros(size, np.int32), "item_mask": np.zeros(size, bool)}
    return batch | ({"tokens": tokens, "tokens_mask": masks} if tokens else {})


def _take_over(
    reusable: store.Version, parts: Experiment, vectors: dict[str, Vectors], digest: np.ndarray
) -> np.ndarray:
    """Copies the vectors of items whose content is as it was, and of unknown ones; returns the others [n]."""
    facts = reusable.manifest["serving"]
    index = IdIndex(reusable["item_words"], reusable["item_slots"], facts["item_ids"] == "text")
    there = stored(reusable.starting_with(PREFIX), reusable.starting_with(SCALE))
    row = index.find(original_ids(parts.work.dataset.item_table))
    for start in range(0, len(row), 4096):
        some = np.arange(start, min(start + 4096, len(row)))
        now = digests(parts.work.content_sets, some)
        before = reusable["content_digest"][row[some]]
        row[some[(now != before).any(axis=1)]] = -1
        kept = some[row[some] >= 0]
        digest[kept] = now[row[some] >= 0]
        for name, array in vectors.items():
            array.copy_rows(kept, there[name], row[kept])
    for name, array in vectors.items():
        array.copy_rows(np.array([-1]), there[name], np.array([-1]))
    return np.flatnonzero(row < 0)
