"""Planted data with whole items or users held out: the log stays as it is, its parts and histories change."""

import numpy as np
import pyarrow as pa

from em3_jax.core import npy
from em3_jax.data.readers.splits import Whole
from em3_jax.data.writer import DatasetWriter

Events = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Users i32, items i32 and times i64 of events, each [E]."""


def hold_out(writer: DatasetWriter, rule: Whole, seed: int, events: Events, sizes: dict[str, int]) -> Events:
    """Writes the split column anew; returns the events that histories may hold.

    Clicks on held-out items are left out, and so are choices of them before the log.

    Args:
      rule: by whole items or users.
      seed: of the draw by ids.
      events: of all users.
      sizes: how many there are of each kind, "user" and "item".
    """
    part = rule.of_each(pa.array(range(sizes[rule.kind])), seed, None)
    folder = writer.path / "interactions"
    one, split = (npy.load(folder / f"{name}.npy", mmap_mode="r+") for name in (rule.kind, "split"))
    split[:] = part[one]
    if rule.kind == "user":
        return events
    known = part[events[1]] == 0
    user, item, time = (column[known] for column in events)
    return user, item, time
