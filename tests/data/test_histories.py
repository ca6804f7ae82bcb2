"""Histories of a log: strictly earlier events, of no later split, one range each."""

import numpy as np
import pytest

from em3_jax.data.histories import histories

USERS, ROWS = 9, 200


def log(splits: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, time, split) of rows in any order, about three of a time."""
    random = np.random.default_rng(3)
    user, time = random.integers(0, USERS, ROWS), random.integers(0, 60, ROWS)
    if splits == "at random":
        return user, time, random.choice(3, ROWS, p=[0.7, 0.15, 0.15])
    if splits == "by time":
        return user, time, np.digitize(time, [40, 50])
    last = np.array([time[user == one].max() for one in range(USERS)])[user]  # each user's own last days are held out
    split = np.where(time >= last, 2, np.where(time >= last - 5, 1, 0))
    if splits == "by user, one at random":
        split[user == 4] = random.choice(3, (user == 4).sum())
    return user, time, split


@pytest.mark.parametrize("splits", ["at random", "by time", "by user", "by user, one at random"])
def test_a_history_holds_strictly_earlier_events_of_no_later_split(splits):
    user, time, split = log(splits)
    is_event = np.arange(ROWS) % 3 > 0
    events = np.flatnonzero(is_event)
    found = histories(user[events], time[events], split[events], user, time, split)
    for row in range(ROWS):
        expected = [e for e in events if user[e] == user[row] and time[e] < time[row] and split[e] <= split[row]]
        expected.sort(key=lambda e: time[e])  # stable: equal times keep their order
        assert events[found.order[found.start[row] : found.end[row]]].tolist() == expected
    stored = np.bincount(found.order, minlength=len(events))
    if splits.endswith("at random"):
        np.testing.assert_array_equal(found.order[found.original], found.order)
        assert (found.original <= np.arange(len(found.order))).all() and stored.max() > 1
        if splits.startswith("by user"):
            assert set(user[events][stored > 1]) == {4}  # the others' splits follow each other
    else:
        assert found.original is None and (stored == 1).all()
