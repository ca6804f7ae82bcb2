"""LEMUR's memory bank: what the encoder last made of each item, and when.

A step reads the rows of its distinct items, encodes some of them anew and writes these back: histories cost a lookup, whatever
their length. Reading and writing touch the named rows alone, in place where the caller donates the state, like ID tables; a bank
is cut by rows over the devices of a mesh, and lies there, in the same way.

Letters: V rows of the bank, D width, S distinct items of a step, C of them that may be encoded, P that are.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.tables import packing

Bank = dict[str, packing.Table]
"""{"vector": [V, D] f32, "written": [V] i32 step of the last write, -1 = never, "uses": [V] i32 steps as a candidate}"""

NEVER = -1
BEYOND = 1 << 30  # of no bank a row


class Stored(NamedTuple):
    """What a bank holds of the items of a batch.

    Attributes:
      vector: [S, D] f32; means something where `present` alone.
      written: [S] i32, the step of the last write; `NEVER`.
      uses: [S] i32, steps that had the item among those that may be encoded.
    """

    vector: jax.Array
    written: jax.Array
    uses: jax.Array

    @property
    def present(self) -> jax.Array:
        """[S] bool, whether the row was ever written."""
        return self.written > NEVER


class Writes(NamedTuple):
    """What a step leaves in the bank, for rows of a batch's distinct items.

    Attributes:
      position: [C] i32 rows among the S items that may be encoded in this step.
      mask: [C] bool, False = padding.
      vector: [C, D] the fresh representations.
      encoded: [C] bool, whether there is a fresh one.
    """

    position: jax.Array
    mask: jax.Array
    vector: jax.Array
    encoded: jax.Array


def init(length: int, width: int, form: packing.Form = packing.PLAIN) -> Bank:
    """An empty bank of `length` rows, which lie in `form`.

    >>> from em3_jax.tables import memory_bank
    >>> bank = memory_bank.init(3, 2)
    >>> bank["vector"].shape, bank["written"].tolist(), bank["uses"].tolist()
    ((3, 2), [-1, -1, -1], [0, 0, 0])
    """
    bank = {
        "vector": jnp.zeros((length, width), jnp.float32),
        "written": jnp.full(length, NEVER, jnp.int32),
        "uses": jnp.zeros(length, jnp.int32),
    }
    return {name: packing.laid_out(array, form) for name, array in bank.items()}


def read(bank: Bank, item_id: jax.Array) -> Stored:
    """The rows `item_id` [S] i32; of an id beyond the bank, one that was never written.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> memory_bank.read(memory_bank.init(3, 2), jnp.array([1, 9])).present.tolist()  # 9 is beyond it
    [False, False]
    """
    lies = {name: packing.among_all(table, item_id) for name, table in bank.items()}
    return _read(bank, item_id, lies)


def read_part(part: Bank, row: jax.Array) -> Stored:
    """The rows `row` [S] i32 of one device's part of a bank that is dealt out, see `read`.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> stored = memory_bank.read_part(memory_bank.init(3, 2), jnp.array([0, 2]))
    >>> stored.vector.shape, stored.uses.tolist()
    ((2, 2), [0, 0])
    """
    return _read(part, row, dict.fromkeys(part, row))


def _read(bank: Bank, row: jax.Array, lies: dict[str, jax.Array]) -> Stored:
    """`lies`: of each table where the rows lie in it."""
    found = {name: packing.take(table, lies[name]) for name, table in bank.items()}
    is_there = row < packing.held(bank["written"])
    return Stored(found["vector"], jnp.where(is_there, found["written"], NEVER), found["uses"])


def write(bank: Bank, item_id: jax.Array, stored: Stored, writes: Writes, step: jax.Array) -> Bank:
    """The bank after a step; only rows of `writes` change.

    Args:
      item_id: [S] i32, of the batch; of one device's part of a bank, rows of it.
      stored: what was read of them.
      writes: of the step; an item may occur in it several times with equal vectors.
      step: [] i32.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> bank, item = memory_bank.init(4, 2), jnp.array([1, 3])
    >>> stored = memory_bank.read(bank, item)
    >>> every, encoded = jnp.array([True, True]), jnp.array([True, False])
    >>> writes = memory_bank.Writes(jnp.arange(2), every, jnp.ones((2, 2)), encoded)
    >>> bank = memory_bank.write(bank, item, stored, writes, jnp.array(5))
    >>> bank["written"].tolist(), bank["uses"].tolist()  # item 3 might have been encoded, item 1 was
    ([-1, 5, -1, -1], [0, 1, 0, 1])
    """
    ids = item_id[writes.position]
    encoded = jnp.where(writes.encoded & writes.mask, ids, BEYOND)  # dropped
    # The new rows are computed from the old ones, if only by a factor of zero. So the read has to come first, and XLA writes in
    # place; otherwise it copies the bank in each step.
    vector = writes.vector.astype(jnp.float32) + 0.0 * stored.vector[writes.position]
    when = jnp.maximum(step, stored.written[writes.position])  # `step`; of integers XLA knows what 0 * x is
    uses = stored.uses[writes.position] + 1
    return {
        "vector": _put(bank["vector"], encoded, vector),
        "written": _put(bank["written"], encoded, when),
        "uses": _put(bank["uses"], jnp.where(writes.mask, ids, BEYOND), uses),
    }


def _put(table: packing.Table, row: jax.Array, value: jax.Array) -> packing.Table:
    if isinstance(table, packing.Rows):
        order = jnp.argsort(row)
        row, value = row[order], value[order]
    return packing.put(table, row, value)


def first_places(item_id: jax.Array, mask: jax.Array) -> jax.Array:
    """[C] i32: of each row, the first unmasked row with the same item: itself, unless a batch has a row for each slot.

    Args:
      item_id: [C] i32.
      mask: [C] bool; of masked rows the result means nothing.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> memory_bank.first_places(jnp.array([7, 8, 7, 8]), jnp.ones(4, bool)).tolist()
    [0, 1, 0, 1]
    """
    number = jnp.arange(len(item_id))
    order = jnp.lexsort((number, item_id, ~mask))
    item, valid = jnp.take(item_id, order), jnp.take(mask, order)
    begins = jnp.concatenate([jnp.ones(1, bool), (item[1:] != item[:-1]) | (valid[1:] != valid[:-1])])
    first = order[jax.lax.cummax(jnp.where(begins, number, 0))]
    return jnp.zeros_like(number).at[order].set(first, unique_indices=True)


def rank(stored: Stored, position: jax.Array, mask: jax.Array, drawn: jax.Array) -> jax.Array:
    """[C] i32: the rows that may be encoded, in the order in which they should be: never written ones first, then by chance, the
    rarer an item the more likely, so that frequent ones are refreshed too. Padding comes last.

    An item seen n times is drawn with weight 1 / n, without replacement (Efraimidis and Spirakis, Weighted random sampling with a
    reservoir, 2006).

    Args:
      stored: of the S items.
      position, mask: [C], see `Writes`.
      drawn: [C] f32 of the exponential distribution, independent ones.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> written, uses = jnp.array([3, -1, 2]), jnp.array([90, 0, 1])
    >>> stored = memory_bank.Stored(jnp.zeros((3, 2)), written, uses)
    >>> memory_bank.rank(stored, jnp.arange(3), jnp.ones(3, bool), jnp.ones(3)).tolist()  # the new one first
    [1, 2, 0]
    """
    waiting = drawn * jnp.maximum(stored.uses[position], 1)
    waiting = jnp.where(stored.present[position], waiting, -1.0)
    return jnp.argsort(jnp.where(mask, waiting, jnp.inf))


class Sample(NamedTuple):
    """Which of C rows are encoded. P and Q follow C, the masks the rows that are real.

    Attributes:
      trained, trained_mask: [Q] i32, bool; rows that take a gradient.
      held, held_mask: [P - Q] i32, bool; rows that are encoded without one.
    """

    trained: jax.Array
    trained_mask: jax.Array
    held: jax.Array
    held_mask: jax.Array


def sample(order: jax.Array, count: jax.Array, forward_percent: float, backward_percent: float) -> Sample:
    """The first ceil(p n) rows of an order, of which the first ceil(q n) take a gradient.

    Args:
      order: [C] i32 rows, see `rank`.
      count: [] i32, n of them are real, the first ones.
      forward_percent, backward_percent: p >= q, in percent.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import memory_bank
    >>> order = jnp.array([4, 2, 0, 1, 3])
    >>> found = memory_bank.sample(order, jnp.array(5), forward_percent=60, backward_percent=20)
    >>> found.trained[found.trained_mask].tolist(), found.held[found.held_mask].tolist()
    ([4], [2, 0])
    """
    sizes = len(order)
    forward, backward = (
        [math.ceil(Fraction(str(percent)) * n / 100) for n in range(sizes + 1)]
        for percent in (forward_percent, backward_percent)
    )
    most_held = max(p - q for p, q in zip(forward, backward, strict=True))
    trained, encoded = jnp.asarray(backward)[count], jnp.asarray(forward)[count]
    padded = jnp.pad(order, (0, most_held))
    return Sample(
        order[: backward[-1]],
        jnp.arange(backward[-1]) < trained,
        jax.lax.dynamic_slice_in_dim(padded, trained, most_held),
        jnp.arange(most_held) < encoded - trained,
    )
