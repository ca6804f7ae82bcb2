"""The table reader for logs longer than memory: the same dataset, its bytes too, by `log_engine` and a pass in time order.

What it takes: Parquet files and texts, with histories of the log's own rows. Ids, fields, times, labels, amounts, weights,
groups and numbers are as in memory; drawn negatives, histories that come with rows, and splits by a column that
interleave in time are read in memory. Where a value is wrong, a log of up to `MOST_IN_MEMORY` rows is
read in memory, too, which says it best. Letters: n rows, U users, k events.
"""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.ahead import ahead
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.progress import Progress
from em3_jax.data.format import NOT_PART
from em3_jax.data.readers.encode import entity_table, field_names, many_numbers
from em3_jax.data.readers.files import column_names, place, require_columns, require_numbers
from em3_jax.data.readers.log_duckdb import DuckDB
from em3_jax.data.readers.log_engine import LogEngine, UnsuitedError, Words, name_of
from em3_jax.data.readers.log_files import log_files
from em3_jax.data.readers.log_numbers import columns_of, cut, cut_part, fields_of
from em3_jax.data.readers.log_spark import Spark
from em3_jax.data.readers.log_splits import SPLIT, Parts, parts_of
from em3_jax.data.readers.log_stream import Column, Shown, in_order, written
from em3_jax.data.readers.log_values import (
    Clock,
    Judged,
    check_types,
    check_values,
    clock_of_texts,
    holds,
    is_text,
    number,
    there,
)
from em3_jax.data.readers.log_values import clock as clock_of
from em3_jax.data.readers.splits import Whole
from em3_jax.data.readers.table_dataset import Told
from em3_jax.data.readers.table_log import check_names, label_rule
from em3_jax.data.readers.table_match import Ends
from em3_jax.data.readers.table_numbers import Options, joined
from em3_jax.data.readers.table_part import Part, read_part
from em3_jax.data.readers.table_reading import Asked
from em3_jax.data.readers.table_times import NO_TIMES
from em3_jax.data.writer import DatasetWriter

LEAST_ROWS = 1_000_000
"""Of shorter logs the way in memory is as fast."""
MOST_IN_MEMORY = 20_000_000
FOLDER = "engine"


class Streamed(NamedTuple):
    """What was written.

    Attributes:
      told, ends: as `table_dataset.finish` takes them.
      was_unsorted: the rows were not in the order of time.
      ranges: what dataset.json keeps of numbers.
    """

    told: Told
    ends: Ends
    was_unsorted: bool
    ranges: dict[str, Any]


def is_suited(asked: Asked) -> bool:
    """Whether the options are among those that can be read this way."""
    files, how = asked.files, asked.how
    in_time = how.times.unit != NO_TIMES
    return in_time and files.events is None and "history" not in how.roles and not how.in_order and not how.clicks.alone


