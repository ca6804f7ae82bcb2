"""Histories that somebody's tables hold: beside each interaction, or as a table of events that are no interactions."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.data import canonical
from em3_jax.data.readers.encode import Encoded, encode, field_names
from em3_jax.data.readers.files import read_table, read_verbatim, require_numbers, require_values
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_part import column_of
from em3_jax.data.readers.table_times import Times, read_times

ORDERS = ("newest_last", "newest_first")


class Given(NamedTuple):
    """Histories that come with the interactions, one after the other, oldest event first.

    Attributes:
      length: [n] i64 events of each interaction.
      item: [events] ids as texts.
      event: field name -> ids [events] and values.
    """

    length: np.ndarray
    item: pa.ChunkedArray
    event: dict[str, Encoded]

    def take(self, rows: np.ndarray) -> "Given":
        """The histories of interactions `rows` [m]."""
        first = np.cumsum(self.length) - self.length
        length = self.length[rows]
        inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        return self._replace(length=length).events(np.repeat(first[rows], length) + inside)

    def events(self, places: np.ndarray) -> "Given":
        """With the events at `places` [m], of which `length` has to speak."""
        event = {name: (ids[places], values) for name, (ids, values) in self.event.items()}
        return self._replace(item=self.item.take(pa.array(places)), event=event)

    def keep(self, kept: np.ndarray) -> "Given":
        """Without the events where `kept` [events] is False."""
        row = np.repeat(np.arange(len(self.length)), self.length)[kept]
        length = np.bincount(row, minlength=len(self.length))
        return self._replace(length=length).events(np.flatnonzero(kept))


class Events(NamedTuple):
    """Events that are history only.

    Attributes:
      user, item: [m] ids as texts.
      time: [m] i64.
      event: field name -> ids [m] and values.
    """

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    time: np.ndarray
    event: dict[str, Encoded]

    def take(self, rows: np.ndarray) -> "Events":
        user, item = (column.take(pa.array(rows)) for column in (self.user, self.item))
        event = {name: (ids[rows], values) for name, (ids, values) in self.event.items()}
        return Events(user, item, self.time[rows], event)


def read_given(source: Source, column: str, fields: dict[str, str], separator: str, order: str) -> Given:
    """The histories in a column of the interactions.

    Args:
      column: of lists of item ids, or texts with `separator` between them.
      fields: name of an event field -> the column that says it of each event of a history.
      order: one of `ORDERS`.
    """
    if order not in ORDERS:
        raise UserError(f"--history-order '{order}': choose {' or '.join(ORDERS)}")
    read = read_verbatim(source, [column, *fields.values()], {column, *fields.values()})
    option = "--history-separator"
    flat, length = _flattened(source, column, column_of(source, read, column, True, separator, option))
    places = np.arange(len(flat))
    if order == "newest_first":
        first = np.cumsum(length) - length
        places = np.repeat(2 * first + length - 1, length) - places
    item = canonical.texts(flat)
    for row in np.flatnonzero(item.is_null().to_numpy()):
        where = int(np.searchsorted(np.cumsum(length), row, side="right"))
        raise UserError(f"{source.place(where)}: the history '{column}' holds an item without an id; mend it")
    names, _ = field_names(list(fields))
    event = {}
    for name, other in fields.items():
        values, of_each = _flattened(source, other, column_of(source, read, other, True, separator, option))
        for row in np.flatnonzero(of_each != length):
            raise UserError(
                f"{source.place(row)}: '{other}' has {of_each[row]} values and the history '{column}' "
                f"{length[row]} items; give one for each"
            )
        event[names[name]] = encode(values)
    return Given(length, item, event).events(places)


def _flattened(source: Source, name: str, column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(all values, how many each row has)."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    length = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    return pc.list_flatten(column), length.astype(np.int64)


def read_events(source: Source, roles: dict[str, str], fields: tuple[str, ...], times: Times, time_unit: str) -> Events:
    """The events of a table.

    Args:
      roles: role -> column, for user, item and time.
      fields: columns that are event fields.
      times: how they are written.
      time_unit: that the interactions have.
    """
    needed = [roles["user"], roles["item"], roles["time"]]
    texts = {roles["user"], roles["item"], *fields} - {roles["time"]}
    read = read_table(source, [*needed, *fields], texts)
    if not read.num_rows:
        raise UserError(f"{source}: there are no rows; give the file with the events, or leave --events-table out")
    require_values(source, read.select(needed))
    for name in needed[:2]:
        require_numbers(source, name, read.column(name))
    time, unit = read_times(source, roles["time"], read.column(roles["time"]), times)
    if unit != time_unit:
        raise UserError(f"{source}: times are in {unit}, those of the interactions in {time_unit}; write both alike")
    names, _ = field_names(list(fields))
    event = {names[name]: encode(read.column(name)) for name in fields}
    return Events(read.column(roles["user"]), read.column(roles["item"]), time, event)


def merged(one: Encoded, other: Encoded) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(ids of one, ids of the other, values): two columns in one vocabulary."""
    values = one[1] + sorted(set(other[1]) - set(one[1]))
    place = {value: k + 2 for k, value in enumerate(values)}
    rank = np.array([0, 1, *(place[value] for value in other[1])], np.int32)
    return one[0], rank[other[0]], values
