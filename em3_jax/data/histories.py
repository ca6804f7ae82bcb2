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
      event_user, event_time: [E] int >= 0, int of any unit; sorted by (user, time).
      row_user, row_time: [n] int >= 0, int of the same unit; any order.
    """
    users = int(max(event_user.max(initial=0), row_user.max(initial=0))) + 1
    low = min(int(event_time.min(initial=0)), int(row_time.min(initial=0)))
    high = max(int(event_time.max(initial=0)), int(row_time.max(initial=0)))
    if users * (high - low + 1) > np.iinfo(np.int64).max:  # e.g. nanoseconds: only the order of the times matters
        times = np.unique(np.concatenate([event_time, row_time]))
        event_time, row_time = np.searchsorted(times, event_time), np.searchsorted(times, row_time)
        low, high = 0, len(times) - 1
    first = np.searchsorted(event_user, np.arange(users))  # each user's first event
    # One key orders by user first and time second, so the end of a range is one binary search.
    span = high - low + 1
    event_key = event_user.astype(np.int64) * span + (event_time - low)
    row_key = row_user.astype(np.int64) * span + (row_time - low)
    order = np.argsort(row_key)  # neighbouring searches touch neighbouring memory: several times faster
    end = np.empty(len(row_key), np.int64)
    end[order] = np.searchsorted(event_key, row_key[order], side="left")
    return first[row_user].astype(np.int64), end
