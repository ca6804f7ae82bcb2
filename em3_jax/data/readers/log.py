"""A log of interactions, held in memory, as the dataset's interactions, events and histories."""

import numpy as np

from em3_jax.data.histories import histories
from em3_jax.data.writer import DatasetWriter


def chronological_split(rows: int, shares: tuple[float, float, float]) -> np.ndarray:
    """[rows] u8 for rows in time order: 0 for the first share, then 1, then 2."""
    borders = np.rint(np.cumsum(shares) * rows).astype(np.int64)
    return np.repeat(np.arange(3, dtype=np.uint8), np.diff(borders, prepend=0))


def write_log(
    writer: DatasetWriter,
    *,
    user: np.ndarray,
    item: np.ndarray,
    label: np.ndarray,
    time: np.ndarray,
    split: np.ndarray | tuple[float, float, float],
    is_event: np.ndarray | None = None,
    context: dict[str, np.ndarray] | None = None,
    event: dict[str, np.ndarray] | None = None,
    labels: dict[str, np.ndarray] | None = None,
) -> bool:
    """Writes all columns of a log, sorted by time; rows of equal time keep their order.

    A history holds the user's strictly earlier events of splits not later than the row's own.

    Args:
      user, item: [n] i32 rows of the tables.
      label: [n] 0/1.
      time: [n] i64.
      split: [n] 0/1/2, or the shares of a chronological split.
      is_event: [n] bool, the rows that later histories show; all by default.
      context, event: field name -> ids [n] i32.
      labels: name -> [n] u8, further labels.

    Returns:
      Whether the rows had to be sorted.
    """
    columns = {"user": user, "item": item, "label": label, "time": time}
    columns |= {f"context_{name}": ids for name, ids in (context or {}).items()}
    columns |= {f"label_{name}": values for name, values in (labels or {}).items()}
    if not isinstance(split, tuple):
        columns["split"] = split
    unsorted = bool((time[1:] < time[:-1]).any())
    if unsorted:
        order = np.argsort(time, kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        is_event = is_event if is_event is None else is_event[order]
        event = {name: ids[order] for name, ids in (event or {}).items()}
    if isinstance(split, tuple):
        columns["split"] = chronological_split(len(time), split)
    rows = np.arange(len(time)) if is_event is None else np.flatnonzero(is_event)
    of_rows = [columns[name] for name in ("user", "time", "split")]
    found = histories(*(column[rows] for column in of_rows), *of_rows)
    columns |= {"history_start": found.start, "history_end": found.end}
    rows = rows[found.order]
    events = {name: columns[name][rows] for name in ("item", "time")}
    if found.original is not None:
        events["original"] = found.original
    writer.columns("interactions", columns)
    writer.columns("events", events | {f"field_{name}": ids[rows] for name, ids in (event or {}).items()})
    return unsorted
