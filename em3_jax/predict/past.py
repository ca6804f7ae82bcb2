"""The events of each user of a dataset, for rows that are not in it. Letters: n rows, E events, U users."""

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset


class Past:
    """Finds the events of users that are earlier than a moment.

    A dataset's events lie side by side, user after user, oldest first, and each of its rows names a
    range of them that begins with its user's first one. So a user's events go from there to the next
    user's first.

    Args:
      dataset: whose events are read.

    Raises:
      UserError: its histories came with its rows, or are of a log without times, and are no user's.
    """

    def __init__(self, dataset: Dataset):
        events, columns = dataset.events, dataset.interactions
        stored = len(events["item"])
        if "original" in events:  # the first run has all of them, each once; others are of earlier splits
            again = np.flatnonzero(events["original"] != np.arange(stored))
            stored = int(again[0]) if len(again) else stored
        user, start = np.asarray(columns["user"]), np.asarray(columns["history_start"])
        end = np.asarray(columns["history_end"])
        own = start < stored
        own |= (start == stored) & ~np.isin(user, user[own])  # of the last users, who have no event
        user, start, end = user[own], start[own], end[own]
        first = np.full(dataset.num_users, np.iinfo(np.int64).max)
        np.minimum.at(first, user, start)
        if (first[user] != start).any():
            raise UserError(
                f"{dataset.root}: its histories came with its rows, or have no times, and are no user's; say which column "
                "of the rows to score has theirs, with --columns history=..."
            )
        last = np.zeros(dataset.num_users, np.int64)
        np.maximum.at(last, user, end)
        shown = np.unique(user)
        if len(shown) == dataset.num_users:  # else events between two users may be of one who has no row
            last[shown] = np.append(first[shown][1:], stored)
        missing = np.setdiff1d(np.arange(dataset.num_users), shown)
        first[missing] = last[missing] = 0
        self._first, self._last, self._time = first, last, np.asarray(events["time"])

    def ranges(self, user: np.ndarray, time: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """([n], [n]) i64: the events of each row's user that are strictly earlier.

        Args:
          user: [n] i64 rows of the users; U and beyond = one who has none.
          time: [n] i64 of the rows; None = later than all.
        """
        known = user < len(self._first)
        place = np.where(known, user, 0)
        first = np.where(known, self._first[place] if len(self._first) else 0, 0)
        last = np.where(known, self._last[place] if len(self._last) else 0, 0)
        if time is None:
            return first, last
        low, high = first.copy(), last.copy()
        while (open_ := np.flatnonzero(low < high)).size:  # a binary search of all rows at once
            middle = (low[open_] + high[open_]) // 2
            is_earlier = self._time[middle] < time[open_]
            low[open_[is_earlier]] = middle[is_earlier] + 1
            high[open_[~is_earlier]] = middle[~is_earlier]
        return first, low
