"""The table reader for logs longer than memory: the same dataset, its bytes too, by `log_engine` and a pass in time order.

What it takes: Parquet files, split by shares in time order, with histories of the log's own rows. Ids, fields,
labels, amounts, weights and groups are as in memory; columns of numbers, drawn negatives, histories that come
with rows and other splits are read in memory. Where a value is wrong, a log of up to `MOST_IN_MEMORY` rows is
read in memory, too, which says it best. Letters: n rows, U users, k events.
"""

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.ahead import ahead
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.progress import Progress
from em3_jax.data.format import NOT_PART
from em3_jax.data.histories import Running
from em3_jax.data.placed_events import PlacedEvents
from em3_jax.data.readers.encode import entity_table, field_names, many_numbers
from em3_jax.data.readers.files import column_names, place, require_columns, require_numbers
from em3_jax.data.readers.log_engine import PLACE, LogEngine, UnsuitedError, Words, name_of
from em3_jax.data.readers.log_values import Clock, Judged, check_types, check_values, holds, number, there
from em3_jax.data.readers.log_values import clock as clock_of
from em3_jax.data.readers.splits import Whole
from em3_jax.data.readers.table_dataset import Told
from em3_jax.data.readers.table_log import check_names, label_rule
from em3_jax.data.readers.table_match import Ends
from em3_jax.data.readers.table_part import Part, read_part
from em3_jax.data.readers.table_reading import Asked
from em3_jax.data.readers.table_times import NO_TIMES
from em3_jax.data.writer import DatasetWriter

LEAST_ROWS = 1_000_000
"""Of shorter logs the way in memory is as fast."""
MOST_IN_MEMORY = 20_000_000
_FOLDER = "engine"


class Streamed(NamedTuple):
    """What was written.

    Attributes:
      told, ends: as `table_dataset.finish` takes them.
      was_unsorted: the rows were not in the order of time.
    """

    told: Told
    ends: Ends
    was_unsorted: bool


def is_suited(asked: Asked) -> bool:
    """Whether the options are among those that can be read this way."""
    files, how = asked.files, asked.how
    in_time = not isinstance(how.rule, str | Whole) and how.times.unit != NO_TIMES and not how.times.format
    alone = files.events is None and "history" not in how.roles and not how.in_order and not how.clicks.alone
    of_parts = any(part[5] for part in asked.parts)
    numbers = bool(of_parts or how.more.context_numbers or how.more.event_numbers)
    return in_time and alone and not numbers and all(hasattr(part, "file") for part in files.interactions.parts)


class _Column(NamedTuple):
    """A column of the result.

    Attributes:
      name: of the file that it becomes, such as "label_buy".
      value: of a row, in SQL.
      dtype: of the file.
    """

    name: str
    value: str
    dtype: Any


