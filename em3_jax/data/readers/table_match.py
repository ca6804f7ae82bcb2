"""Which user and which item each row of a table's interactions and histories names."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.readers.encode import rows_of
from em3_jax.data.readers.files import place
from em3_jax.data.readers.log import Written
from em3_jax.data.readers.negatives import NOTHING, Taken
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_history import Events, Given
from em3_jax.data.readers.table_log import Log
from em3_jax.data.readers.table_part import Part


class Ends(NamedTuple):
    """What ids may name: the files of items and users (None: what the interactions name), read, and whether rows that name
    others are dropped.
    """

    items: Source | None
    item_part: Part
    users: Source | None
    user_part: Part
    drop_unknown: bool

    def rows(self, path: Source, kind: str, column: pa.ChunkedArray, what: str) -> tuple[np.ndarray, int]:
        """([n] i32 rows of the items or users that a column [n] names, -1 for one that is in no file; how many of those).

        Raises:
          UserError: there are such, and they are not to be dropped.
        """
        source, part = (self.items, self.item_part) if kind == "item" else (self.users, self.user_part)
        rows = rows_of(column, part.table.column("id"))
        absent = np.flatnonzero(rows < 0)
        if len(absent) and not self.drop_unknown:
            value = column[int(absent[0])].as_py()
            where = f"{path}: a history names" if what == "events" else f"{place(path, absent[0])}:"
            is_not = ", which is not in" if what == "events" else " is not in"
            raise UserError(
                f"{where} {kind} '{value}'{is_not} {source} ({len(absent)} such {what}); add it there, or drop such "
                f"{what} with --drop-unknown"
            )
        return rows, len(absent)

    def name(self, kind: str) -> str:
        """Of the file of that kind."""
        source = self.items if kind == "item" else self.users
        assert source is not None  # without a file every id that is named is there
        return source.name


def match(path: Source, log: Log, ends: Ends) -> tuple[Log, np.ndarray, np.ndarray, dict[str, int]]:
    """(log, item rows [n], user rows [n], reason -> rows dropped): rows whose item or user its file does not have are
    refused, or dropped and counted under the first reason.
    """
    rows, known, dropped = {}, np.ones(len(log.time), bool), {}
    for kind, column in (("item", log.item), ("user", log.user)):
        rows[kind], absent = ends.rows(path, kind, column, "rows")
        if absent:
            gone = rows[kind] < 0
            dropped[f"their {kind} is not in {ends.name(kind)}"] = int(known[gone].sum())
            known[gone] = False
    if not known.any():
        files = " or ".join(ends.name(kind) for kind in ("item", "user") if (rows[kind] < 0).any())
        raise UserError(f"{path}: no row is left, the ids of none are all in {files}; are these the files of one log?")
    if not known.all():
        log, rows = log.take(np.flatnonzero(known)), {kind: values[known] for kind, values in rows.items()}
    return log, rows["item"], rows["user"], dropped


def match_history(path: Source, log: Log, item: np.ndarray, user: np.ndarray, ends: Ends) -> tuple[Log, list[str]]:
    """(log, notes): without the events of given histories that name unknown items.

    Args:
      item, user: [n] rows of the interactions.

    Raises:
      UserError: an item is unknown and may not be dropped; splits interleave in time, and a history shows a click of a
        later one.
    """
    if log.history is None:
        return log, []
    rows, absent = ends.rows(path, "item", log.history.item, "events")
    kept, notes = rows >= 0, []
    if absent:
        notes.append(f"{absent} events of histories dropped: their item is not in {ends.name('item')}")
    if not isinstance(log.split, tuple):
        told = np.flatnonzero(told_by_later_splits(user, item, log, rows))
        if len(told):
            row = int(np.searchsorted(np.cumsum(log.history.length), told[0], side="right"))
            raise UserError(
                f"{path}: a history of user '{log.user[row]}' shows item '{log.history.item[int(told[0])]}', a click of a "
                f"later split ({len(told)} such events): training would read what it is measured on; split by time, or "
                "leave the histories out, then they are made of the interactions, without later splits"
            )
    return (log if kept.all() else log._replace(history=log.history.keep(kept))), notes


def told_by_later_splits(user: np.ndarray, item: np.ndarray, log: Log, rows: np.ndarray) -> np.ndarray:
    """[events] bool: events of given histories that are an earlier click of their user in a later split.

    Args:
      user, item: [n] rows of the interactions.
      rows: [events] rows of the items of the histories, -1 where there is none.
    """
    assert log.history is not None and not isinstance(log.split, tuple)  # asked of such logs alone
    items = int(max(item.max(initial=0), rows.max(initial=0))) + 1
    row = np.repeat(np.arange(len(user)), log.history.length)
    key = user[row].astype(np.int64) * items + rows
    result = np.zeros(len(key), bool)
    for code in range(int(log.split.max(initial=0))):
        later = np.flatnonzero(log.label & (log.split > code))
        later = later[np.argsort(log.time[later], kind="stable")]
        known, first = np.unique(user[later].astype(np.int64) * items + item[later], return_index=True)
        if not len(known):
            continue
        found = np.minimum(np.searchsorted(known, key), len(known) - 1)
        earlier = (known[found] == key) & (log.time[later[first[found]]] < log.time[row])
        result |= earlier & (log.split[row] == code) & (rows >= 0)
    return result


def match_events(
    path: Source | None, outside: Events | None, log: Log, item: np.ndarray, user: np.ndarray, ends: Ends
) -> tuple[dict[str, np.ndarray] | None, list[str]]:
    """(columns for `write_log`, notes): the table of events, each of the split of the interaction that it is, if it is one.

    Args:
      item, user: [n] rows of the interactions.
    """
    if path is None or outside is None:  # one comes with the other
        return None, []
    notes, rows, known = [], {}, np.ones(len(outside.time), bool)
    for kind, column in (("item", outside.item), ("user", outside.user)):
        rows[kind], absent = ends.rows(path, kind, column, "rows")
        known &= rows[kind] >= 0
        if absent:
            notes.append(f"{absent} rows of {path.name} dropped: their {kind} is not in {ends.name(kind)}")
    kept = np.flatnonzero(known)
    outside = outside.take(kept)
    columns = {"user": rows["user"][kept], "item": rows["item"][kept], "time": outside.time}
    columns["split"] = _split_of_events(columns, log, item, user)
    return columns | {f"field_{name}": ids for name, (ids, _) in outside.event.items()}, notes


def _split_of_events(columns: dict[str, np.ndarray], log: Log, item: np.ndarray, user: np.ndarray) -> np.ndarray:
    """[m] u8: an event that is also an interaction (user, item, time) is of its split; all others may be read by every row.

    Of several the first event is the interaction of the earliest split. With a split by time a history ends before it can
    matter.
    """
    count = len(columns["time"])
    result = np.zeros(count, np.uint8)
    if isinstance(log.split, tuple):
        return result
    own = np.stack([user, item, log.time])
    both = np.concatenate([np.stack([columns[name] for name in ("user", "item", "time")]), own], axis=1)
    number = np.unique(both, axis=1, return_inverse=True)[1].ravel()  # equal where user, item and time are
    events, rows = number[:count], number[count:]
    order = np.lexsort((log.split, rows))
    first, end = (np.searchsorted(rows[order], events, side=side) for side in ("left", "right"))
    by_number = np.argsort(events, kind="stable")
    rank = np.empty(count, np.int64)  # among the events that are equal
    rank[by_number] = np.arange(count) - np.searchsorted(events[by_number], events[by_number])
    there = end > first
    result[there] = log.split[order][np.minimum(first + rank, end - 1)[there]]
    return result


def taken(given: Given | None, outside: dict[str, np.ndarray] | None, item_part: Part) -> Taken:
    """What users have of a table of events and of histories that come with the rows, besides the rows."""
    result = NOTHING
    if outside is not None:
        result = result._replace(**{name: outside[name] for name in ("user", "item", "time", "split")})
    if given is not None:
        row = np.repeat(np.arange(len(given.length)), given.length)
        result = result._replace(row=row, shown=rows_of(given.item, item_part.table.column("id")))
    return result


def as_written(given: Given | None, item_part: Part) -> Written | None:
    """What `write_log` takes of histories that come with the rows."""
    if given is None:
        return None
    fields = {name: ids for name, (ids, _) in given.event.items()}
    return given.length, rows_of(given.item, item_part.table.column("id")), fields