def streamed(writer: DatasetWriter, asked: Asked, cuts: Options, spark: str | None = None) -> Streamed:
    """Writes the interactions and events of a log.

    Args:
      cuts: how numbers are.
      spark: where Spark runs, see `log_spark`; None = DuckDB does it.

    Raises:
      UnsuitedError: the types of its columns, or a value, are none that it can be read so with.
    """
    reader, log = _Reader(asked, cuts), asked.files.interactions
    folder = writer.path / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    try:
        files = log_files(log, reader.columns, reader.ids, folder)
        given = (log, files, reader.columns, folder)
        with DuckDB(*given) if spark is None else Spark(*given, spark) as engine:
            return reader.write(writer, engine)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Reader:
    """The options of a log, and how it is written.

    Attributes:
      columns: of the files, that are read.
      ids: those of them that hold ids and categories.
    """

    def __init__(self, asked: Asked, cuts: Options):
        self._cuts = cuts
        self._files, self._how, self._events, self._parts, self._drop_unknown = asked
        self._source, how = asked.files.interactions, asked.how
        roles, more = how.roles, how.more
        check_names(more.labels, more.amounts)
        self._numbers = {"context": more.context_numbers, "event": more.event_numbers}
        label = label_rule(how.label) if how.label else (roles["label"], None, 1.0)
        rules = more.rules
        to_cut = tuple(dict.fromkeys((*more.context_numbers, *more.event_numbers)))
        self._judged = Judged(label, rules, dict(more.amounts), roles.get("weight", ""), roles.get("group", ""), to_cut)
        numbers = [
            label[0],
            *(rule[0] for rule in rules.values()),
            *more.amounts.values(),
            self._judged.weight,
            *to_cut,
        ]
        split = how.rule if isinstance(how.rule, str) else ""
        self.ids = {roles["user"], roles["item"], *how.context_fields, *how.event_fields, self._judged.group, split}
        self.ids -= {""}
        named = [one for one in (roles["user"], roles["item"], roles["time"], *numbers, *sorted(self.ids)) if one]
        have = column_names(self._source)
        if self.ids & {roles["time"], *numbers} or any(name not in have for name in named):
            raise UnsuitedError  # which the other way has words for
        require_columns(self._source, named, have)
        self.columns = list(dict.fromkeys(named))

    def write(self, writer: DatasetWriter, engine: LogEngine) -> Streamed:
        """What `streamed` does."""
        how, roles = self._how, self._how.roles
        check_types(engine, roles["time"], self.ids, self._judged)
        count = 2 + len(set(how.context_fields)) + len(set(how.event_fields))
        count += is_text(engine, roles["time"], how.times)
        read = self._source.rows * (count + bool(self._judged.group) + isinstance(how.rule, str))
        engine.progress = Progress(read, unit="row", doing="numbering ids and values")
        of_texts = is_text(engine, roles["time"], how.times)
        with ThreadPoolExecutor() as threads:
            looked = None if of_texts else threads.submit(clock_of, engine, roles["time"], how.times)
            check_values(engine, self._judged)  # beside which the times are read
            is_event = {"clicks": self._is_click, "all": "true", "none": "false"}[self._events]
            words = {kind: engine.words(roles[kind], is_event) for kind in ("item", "user")}
            clock = looked.result() if looked else clock_of_texts(engine, roles["time"], how.times)
        ends, numbers = self._ends(words)
        for kind, of_kind in words.items():
            engine.keep(kind, of_kind, numbers[kind])
        dropped = self._dropped(engine, ends, words, numbers)
        context, event, notes = self._fields(engine)
        kept = self._source.rows - sum(dropped.values())
        if not kept:
            raise UnsuitedError(f"{self._source}: no row is left, the ids of none are in the files of items and users")
        parts = parts_of(engine, how.rule, kept, how.clicks.seed, ends, words, numbers, roles)
        self._require_order(engine, parts, is_event, clock)
        users = ends.user_part.table.num_rows
        start = self._start(engine, words["user"], numbers["user"], users, is_event, parts, bool(dropped))
        del words, numbers  # as long as there are users
        columns = [*self._plain(engine), *context.columns, *event.columns]
        engine.progress.close()
        columns += [Column("split", f"CAST({parts.number} AS {engine.byte})", np.uint8)] if parts.column else []
        for group, fields in (("context", context), ("event", event)):
            of_numbers = columns_of(group, self._numbers[group])
            joined(fields.words, dict.fromkeys(fields_of(self._numbers[group]).values()), group)
            columns += of_numbers
        group = self._judged.group
        of_group = [f'JOIN "group of" ON log.{name_of(group)} = "group of".key'] if group else []
        joins = " ".join([self._joined(), parts.join, clock.join, *of_group, *context.joins, *event.joins])
        stream = ahead(in_order(engine, columns, joins, clock, kept))
        both_parts = {"item": ends.item_part, "user": ends.user_part}
        counted = {kind: part.table.num_rows for kind, part in both_parts.items() if part.numbers}
        shown = written(writer, stream, columns, start, kept, counted, parts, self._events, FOLDER)
        words_of, ends, ranges = self._cut(writer, shown, {"context": context.words, "event": event.words}, ends)
        rule = how.clicks.rule(how.label or f"column {roles['label']}", False)
        told = Told(kept, dropped, rule, clock.unit, notes, **words_of)
        return Streamed(told, ends, shown.was_unsorted, ranges)

    def _cut(
        self, writer: DatasetWriter, shown: Shown, words: dict[str, dict[str, list]], ends: Ends
    ) -> tuple[dict[str, dict[str, list]], Ends, dict[str, Any]]:
        """(words of fields, what ids may name, what dataset.json keeps) with all numbers as fields of ranges."""
        facts: dict[str, Any] = {}
        for group, names in self._numbers.items():
            more, facts[group] = cut(writer, group, names, self._cuts, FOLDER)
            words[group] = joined(words[group], more, group)
        items, facts["item"] = cut_part("item", ends.item_part, shown.rows.get("item"), self._cuts)
        users, facts["user"] = cut_part("user", ends.user_part, shown.rows.get("user"), self._cuts)
        return words, ends._replace(item_part=items, user_part=users), {k: v for k, v in facts.items() if v}

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
        self,
        engine: LogEngine,
        words: Words,
        numbers: np.ndarray,
        users: int,
        is_event: str,
        parts: Parts,
        dropped: bool,
    ) -> np.ndarray:
        """[U + 1] i64: the first event of each user; the last is their number.

        Args:
          dropped: whether some rows are.
        """
        count = np.zeros(users, np.int64)
        if dropped or parts.of_training:
            joins = f"{self._joined()} {parts.join}" + f" AND {name_of(SPLIT)}.number = 0" * parts.of_training
            query = f'SELECT "user".number AS user, count(*) AS events FROM log {joins} WHERE {is_event} GROUP BY 1'
            for batch in engine.stream(query):
                count[batch["user"]] = batch["events"]
        else:
            np.add.at(count, numbers, words.events)
        return np.concatenate([[0], np.cumsum(count)])

    def _require_order(self, engine: LogEngine, parts: Parts, is_event: str, clock: Clock) -> None:
        """Refuses splits that interleave in a user's time, where events are stored once for each of them."""
        if not parts.column or isinstance(self._how.rule, Whole):
            return
        code, late = f"({parts.number})", f"min({clock.value}) FILTER (WHERE ({is_event}) AND "
        pairs = [(f"{late}{code} > {k})", f"max({clock.value}) FILTER (WHERE {code} = {k})") for k in (0, 1)]
        (users,) = engine.one(
            f'SELECT count(*) FROM (SELECT "user".number FROM log {self._joined()} {parts.join} {clock.join} GROUP BY 1 '
            f"HAVING {' OR '.join(f'{first} < {last}' for first, last in pairs)}) AS interleaved"
        )
        if users:
            raise UnsuitedError(
                f"{self._source}: the splits of {users} users follow no order of time, which is read in memory alone"
            )

    def _plain(self, engine: LogEngine) -> list[Column]:
        """The columns but for the time and fields."""
        roles = self._how.roles
        columns = [
            Column("user", '"user".number', np.int32),
            Column("item", '"item".number', np.int32),
            Column("label", f"CAST({self._is_click} AS {engine.byte})", np.uint8),
        ]
        for name, (column, compare, threshold) in self._judged.others.items():
            is_so = f"CAST({holds(column, compare, threshold)} AS {engine.byte})"
            value = f"CASE WHEN {there(column)} THEN {is_so} ELSE {NOT_PART} END"
            columns.append(Column(f"label_{name}", f"CAST({value} AS {engine.byte})", np.uint8))
        for name, column in self._how.more.amounts.items():
            value = f"CASE WHEN {there(column)} THEN CAST({number(column)} AS FLOAT) ELSE CAST('NaN' AS FLOAT) END"
            columns.append(Column(f"amount_{name}", value, np.float32))
        if "weight" in roles:
            columns.append(Column("weight", f"CAST({number(roles['weight'])} AS FLOAT)", np.float32))
        if "group" in roles:
            words = engine.words(roles["group"])
            if words.form.null_count:
                raise UnsuitedError(f"{self._source}: column '{roles['group']}' is empty in some rows; fill it in")
            engine.keep("group of", words, words.numbered("first")[1])
            columns.append(Column("group", '"group of".number', np.int32))
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
                fields.columns.append(Column(f"{prefix}{name}", value, np.int32))
            notes += renamed
            made.append(fields)
        return made[0], made[1], list(dict.fromkeys(notes))


class _Fields(NamedTuple):
    """Fields of the impressions or of events: columns of the result, joins that they need, field -> values."""

    columns: list[Column]
    joins: list[str]
    words: dict[str, list]
