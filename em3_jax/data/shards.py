"""Which part of a batch a process builds, and how parts become one batch.

Without shards, the distinct blocks are those of the whole batch, and every process has to look through all of it. With shards,
a process reads the examples of its own devices alone; an item or a row that two shards need is in the blocks of both.
"""

from collections.abc import Sequence

import numpy as np

from em3_jax.core.batch import KEYS
from em3_jax.core.types import Batch, Shards
from em3_jax.data import blocks
from em3_jax.data.batches import BatchBuilder, Buckets


def build(
    builder: BatchBuilder,
    shards: Shards,
    rows: np.ndarray,
    *,
    buckets: Buckets,
    key: np.uint64 | None = None,
    weight: np.ndarray | None = None,
    number: int = 0,
) -> Batch:
    """The process's shards of the batch of interaction rows `rows` [B] i64, side by side; see `BatchBuilder`.

    Args:
      number: of the batch among those of its source.
    """
    parts = [(rows[own], None if weight is None else weight[own]) for own in shards.slices(len(rows))]
    if shards.in_blocks:
        made = [blocks.part(builder, *one, key) for one in parts]
        return blocks.joined(builder, made, shards, buckets, number)
    return side_by_side([builder(own, buckets=buckets, key=key, weight=weight) for own, weight in parts], shards.first)


def side_by_side(batches: Sequence[Batch], first: int) -> Batch:
    """Batches of the same shapes as one, numbers `first`, ... of a larger one: positions count through its blocks."""
    if len(batches) == 1 and first == 0:
        return batches[0]
    result: Batch = {}
    for name, value in batches[0].items():
        if isinstance(value, dict):
            result[name] = {key: np.concatenate([batch[name][key] for batch in batches]) for key in value}
            continue
        parts = [batch[name] for batch in batches]
        if block := KEYS[name].into:
            size = len(batches[0][block])
            moved = [part + (first + k) * size for k, part in enumerate(parts)]
            if block == "row_id":  # 0 means padding, and is a padding row of the first shard too
                moved = [np.where(old == 0, 0, new) for old, new in zip(parts, moved, strict=True)]
            parts = moved
        result[name] = np.concatenate(parts).astype(value.dtype)
    return result
