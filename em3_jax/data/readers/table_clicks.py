"""A log of clicks alone, of a table: negatives drawn for it, or a dataset for retrieval."""

from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.readers.log import chronological_split
from em3_jax.data.readers.negatives import BY, NOTHING, Taken, draw_negatives
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_log import Log


class Clicks(NamedTuple):
    """What the options of `table` say of clicks alone: how many `negatives` for each, drawn `by`, with which `seed`, and
    whether they are items of the part of the split that their click is of (`by_part`); or `as_retrieval`.
    """

    negatives: int = 0
    by: str = BY[0]
    seed: int = 0
    as_retrieval: bool = False
    by_part: bool = False

    @property
    def alone(self) -> bool:
        """Whether every row may be a click."""
        return self.as_retrieval or self.negatives > 0

    def drawing(self) -> dict[str, Any]:
        """Of negatives, as `draw_negatives` takes it."""
        return {"count": self.negatives, "by": self.by, "seed": self.seed}

    def rule(self, label: str, only_clicks: bool) -> str:
        """What a label says; `label` is the rule for rows of the table, if not all are clicks."""
        if self.negatives:
            how = "uniformly" if self.by == "uniform" else "by their clicks so far"
            which = f"{self.negatives} items" + " of its part" * self.by_part
            return f"every row is 1, against {which} drawn {how} (seed {self.seed}), which are 0"
        if not self.as_retrieval:
            return label
        kept = "every row is 1" if only_clicks else f"{label}, rows that are 1 alone"
        return f"{kept}, each pair of user and item once"


class Ready(NamedTuple):
    """The interactions as they are to be written: `log`, `item` and `user` rows [n], `drawn` [n] bool the negatives that
    were drawn, reason -> rows `dropped`, `notes`.
    """

    log: Log
    item: np.ndarray
    user: np.ndarray
    drawn: np.ndarray
    dropped: dict[str, int]
    notes: list[str]


def check_clicks(options: Clicks) -> Clicks:
    """The options; refuses what does not go together."""
    if options.negatives < 0:
        raise UserError(f"--negatives {options.negatives}: must be at least 0; 0 draws none")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: must be at least 0")
    if options.by not in BY:
        raise UserError(f"--negatives-by '{options.by}': choose {' or '.join(BY)}")
    if options.negatives and options.as_retrieval:
        raise UserError("--negatives does not go with --as-retrieval, which wants clicks alone; leave one out")
    return options


def prepared(
    source: Source, log: Log, item: np.ndarray, user: np.ndarray, options: Clicks, taken: Taken = NOTHING
) -> Ready:
    """The interactions of a log, with negatives (none of what is `taken`) or as pairs where `options` ask for it."""
    ready = Ready(log, item, user, np.zeros(len(item), bool), {}, [])
    if options.as_retrieval:
        return _pairs(ready)
    if not options.negatives:
        if log.label.all():
            raise UserError(
                f"{source}: every row is a click, and there is nothing to rank it against; draw negatives with "
                "--negatives 3, or make a dataset for retrieval with --as-retrieval"
            )
        return ready
    if not log.label.all():
        row = int(np.argmin(log.label))
        raise UserError(f"{source.place(row)}: no click, so the log has negatives of its own; leave --negatives out")
    return _with_negatives(ready, options, taken)


def _pairs(ready: Ready) -> Ready:
    """The clicks, of each pair of user and item the first."""
    log = ready.log
    clicks = np.flatnonzero(log.label)
    if not len(clicks):
        raise UserError("no row is a click; change --label")
    split = np.zeros(len(log.time)) if isinstance(log.split, tuple) else log.split
    order = clicks[np.lexsort((log.time[clicks], split[clicks]))]
    key = ready.user[order].astype(np.int64) * (int(ready.item.max()) + 1) + ready.item[order]
    rows = np.sort(order[np.unique(key, return_index=True)[1]])
    dropped = {
        "no click, and retrieval wants clicks alone": int((~log.label).sum()),
        "their user has the item already": len(clicks) - len(rows),
    }
    dropped = {why: count for why, count in dropped.items() if count}
    return Ready(log.take(rows), ready.item[rows], ready.user[rows], ready.drawn[rows], dropped, [])


def _with_negatives(ready: Ready, options: Clicks, taken: Taken) -> Ready:
    log, item, user = ready.log, ready.item, ready.user
    split = log.split
    if isinstance(split, tuple):  # before the negatives are there: none of them is cut off from its click
        shares, split = split, np.empty(len(log.time), np.uint8)
        split[np.argsort(log.time, kind="stable")] = chronological_split(len(split), shares)
    if options.by_part:
        drawn = _of_parts(user, item, log.time, split, options, taken)
    else:
        drawn = draw_negatives(user, item, log.time, split, **options.drawing(), taken=taken)
    number = 1 + (drawn >= 0).sum(axis=1)
    rows = np.repeat(np.arange(len(item)), number)
    is_click = np.zeros(len(rows), bool)
    is_click[np.cumsum(number) - number] = True
    items = item[rows]
    items[~is_click] = drawn[drawn >= 0]
    fewer = int((number <= options.negatives).sum())
    notes = [f"{fewer} clicks have fewer negatives: too few items had been clicked up to then that their users had not"]
    log = log._replace(split=split).take(rows)._replace(label=is_click)
    return Ready(log, items, user[rows], ~is_click, {}, notes if fewer else [])


def _of_parts(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, split: np.ndarray, options: Clicks, taken: Taken
) -> np.ndarray:
    """[n, count] i64: negatives of each click, -1 where there are fewer, as if the rows of each part were all there are.

    Where items are new to a part, the others that it shows are new, too; against known ones they would stand out.

    Args:
      user, item, time, split: [n] of clicks.
      taken: what their users have besides.
    """
    drawn = np.full((len(user), options.negatives), -1, np.int64)
    for code in np.unique(split):
        rows = np.flatnonzero(split == code)
        place = np.full(len(user), -1)
        place[rows] = np.arange(len(rows))
        shown = place[taken.row] >= 0
        own = taken._replace(row=place[taken.row[shown]], shown=taken.shown[shown], split=0 * taken.split)
        given = (user[rows], item[rows], time[rows], np.zeros(len(rows), np.uint8))
        drawn[rows] = draw_negatives(*given, **options.drawing(), taken=own)
    return drawn
