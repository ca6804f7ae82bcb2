"""Histories as ranges of events sorted by (user, time)."""

from typing import NamedTuple

import numpy as np


class Histories(NamedTuple):
    """Each row's history as a range of the stored events.

    Attributes:
      order: [S] i64 numbers of the given events, as they are to be stored.
      start, end: [n] i64, a row's range of these.
      original: [S] i64, of each stored event the first place that stores it; None where each is
        stored once.
    """

    order: np.ndarray
    start: np.ndarray
    end: np.ndarray
    original: np.ndarray | None


def sort_events(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """The order [E] i64 that lays the events of each user side by side, oldest first; equal times keep their order."""
    return np.lexsort((time, user))


def histories(
    event_user: np.ndarray,
    event_time: np.ndarray,
    event_split: np.ndarray,
    row_user: np.ndarray,
    row_time: np.ndarray,
    row_split: np.ndarray,
) -> Histories:
    """The histories of rows of a log: what their users did strictly earlier, in no later split.

    A row of training must not read what a row of the test split asks for. Where the splits of a
    user follow each other in time, as in a chronological split, strictly earlier events are of no
    later split anyhow, and each event is stored once. Where they interleave, a user's events of
    the earlier splits are stored again, as a run of their own, and the rows of that split point
    there: every history stays one range.

    Args:
      event_user, event_time, event_split: [E], in any order; equal times keep it.
      row_user, row_time, row_split: [n], in any order.
    """
    order = sort_events(event_user, event_time)
    user, time, split = (column[order] for column in (event_user, event_time, event_split))
    start, end = history_ranges(user, time, row_user, row_time)
    runs, stored = [order], len(order)
    for code in range(int(split.max(initial=0))):  # nothing is later than the last split
        later = np.concatenate([[0], np.cumsum(split > code)])
        rows = np.flatnonzero(row_split == code)
        users = np.unique(row_user[rows[later[end[rows]] > later[start[rows]]]])
        if not len(users):
            continue
        kept = np.isin(user, users) & (split <= code)
        rows = rows[np.isin(row_user[rows], users)]
        first, last = history_ranges(user[kept], time[kept], row_user[rows], row_time[rows])
        start[rows], end[rows] = first + stored, last + stored
        runs.append(order[kept])
        stored += len(runs[-1])
    if len(runs) == 1:
        return Histories(order, start, end, None)
    order = np.concatenate(runs)
    place = np.empty(len(event_user), np.int64)
    place[runs[0]] = np.arange(len(runs[0]))
    return Histories(order, start, end, place[order])


class Cycles(NamedTuple):
    """Histories of rows without times: each row's are its user's other events.

    Attributes:
      row: [2m] i64 the rows that are the stored events.
      original: [2m] i64 the first place that stores the same row.
      start, end: [n] i64, a row's range of these.
    """

    row: np.ndarray
    original: np.ndarray
    start: np.ndarray
    end: np.ndarray


def cyclic_histories(order: np.ndarray, user: np.ndarray, users: int) -> Cycles:
    """A user's k events stand in some order twice in a row: after each come the k - 1 others, which are its history.

    The history of a row that is no event is all k.

    Args:
      order: [m] the rows that are events, in that order, of all users.
      user: [n] rows of the users.
      users: how many there are.
    """
    order = order[np.argsort(user[order], kind="stable")]
    length = np.bincount(user[order], minlength=users)
    first = 2 * (np.cumsum(length) - length)
    position = np.arange(len(order)) - first[user[order]] // 2
    row, original = np.empty(2 * len(order), np.int64), np.empty(2 * len(order), np.int64)
    once = first[user[order]] + position
    again = once + length[user[order]]
    row[once] = row[again] = order
    original[once] = original[again] = once
    start, end = first[user], (first + length)[user]
    start[order] += position + 1
    end[order] += position
    return Cycles(row, original, start, end)


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


class Running:
    """The same ranges of rows that come in the order of time, some at a time; what is kept grows with users alone.

    Of a log whose splits follow one another in time, so that every event is stored once.

    Args:
      start: [U] i64 the first event of each user, those of all users side by side.
    """

    def __init__(self, start: np.ndarray):
        self._start, self._next = start, start.copy()
        self._time = np.iinfo(np.int64).min
        self._users, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)  # events at that time, of these users

    def __call__(
        self, user: np.ndarray, time: np.ndarray, is_event: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(start, end [m] i64 of each row's history; place [k] i64 of each event among the stored ones, in row order).

        Args:
          user, time, is_event: [m] of the next rows, m at most 2^22; none is before those of the last call.
        """
        rows = len(user)
        bits = max(int(rows - 1).bit_length(), 1)
        order = (user.astype(np.int64) << bits) | np.arange(rows)
        order.sort()  # faster than argsort, and equal users keep their order
        index, user_of = order & ((1 << bits) - 1), order >> bits
        event, time_of = is_event[index], time[index]
        until = np.cumsum(event, dtype=np.int32)
        before = until - event
        is_new_user = np.concatenate([[True], user_of[1:] != user_of[:-1]])[:rows]
        is_new_time = is_new_user | np.concatenate([[True], time_of[1:] != time_of[:-1]])[:rows]
        of_user = np.maximum.accumulate(np.where(is_new_user, before, np.int32(0)))
        earlier = np.maximum.accumulate(np.where(is_new_time, before, np.int32(0)))
        known = self._next[user_of]
        place, end = known + (before - of_user), known + (earlier - of_user)
        same = np.flatnonzero(time_of == self._time)
        if len(same) and len(self._users):  # those of the last call at this very moment are not earlier
            found = np.minimum(np.searchsorted(self._users, user_of[same]), len(self._users) - 1)
            end[same] -= np.where(self._users[found] == user_of[same], self._counts[found], 0)
        first = np.flatnonzero(is_new_user)
        last = np.append(first[1:], rows) - 1
        self._next[user_of[first]] += until[last] - before[first]
        self._keep(user, time, is_event)
        result, of_event = np.empty(rows, np.int64), np.empty(rows, np.int64)
        result[index], of_event[index] = end, place
        return self._start[user], result, of_event[is_event]

    def _keep(self, user: np.ndarray, time: np.ndarray, is_event: np.ndarray) -> None:
        """Remembers the events at the last moment."""
        tail = np.searchsorted(time, time[-1]) if len(time) else 0
        users = user[tail:][is_event[tail:]].astype(np.int64)
        if len(time) and time[-1] == self._time:
            users = np.concatenate([np.repeat(self._users, self._counts), users])
        self._users, self._counts = np.unique(users, return_counts=True)
        self._time = int(time[-1]) if len(time) else self._time
