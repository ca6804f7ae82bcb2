"""Negatives for a log of clicks alone: items that were there when the click happened, and that its user had not clicked.

A row of split s at time t stands against different items drawn from those that rows of splits up to s
show up to t, without those that its user has in them, or in histories that come with the log. So what
is drawn depends on nothing that happens later or that an earlier split must not read: were a user's
test items never drawn in training, what is missing would tell them.

Letters: n rows, I items.
"""

from typing import NamedTuple

import numpy as np

from em3_jax.core import draws
from em3_jax.core.errors import UserError
from em3_jax.data.histories import history_ranges

BY = ("uniform", "popularity")
_TRIES = 30  # that a negative is drawn and rejected before the items that are left are looked at one by one


class Taken(NamedTuple):
    """What users have besides their rows in the log.

    Attributes:
      user, item, time, split: [m] of events that are history only.
      row, shown: [k] rows of the log, and items that the history given with each shows.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    split: np.ndarray
    row: np.ndarray
    shown: np.ndarray


NOTHING = Taken(*(np.zeros(0, np.int64) for _ in Taken._fields))


class _Visible(NamedTuple):
    """The rows that those of a split may know of, in the order of time.

    Attributes:
      time, item: [n] of the rows.
      seen, seen_time: the items in the order in which they appear, and when each does.
      pair, pair_time: sorted user * I + item, and when the user first has the item.
      user, user_time: of the pairs of the rows alone, sorted by these two.
      shown: sorted row * I + item of the histories that are given with rows.
    """

    time: np.ndarray
    item: np.ndarray
    seen: np.ndarray
    seen_time: np.ndarray
    pair: np.ndarray
    pair_time: np.ndarray
    user: np.ndarray
    user_time: np.ndarray
    shown: np.ndarray


def draw_negatives(
    user: np.ndarray,
    item: np.ndarray,
    time: np.ndarray,
    split: np.ndarray,
    *,
    count: int,
    by: str,
    seed: int,
    taken: Taken = NOTHING,
) -> np.ndarray:
    """[n, count] i64: the negatives of each row, fewer (-1) where fewer items are left; deterministic.

    Args:
      user, item, time, split: [n] of clicks in any order; equal times are the same moment.
      count: how many for each.
      by: "uniform": each item is as likely as another; "popularity": in proportion to its clicks so far.
      seed: of the draw.
      taken: what their users have besides; a negative is none of these up to its row either.
    """
    if by not in BY:
        raise UserError(f"--negatives-by '{by}': choose {' or '.join(BY)}")
    result = np.full((len(user), count), -1, np.int64)
    items = 1 + max(int(one.max(initial=0)) for one in (item, taken.item, taken.shown))
    shown = np.unique(taken.row.astype(np.int64) * items + taken.shown)
    for code in np.unique(split):
        rows = np.flatnonzero(split <= code)
        rows = rows[np.argsort(time[rows], kind="stable")]
        events = [column[taken.split <= code] for column in taken[:3]]
        visible = _visible(user[rows], item[rows], time[rows], items, events, shown)
        place = np.flatnonzero(split[rows] == code)  # of the split's own rows in the order of time
        own = rows[place]
        result[own] = _draw(visible, own, user[own], time[own], place, items, count, by, seed)
    return result


def _visible(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, items: int, events: list[np.ndarray], shown: np.ndarray
) -> _Visible:
    """From columns [n] in the order of time; `events` are user, item and time [m] of more pairs."""
    first = np.sort(np.unique(item, return_index=True)[1])
    pair, pair_time = _pairs(user, item, time, items)
    order = np.lexsort((pair_time, pair // items))
    own_user, own_time = (pair // items)[order], pair_time[order]
    if len(events[0]):
        both = [np.concatenate(columns) for columns in zip((user, item, time), events, strict=True)]
        in_time = np.argsort(both[2], kind="stable")
        of_user, of_item, at = (column[in_time] for column in both)
        pair, pair_time = _pairs(of_user, of_item, at, items)
    return _Visible(time, item, item[first], time[first], pair, pair_time, own_user, own_time, shown)


def _pairs(user: np.ndarray, item: np.ndarray, time: np.ndarray, items: int) -> tuple[np.ndarray, np.ndarray]:
    """(sorted distinct user * I + item, when the user first has the item), of columns [n] in the order of time."""
    pair, at = np.unique(user.astype(np.int64) * items + item, return_index=True)
    return pair, time[at]


def _draw(
    visible: _Visible,
    own: np.ndarray,
    user: np.ndarray,
    time: np.ndarray,
    place: np.ndarray,
    items: int,
    count: int,
    by: str,
    seed: int,
) -> np.ndarray:
    """[n, count] i64 or -1: for the rows `own` [n] with these users [n], times [n] and places [n] among the visible ones."""
    rows_so_far = np.searchsorted(visible.time, time, side="right")
    seen_so_far = np.searchsorted(visible.seen_time, time, side="right")
    start, end = history_ranges(visible.user, visible.user_time, user, time + 1)
    wanted = np.minimum(count, seen_so_far - (end - start))
    pool, size = (visible.seen, seen_so_far) if by == "uniform" else (visible.item, rows_so_far)
    result = np.full((len(user), count), -1, np.int64)

    def is_free(rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        key = user[rows] * np.int64(items) + drawn
        found = np.minimum(np.searchsorted(visible.pair, key), len(visible.pair) - 1)
        touched = (visible.pair[found] == key) & (visible.pair_time[found] <= time[rows])
        if len(visible.shown):
            key = own[rows] * np.int64(items) + drawn
            found = np.minimum(np.searchsorted(visible.shown, key), len(visible.shown) - 1)
            touched |= visible.shown[found] == key
        return ~touched & (result[rows] != drawn[:, None]).all(axis=1)

    for column in range(count):
        open_ = np.flatnonzero(wanted > column)
        for attempt in range(_TRIES + 1):
            if not len(open_):
                break
            uniform = draws.uniform_hash(draws.numpy_key(seed, "negatives", column, attempt), place[open_])
            if attempt == _TRIES:  # a user who has nearly all there is
                for row, share in zip(open_, uniform, strict=True):
                    left = pool[: size[row]]
                    left = left[is_free(np.full(len(left), row), left)]
                    if len(left):  # else its histories have all there is
                        result[row, column] = left[int(share * len(left))]
                break
            drawn = pool[(uniform * size[open_]).astype(np.int64)]
            good = is_free(open_, drawn)
            result[open_[good], column] = drawn[good]
            open_ = open_[~good]
    return result
