"""The gradient of the slot gather, form by form: python -m benchmarks.slots [--deterministic]

A step's B x (1 + T) slots gather from S distinct rows, and the gradient sums them back: a scatter-add with many duplicates.
Against it stand forms that read an order which the host prepares with the batch: slots sorted by row, one sum per run of equal
rows; and groups of 8 slots of one row, summed before they are written. Slots are drawn as popular items are, row n with
probability ~ 1 / n. `--deterministic` asks XLA for deterministic operations, which matters on GPUs. Results: benchmarks/NOTES.md.
"""

import argparse
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved, milliseconds
from em3_jax.core import sparse

GROUP = 8


def gathered(make_gradient: Callable) -> Callable:
    """(rows [S, D], position [P], order) -> [P, D], whose gradient is make_gradient(cotangent [P, D], position, order, S)."""

    @jax.custom_vjp
    def take(rows, position, order):
        return rows[position]

    def forward(rows, position, order):
        return rows[position], (position, order, len(rows))

    def backward(saved, cotangent):
        return make_gradient(cotangent, *saved), None, None

    take.defvjp(forward, backward)
    return take


def scattered(cotangent: jax.Array, position: jax.Array, order: None, rows: int) -> jax.Array:
    return jnp.zeros((rows, cotangent.shape[1]), cotangent.dtype).at[position].add(cotangent)


def runs(cotangent: jax.Array, position: jax.Array, order: jax.Array, rows: int) -> jax.Array:
    """`order` [P] sorts the slots by row."""
    return jax.ops.segment_sum(cotangent[order], position[order], rows, indices_are_sorted=True)


def groups(cotangent: jax.Array, position: jax.Array, order: tuple[jax.Array, ...], rows: int) -> jax.Array:
    """`order`: slots [S, W] of the first group of each row, rows [G] and slots [G, W] of further ones; number P where none is."""

    def sums(slots: jax.Array) -> jax.Array:
        return sum(cotangent.at[slots[:, k]].get(mode="fill", fill_value=0) for k in range(slots.shape[1]))

    first, receiver, more = order
    return sums(first).at[receiver].add(sums(more), indices_are_sorted=True)


def in_groups(position: np.ndarray, order: np.ndarray, rows: int) -> tuple[np.ndarray, ...]:
    entries = sparse.Entries(position[order], order.astype(np.int32), np.ones(len(order), np.float32))
    made = sparse.grouped(entries, rows, width=GROUP)
    none = np.int32(len(order))
    first, more = np.where(made.weight > 0, made.sender, none), np.where(made.more_weight > 0, made.more_sender, none)
    return first, made.more_receiver, more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024, help="B")
    parser.add_argument("--history", type=int, default=50, help="T")
    parser.add_argument("--rows", type=int, default=6144, help="S")
    parser.add_argument("--width", type=int, default=64, help="D")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--deterministic", action="store_true")
    args = parser.parse_args()
    if args.deterministic:  # before the first device is made
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, args.rows + 1)
    slots = args.batch * (1 + args.history)
    position = random.permutation(args.rows)[random.choice(args.rows, slots, p=share / share.sum())].astype(np.int32)
    began = time.perf_counter()
    order = np.argsort(position, kind="stable").astype(np.int32)
    sorting = time.perf_counter() - began
    rows = jnp.asarray(random.standard_normal((args.rows, args.width), np.float32))
    weight = jnp.asarray(random.standard_normal((slots, args.width), np.float32))
    forms = {
        "scatter-add": (scattered, None),
        "sorted slots": (runs, order),
        "groups of 8": (groups, in_groups(position, order, args.rows)),
    }
    calls, expected = {}, None
    for name, (form, prepared) in forms.items():
        take = gathered(form)
        gradient = jax.jit(jax.grad(lambda rows, *slots, take=take: jnp.sum(jnp.square(take(rows, *slots)) * weight)))
        prepared = jax.device_put((position, prepared))
        calls[name] = lambda gradient=gradient, prepared=prepared: gradient(rows, *prepared)
        found = np.asarray(calls[name]())
        expected = found if expected is None else expected
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    kind = jax.devices()[0].device_kind
    print(
        f"{kind}, {slots:,} slots of {args.rows:,} rows, {args.width} wide, f32; sorted on the host in {sorting * 1e3:.1f} ms"
    )
    for name, seconds in interleaved(calls, args.repeats).items():
        print(f"{name:<14}{milliseconds(seconds)}")


if __name__ == "__main__":
    main()