def streamed(writer: DatasetWriter, asked: Asked) -> Streamed:
    """Writes the interactions and events of a log.

    Raises:
      UnsuitedError: the types of its columns, or a value, are none that it can be read so with.
    """
    reader = _Reader(asked)
    folder = writer.path / _FOLDER
    try:
        with LogEngine(asked.files.interactions, reader.columns, folder) as engine:
            return reader.write(writer, engine)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Reader:
    """The options of a log, and how it is written.

    Attributes:
      columns: of the files, that are read.
    """

    def __init__(self, asked: Asked):
        self._files, self._how, self._events, self._parts, self._drop_unknown = asked
        self._source, how = asked.files.interactions, asked.how
        roles, more = how.roles, how.more
        check_names(more.labels, more.amounts)
        label = label_rule(how.label) if how.label else (roles["label"], None, 1.0)
        rules = more.rules
        self._judged = Judged(label, rules, dict(more.amounts), roles.get("weight", ""), roles.get("group", ""))
        numbers = [label[0], *(rule[0] for rule in rules.values()), *more.amounts.values(), self._judged.weight]
        self._ids = {roles["user"], roles["item"], *how.context_fields, *how.event_fields, self._judged.group} - {""}
        named = [one for one in (roles["user"], roles["item"], roles["time"], *numbers, *sorted(self._ids)) if one]
        have = column_names(self._source)
        if self._ids & {roles["time"], *numbers} or any(name not in have for name in named):
            raise UnsuitedError  # which the other way has words for
        require_columns(self._source, named, have)
        self.columns = list(dict.fromkeys(named))

    def write(self, writer: DatasetWriter, engine: LogEngine) -> Streamed:
        """What `streamed` does."""
        how, roles = self._how, self._how.roles
        check_types(engine, roles["time"], self._ids, self._judged)
        with ThreadPoolExecutor() as threads:
            looked = threads.submit(clock_of, self._source, roles["time"], how.times)  # beside what DuckDB does
            check_values(engine, self._judged)
            is_event = {"clicks": self._is_click, "all": "true", "none": "false"}[self._events]
            words = {kind: engine.words(roles[kind], is_event) for kind in ("item", "user")}
            clock = looked.result()
        ends, numbers = self._ends(words)
        for kind, of_kind in words.items():
            engine.keep(kind, of_kind, numbers[kind])
        dropped = self._dropped(engine, ends, words, numbers)
        context, event, notes = self._fields(engine)
        kept = self._source.rows - sum(dropped.values())
        if not kept:
            raise UnsuitedError(f"{self._source}: no row is left, the ids of none are in the files of items and users")
        start = self._start(
            engine, words["user"], numbers["user"], ends.user_part.table.num_rows, is_event, bool(dropped)
        )
        del words, numbers  # as long as there are users
        columns = [*self._plain(engine), *context.columns, *event.columns]
        group = self._judged.group
        of_group = [f'JOIN "group of" ON log.{name_of(group)} = "group of".key'] if group else []
        joins = " ".join([self._joined(), *of_group, *context.joins, *event.joins])
        stream = ahead(_in_order(engine, columns, joins, clock, kept))
        was_unsorted = self._write(writer, stream, columns, start, kept)
        words_of = {"context": context.words, "event": event.words}
        rule = how.clicks.rule(how.label or f"column {roles['label']}", False)
        return Streamed(Told(kept, dropped, rule, clock.unit, notes, **words_of), ends, was_unsorted)

    def _joined(self, condition: str = "{}.number >= 0") -> str:
        """Joins of the log with the items and users that rows name.

        Args:
          condition: that their numbers have to meet.
        """
        joins = []
        for kind in ("item", "user"):
            of, column = name_of(kind), name_of(self._how.roles[kind])
            joins.append(f"JOIN {of} ON log.{column} = {of}.key AND {condition.format(of)}")
        return " ".join(joins)

    @property
    def _is_click(self) -> str:
        return holds(*self._judged.label)

    def _ends(self, words: Mapping[str, Words]) -> tuple[Ends, dict[str, np.ndarray]]:
        """(what ids may name; kind -> [m] i32 number of each of the words, -1 = it is in no file)."""
        made, numbers = {}, {}
        options, roles = dict(zip(("item", "user"), self._parts, strict=True)), self._how.roles
        for kind, source in (("item", self._files.items), ("user", self._files.users)):
            of = words[kind]
            if of.form.null_count:
                row = int(of.first[int(np.argmax(of.form.is_null().to_numpy(zero_copy_only=False)))])
                raise UnsuitedError(
                    f"{place(self._source, row)}: column '{roles[kind]}' is empty; fill it in or drop the row"
                )
            try:
                require_numbers(self._source, roles[kind], of.form)
            except UserError as error:
                raise UnsuitedError(f"{self._source}: {str(error).partition(': ')[2]}") from None
            if source is None:
                texts, numbers[kind] = of.numbered("first")
                made[kind] = Part(*entity_table(kind, texts, {}), [], [])
            else:
                made[kind] = read_part(kind, source, roles[f"{kind}_key"], *options[kind])
                ids = made[kind].table.column("id").combine_chunks()
                found = pa.compute.index_in(of.form, value_set=ids).fill_null(-1)
                numbers[kind] = found.to_numpy(zero_copy_only=False).astype(np.int32)
                absent = np.flatnonzero(numbers[kind] < 0)
                if len(absent) and not self._drop_unknown:
                    where, value = place(self._source, int(of.first[absent[0]])), of.form[int(absent[0])].as_py()
                    raise UserError(
                        f"{where}: {kind} '{value}' is not in {source} ({int(of.rows[absent].sum())} such rows); add it there, "
                        "or drop such rows with --drop-unknown"
                    )
        return Ends(self._files.items, made["item"], self._files.users, made["user"], self._drop_unknown), numbers

    def _dropped(
        self, engine: LogEngine, ends: Ends, words: Mapping[str, Words], numbers: Mapping[str, np.ndarray]
    ) -> dict[str, int]:
        """Reason -> rows; a row whose item and user are both unknown counts under the item."""
        result = {}
        if absent := int(words["item"].rows[numbers["item"] < 0].sum()):
            result[f"their item is not in {ends.name('item')}"] = absent
        if (numbers["user"] < 0).any():
            (absent,) = engine.one(
                f'SELECT count(*) FROM log {self._joined("true")} WHERE "item".number >= 0 AND "user".number < 0'
            )
            result[f"their user is not in {ends.name('user')}"] = absent
        return result

    def _start(
        self, engine: LogEngine, words: Words, numbers: np.ndarray, users: int, is_event: str, some_dropped: bool
    ) -> np.ndarray:
        """[U + 1] i64: the first event of each user; the last is their number."""
        count = np.zeros(users, np.int64)
        if some_dropped:
            query = f'SELECT "user".number AS user, count(*) AS events FROM log {self._joined()} WHERE {is_event} GROUP BY 1'
            for batch in engine.stream(query):
                count[batch["user"]] = batch["events"]
        else:
            np.add.at(count, numbers, words.events)
        return np.concatenate([[0], np.cumsum(count)])

    def _plain(self, engine: LogEngine) -> list[_Column]:
        """The columns but for the time and fields."""
        roles = self._how.roles
        columns = [
            _Column("user", '"user".number', np.int32),
            _Column("item", '"item".number', np.int32),
            _Column("label", f"CAST({self._is_click} AS UTINYINT)", np.uint8),
        ]
        for name, (column, compare, threshold) in self._judged.others.items():
            value = f"CASE WHEN {there(column)} THEN CAST({holds(column, compare, threshold)} AS UTINYINT) ELSE {NOT_PART} END"
            columns.append(_Column(f"label_{name}", f"CAST({value} AS UTINYINT)", np.uint8))
        for name, column in self._how.more.amounts.items():
            value = f"CASE WHEN {there(column)} THEN CAST({number(column)} AS FLOAT) ELSE CAST('NaN' AS FLOAT) END"
            columns.append(_Column(f"amount_{name}", value, np.float32))
        if "weight" in roles:
            columns.append(_Column("weight", f"CAST({number(roles['weight'])} AS FLOAT)", np.float32))
        if "group" in roles:
            words = engine.words(roles["group"])
            if words.form.null_count:
                raise UnsuitedError(f"{self._source}: column '{roles['group']}' is empty in some rows; fill it in")
            engine.keep("group of", words, words.numbered("first")[1])
            columns.append(_Column("group", '"group of".number', np.int32))
        return columns

    def _fields(self, engine: LogEngine) -> tuple["_Fields", "_Fields", list[str]]:
        """(context fields, event fields, notes)."""
        notes, made = [], []
        for group, columns in (("context", self._how.context_fields), ("event", self._how.event_fields)):
            columns = tuple(dict.fromkeys(columns))
            names, renamed = field_names(list(columns))
            fields = _Fields([], [], {})
            for column in columns:
                words = engine.words(column)
                texts, number = words.numbered("sorted")
                ids = np.where(number < 0, UNKNOWN, number + FIRST_KNOWN).astype(np.int32)
                name, relation = names[column], f"{group} {column}"
                engine.keep(relation, words, ids)
                fields.words[name] = texts.to_pylist()
                known = int(words.rows[number >= 0].sum())
                notes += many_numbers(f"{self._source.name}: column '{column}'", known, fields.words[name])
                fields.joins.append(f"LEFT JOIN {name_of(relation)} ON log.{name_of(column)} = {name_of(relation)}.key")
                prefix = "context_" if group == "context" else "field_"
                value = f"coalesce({name_of(relation)}.number, {UNKNOWN})"
                fields.columns.append(_Column(f"{prefix}{name}", value, np.int32))
            notes += renamed
            made.append(fields)
        return made[0], made[1], list(dict.fromkeys(notes))

    def _write(
        self,
        writer: DatasetWriter,
        stream: Iterator[dict[str, np.ndarray]],
        columns: list[_Column],
        start: np.ndarray,
        rows: int,
    ) -> bool:
        """Writes the rows, which come in the order of time; returns whether they stood in another."""
        assert not isinstance(self._how.rule, str | Whole)  # see `is_suited`
        borders = np.rint(np.cumsum(self._how.rule) * rows).astype(np.int64)
        of_events = {column.name: column.dtype for column in columns if column.name.startswith("field_")}
        stored = PlacedEvents(writer, {"item": np.int32, "time": np.int64} | of_events, int(start[-1]), _FOLDER)
        dtypes = {column.name: column.dtype for column in columns if column.name not in of_events}
        dtypes |= {"time": np.int64, "split": np.uint8, "history_start": np.int64, "history_end": np.int64}
        files = {name: writer.appender(f"interactions/{name}", dtype) for name, dtype in dtypes.items()}
        progress, before, was_unsorted = Progress(rows, unit="row"), -1, False
        for batch in ahead(_with_histories(stream, start, borders, self._events)):
            is_event = batch["is_event"]
            stored.put(batch["place_of_event"], {name: batch[name][is_event] for name in stored.dtypes})
            for name, file in files.items():
                file.append(batch[name])
            was_unsorted = was_unsorted or bool((np.diff(batch["place"], prepend=before) < 0).any())
            before = batch["place"][-1]
            progress.advance(len(is_event))
        for file in files.values():
            file.close()
        stored.finish()
        progress.close()
        return was_unsorted


