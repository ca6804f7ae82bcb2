"""The rows of a log in the order of time, with what a row has of those before it: its split and its history.

Letters: n rows, m rows of a batch, U users, I items, k events.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.ahead import ahead
from em3_jax.core.progress import Progress
from em3_jax.data.histories import Running
from em3_jax.data.placed_events import PlacedEvents
from em3_jax.data.readers.log_engine import PLACE, LogEngine, name_of
from em3_jax.data.readers.log_splits import Parts
from em3_jax.data.readers.log_values import Clock
from em3_jax.data.writer import DatasetWriter

Batch = dict[str, np.ndarray]
"""Column -> [m] of some rows."""


class Column(NamedTuple):
    """A column of the result.

    Attributes:
      name: of the file that it becomes, such as "label_buy".
      value: of a row, in SQL.
      dtype: of the file.
    """

    name: str
    value: str
    dtype: Any


class Shown(NamedTuple):
    """What the stream has shown of the training rows, and of the order of all.

    Attributes:
      rows: "item" and "user", where they are counted -> [I], [U] i64 how many training rows each has.
      was_unsorted: the rows stood in another order than that of time.
    """

    rows: dict[str, np.ndarray]
    was_unsorted: bool


def written(
    writer: DatasetWriter, stream: Iterator[Batch], columns: list[Column], start: np.ndarray, rows: int,
    counted: dict[str, int], parts: Parts, events: str, folder: str,
) -> Shown:  # fmt: skip
    """Writes the rows, which come in the order of time.

    Args:
      columns: of the result; those called field_... are of events, and those called number_... are kept in `folder`.
      start: [U + 1] the first event of each user; the last is their number.
      rows: how many there are.
      counted: "item" and "user", if training rows of each are to be counted -> how many of them there are.
      events: which rows enter histories: "clicks", "all" or "none".
      folder: of the writer's, for what is read again.
    """
    of_events = {column.name: column.dtype for column in columns if column.name.startswith("field_")}
    stored = PlacedEvents(writer, {"item": np.int32, "time": np.int64} | of_events, int(start[-1]), folder)
    dtypes = {column.name: column.dtype for column in columns if column.name not in of_events}
    dtypes |= {"time": np.int64, "split": np.uint8, "history_start": np.int64, "history_end": np.int64}
    files = {
        name: writer.appender(f"{folder if name.startswith('number_') else 'interactions'}/{name}", dtype)
        for name, dtype in dtypes.items()
    }
    progress, before, was_unsorted = Progress(rows, unit="row", doing="writing"), -1, False
    trained = {kind: np.zeros(size, np.int64) for kind, size in counted.items()}
    for batch in ahead(_with_histories(stream, start, parts, events)):
        is_event = batch["is_event"]
        stored.put(batch["place_of_event"], {name: batch[name][is_event] for name in stored.dtypes})
        for name, file in files.items():
            file.append(batch[name])
        for kind, count in trained.items():
            of_training = batch[kind][batch["split"] == 0]
            np.add.at(count, of_training, np.ones(len(of_training), np.int64))
        was_unsorted = was_unsorted or bool((np.diff(batch["place"], prepend=before) < 0).any())
        before = batch["place"][-1]
        progress.advance(len(is_event))
    for file in files.values():
        file.close()
    stored.finish()
    progress.close()
    return Shown(trained, was_unsorted)


def _with_histories(stream: Iterator[Batch], start: np.ndarray, parts: Parts, events: str) -> Iterator[Batch]:
    """The batches with split and history of each row; which rows are events, and the places of these."""
    running, done = Running(start[:-1]), 0
    for batch in stream:
        rows = len(batch["user"])
        batch["split"] = parts.of_rows(batch, done)
        batch["is_event"] = batch["label"] != 0 if events == "clicks" else np.full(rows, events == "all")
        if parts.of_training:
            batch["is_event"] &= batch["split"] == 0
        found = running(batch["user"], batch["time"], batch["is_event"])
        batch["history_start"], batch["history_end"], batch["place_of_event"] = found
        done += rows
        yield batch


def in_order(engine: LogEngine, columns: list[Column], joins: str, clock: Clock, rows: int) -> Iterator[Batch]:
    """The rows in the order of time, those of one moment as they stand: columns, "time" and "place".

    The order is asked for of sorted logs, too: threads of DuckDB 2.0 join groups of rows in any order.

    Args:
      rows: how many there have to be.
    """
    shown = ", ".join(f"{column.value} AS {name_of(column.name)}" for column in columns)
    key, bits = clock.keyed(engine.source.rows)
    if bits:
        query = f"SELECT {shown}, {key} AS moment FROM log {joins} ORDER BY moment"
    else:
        query = f"SELECT {shown}, {clock.value} AS time, log.{name_of(PLACE)} AS place FROM log {joins}"
        query += " ORDER BY time, place"
    found, before = 0, np.iinfo(np.int64).min
    for batch in engine.stream(query):
        if bits:
            moment = batch.pop("moment")
            batch["time"], batch["place"] = (moment >> bits) + clock.least, moment & ((1 << bits) - 1)
        time = batch["time"]
        if not len(time):
            continue
        if time[0] < before or (time[1:] < time[:-1]).any():
            raise AssertionError("rows came in another order than that of time")
        before, found = time[-1], found + len(time)
        yield batch
    if found != rows:
        raise AssertionError(f"{found} rows came, not {rows}")
