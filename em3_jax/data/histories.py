"""Histories as ranges of events sorted by (user, time)."""

import numpy as np


def sort_events(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The order [E] i64 that lays the events of each user side by side, oldest first; equal times keep their order."""
    return np.lexsort((time, user))


def history_ranges(
    event_user: np.ndarray, event_time: np.ndarray, row_user: np.ndarray, row_time: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(start, end) [n] i64 each: the events of a row's user that are strictly earlier than the row.

    Args:
      event_user, event_time: [E] int, sorted by (user, time).
      row_user, row_time: [n] int, any order.
    """
    low = min(int(event_time.min(initial=0)), int(row_time.min(initial=0)))
    high = max(int(event_time.max(initial=0)), int(row_time.max(initial=0)))
    span = high - low + 1
    users = int(max(event_user.max(initial=0), row_user.max(initial=0))) + 1
    if users * span > np.iinfo(np.int64).max:
        raise ValueError("users times time span exceeds 64 bits; give coarser times")
    # One key orders by user first and time second, so both ends of a range are one binary search.
    event_key = event_user.astype(np.int64) * span + (event_time - low)
    row_key = row_user.astype(np.int64) * span
    start = np.searchsorted(event_key, row_key, side="left")
    end = np.searchsorted(event_key, row_key + (row_time - low), side="left")
    return start.astype(np.int64), end.astype(np.int64)
