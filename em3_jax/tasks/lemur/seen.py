"""What the examples of a step see of its items: of each a representation, fresh or stored.

Items are encoded, and the bank is read, where they belong, on several devices each on its own; what
comes of it goes to the examples in one exchange, see `core.exchange`.

Letters: O items whose content or row of the bank is here, S places that a batch has of items, C
items that may be encoded, D width of a representation. On one device O and S are the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.core.types import Batch
from em3_jax.tables.memory_bank import Stored, Writes, first_places


class Seen(NamedTuple):
    """What is known of the items of a batch.

    Attributes:
      vector: [S, D] the fresh representations, and the stored ones where there is no fresh one.
      stored: [S, D] the stored ones; None where nobody asked.
      present: [S] bool, whether there is any.
      age: [S] i32 steps since the stored one was made; -1 = there is none.
      fresh: [S] bool, whether the item was encoded in this step.
      counts: [S] bool, whether it was, and this place counts it.
      once: [C] bool, the encoded rows, each item at one of them.
    """

    vector: jax.Array
    stored: jax.Array | None
    present: jax.Array
    age: jax.Array
    fresh: jax.Array
    counts: jax.Array
    once: jax.Array


def see(writes: Writes, batch: Batch, step: jax.Array | int = 0, *, stored: bool = False) -> Seen:
    """What a batch's examples see after `writes`.

    Args:
      writes: what was encoded; its gradient is that of `vector`.
      batch: with what is "stored" of the O items.
      step: [] i32, steps done before this one, which ages count to.
      stored: whether histories read the stored ones alone, and so these go to the examples too.
    """
    bank: Stored = batch["stored"]
    vector, is_fresh = exchange.in_block(_put)(bank.vector, writes)
    age = jnp.where(bank.present, jnp.maximum(step - bank.written, 0), -1)
    vectors = (vector, bank.vector) if stored else (vector,)
    columns = [one.astype(jnp.float32)[:, None] for one in (is_fresh, age)]
    found, is_counted = exchange.to_examples(batch, *vectors, *columns)
    is_fresh, age = found[-2][:, 0] > 0, found[-1][:, 0].astype(jnp.int32)
    once, counts = writes.encoded, is_fresh & is_counted
    if "item_route" not in batch:  # a batch may have a row for each slot
        first = first_places(batch["item_id"][writes.position], writes.encoded)
        once = writes.encoded & (first == jnp.arange(len(first)))
        counts = jnp.zeros_like(counts).at[writes.position].max(once)
    return Seen(found[0], found[1] if stored else None, is_fresh | (age >= 0), age, is_fresh, counts, once)


def _put(stored: jax.Array, writes: Writes) -> tuple[jax.Array, jax.Array]:
    """([O, D] the fresh vectors in the place of the stored ones, [O] bool which are fresh)."""
    place = jnp.where(writes.encoded, writes.position, len(stored))
    vector = stored.at[place].set(writes.vector, mode="drop")
    return vector, jnp.zeros(len(stored), bool).at[place].set(True, mode="drop")