class _Fields(NamedTuple):
    """Fields of the impressions or of events: columns of the result, joins that they need, field -> values."""

    columns: list[_Column]
    joins: list[str]
    words: dict[str, list]


def _with_histories(
    stream: Iterator[dict[str, np.ndarray]], start: np.ndarray, borders: np.ndarray, events: str
) -> Iterator[dict[str, np.ndarray]]:
    """The batches with split and history of each row; which rows are events, and the places of these.

    Args:
      start: [U + 1] the first event of each user.
      borders: [3] where the splits end.
      events: which rows are events.
    """
    running, done = Running(start[:-1]), 0
    for batch in stream:
        rows = len(batch["user"])
        batch["split"] = np.minimum(np.searchsorted(borders, done + np.arange(rows), side="right"), 2)
        batch["is_event"] = batch["label"] != 0 if events == "clicks" else np.full(rows, events == "all")
        found = running(batch["user"], batch["time"], batch["is_event"])
        batch["history_start"], batch["history_end"], batch["place_of_event"] = found
        done += rows
        yield batch


def _in_order(
    engine: LogEngine, columns: list[_Column], joins: str, clock: Clock, rows: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rows in the order of time, those of one moment as they stand: columns, "time" and "place".

    Args:
      rows: how many there have to be.
    """
    shown = ", ".join(f"{column.value} AS {name_of(column.name)}" for column in columns)
    key, bits = clock.keyed(engine.source.rows)
    if bits:
        query = f"SELECT {shown}, {key} AS moment FROM log {joins}" + ("" if clock.in_order else " ORDER BY moment")
    else:
        query = f"SELECT {shown}, {clock.value} AS time, log.{name_of(PLACE)} AS place FROM log {joins}"
        query += "" if clock.in_order else " ORDER BY time, place"
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
