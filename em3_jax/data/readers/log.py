"""A log of interactions, held in memory, as the dataset's interactions, events and histories."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from em3_jax.core.numbers import value_column
from em3_jax.data.histories import cyclic_histories, histories
from em3_jax.data.writer import DatasetWriter

Written = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]
"""Histories to be written: how many events each row has, their items, field name -> ids."""


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
    amounts: dict[str, np.ndarray] | None = None,
    numbers: Mapping[str, Mapping[str, np.ndarray]] = MappingProxyType({}),
    weight: np.ndarray | None = None,
    group: np.ndarray | None = None,
    outside: dict[str, np.ndarray] | None = None,
    given: Written | None = None,
    cycles: bool = False,
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
      amounts: name -> [n] f32, further labels that are amounts.
      numbers: "context" and "event" -> name -> [n] f32, NaN = missing.
      weight: [n] f32, of each row in the training loss.
      group: [n] i32, the session, query or impression of each row.
      outside: columns user, item, time, split and field_<name> [m] of events that are no rows, and are history like the
        others.
      given: (how many events each row has as its history [n], their items, field name -> ids), instead of all others.
      cycles: a row's history is all of its user's events but itself, whatever their times.

    Returns:
      Whether the rows had to be sorted.
    """
    columns = {"user": user, "item": item, "label": label, "time": time}
    columns |= {f"context_{name}": ids for name, ids in (context or {}).items()}
    columns |= {f"label_{name}": values for name, values in (labels or {}).items()}
    columns |= {f"amount_{name}": values for name, values in (amounts or {}).items()}
    columns |= {value_column(name): values for name, values in numbers.get("context", {}).items()}
    columns |= {} if group is None else {"group": group}
    columns |= {} if weight is None else {"weight": weight}
    if not isinstance(split, tuple):
        columns["split"] = split
    unsorted = bool((time[1:] < time[:-1]).any())
    order = np.arange(len(time))
    of_events = {f"field_{name}": ids for name, ids in (event or {}).items()}
    of_events |= {value_column(name): values for name, values in numbers.get("event", {}).items()}
    if unsorted:
        order = np.argsort(time, kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
        is_event = is_event if is_event is None else is_event[order]
        of_events = {name: values[order] for name, values in of_events.items()}
    if isinstance(split, tuple):
        columns["split"] = chronological_split(len(time), split)
    if given is not None:
        events = _given_events(columns, order, *given)
    else:
        rows = np.arange(len(time)) if is_event is None else np.flatnonzero(is_event)
        events = {name: columns[name][rows] for name in ("user", "item", "time", "split")}
        events |= {name: values[rows] for name, values in of_events.items()}
        events = _cyclic_events(columns, events, rows) if cycles else _ranged_events(columns, events, outside)
    writer.columns("interactions", columns)
    writer.columns("events", events)
    return unsorted


def _ranged_events(
    columns: dict[str, np.ndarray], events: dict[str, np.ndarray], outside: dict[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """The events as they are stored; adds the rows' ranges of them to `columns`."""
    if outside is not None:  # before the rows' own of the same moment
        events = {name: np.concatenate([outside[name], own]) for name, own in events.items()}
    keys = ("user", "time", "split")
    found = histories(*(events[name] for name in keys), *(columns[name] for name in keys))
    columns |= {"history_start": found.start, "history_end": found.end}
    stored = {name: column[found.order] for name, column in events.items() if name not in ("user", "split")}
    return stored if found.original is None else stored | {"original": found.original}


def _cyclic_events(
    columns: dict[str, np.ndarray], events: dict[str, np.ndarray], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """The events as they are stored, in the order of the rows; adds the rows' ranges of them to `columns`.

    Args:
      columns: of all rows.
      events: columns of the rows `rows` [m] alone.
    """
    user = columns["user"]
    found = cyclic_histories(rows, user, int(user.max(initial=0)) + 1)
    columns |= {"history_start": found.start, "history_end": found.end}
    place = np.searchsorted(rows, found.row)
    stored = {name: column[place] for name, column in events.items() if name not in ("user", "split", "time")}
    before = min(-1, int(columns["time"].min(initial=0)) - 1)  # a cycle has no times: before all rows
    return stored | {"time": np.full(len(place), before), "original": found.original}


def _given_events(
    columns: dict[str, np.ndarray],
    order: np.ndarray,
    length: np.ndarray,
    item: np.ndarray,
    fields: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The events of histories that come with the rows, equal ones once; adds the rows' ranges of them to `columns`.

    Args:
      columns: in the order of time.
      order: [n] the numbers that these rows had before.
      length, item, fields: in the order of these numbers.
    """
    end = np.cumsum(length)
    # A sum modulo 2^64 with random factors tells histories apart; places count from the end.
    factors = np.random.default_rng(0).integers(1, 1 << 63, (1 + len(fields), int(length.max(initial=0)) + 1))
    row = np.repeat(np.arange(len(length)), length)
    place = end[row] - np.arange(len(item))
    total = length.astype(np.uint64)
    for factor, values in zip(factors.astype(np.uint64), [item, *fields.values()], strict=True):
        np.add.at(total, row, (values.astype(np.uint64) + np.uint64(1)) * factor[place])
    _, first, again = np.unique(total, return_index=True, return_inverse=True)
    kept = np.zeros(len(length), bool)
    kept[first] = True
    stored_end = np.cumsum(np.where(kept, length, 0))[first][again]
    columns |= {"history_start": (stored_end - length)[order], "history_end": stored_end[order]}
    stored = kept[row]
    before = min(-1, int(columns["time"].min()) - 1)  # when they were is not said: before all rows
    events = {"item": item[stored], "time": np.full(int(stored.sum()), before)}
    return events | {f"field_{name}": ids[stored] for name, ids in fields.items()}
