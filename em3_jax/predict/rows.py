"""From a table of rows to what a run's batches are made of: ids, contexts, histories; what is new is counted.

Letters: n rows, I items, U users, C columns of a field group.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError, nearest
from em3_jax.core.event_features import RECENCY
from em3_jax.core.fields import PADDING
from em3_jax.core.numbers import value_column
from em3_jax.core.ranges import Ranges
from em3_jax.data import canonical, times
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_part import column_of
from em3_jax.data.readers.table_times import AUTO, OF_DATES, Times, read_times
from em3_jax.export.model import original_ids
from em3_jax.predict.past import Past
from em3_jax.serving import id_index
from em3_jax.serving.field_values import FieldValues, NumberValues

ROLES = ("user", "item", "time", "history")


class Read(NamedTuple):
    """What the columns of a file are.

    Attributes:
      user, item: columns of ids.
      time, history: columns; "" = there is none.
      contexts: context field -> column.
      time_format: of times that are texts.
      separator: between the items of a history that is a text.
    """

    user: str
    item: str
    time: str
    history: str
    contexts: Mapping[str, str]
    time_format: str = ""
    separator: str = "|"


@dataclasses.dataclass(frozen=True)
class _AndUnknown(FeatureSet):
    """A feature set with one more item at its end, which has no content."""

    def of_items(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        there = items < len(self.tokens)
        tokens, mask = super().of_items(np.where(there, items, 0))
        return tokens, mask & there[:, None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows whose ids are numbers: U and I stand for a user and an item of which nothing is known.

    Attributes:
      dataset: that of the run.
      interactions, events: its columns, of these rows.
    """

    dataset: Dataset
    interactions: dict[str, np.ndarray]
    events: dict[str, np.ndarray]

    @property
    def has_new_items(self) -> bool:
        return bool((self.interactions["item"] == self.dataset.num_items).any())

    def read_by(self, builder: BatchBuilder) -> BatchBuilder:
        """The builder of these rows' batches, in their order.

        Args:
          builder: of `with_unknown`.
        """
        view = dataclasses.replace(self.dataset, interactions=self.interactions, events=self.events)
        sides = (builder.user_rows, builder.item_rows, builder.host_features)
        return builder.reading(view, *sides, builder.user_numbers, builder.item_numbers)


def with_unknown(builder: BatchBuilder, host_features: Sequence[FeatureSet]) -> BatchBuilder:
    """The builder of a run's batches with one more user and item, of which nothing is known.

    Args:
      builder: of the run's batches.
      host_features: the feature sets that come with the batches.
    """
    dataset = builder.dataset
    users, items = (
        np.vstack([rows, _of_unknown(dataset, kind)])
        for kind, rows in (("user", builder.user_rows), ("item", builder.item_rows))
    )
    sets = tuple(_AndUnknown(one.name, one.tokens, one.mask, one.manifest) for one in host_features)
    numbers = (
        np.vstack([of_all, np.full(of_all.shape[1], np.nan, np.float32)])
        for of_all in (builder.user_numbers, builder.item_numbers)
    )
    return builder.reading(dataset, users, items, sets, *numbers)


def numbers_of(dataset: Dataset, group: str = "context") -> dict[str, NumberValues]:
    """Number of the context, or of events, that is read as a value -> its values."""
    return {one.name: NumberValues(f"{group} number '{one.name}'") for one in getattr(dataset.numbers, group)}


def values_of(dataset: Dataset, group: str = "context") -> dict[str, FieldValues]:
    """Field of the context, or of events -> the ids of its values."""
    words, cut = (dataset.meta.get(key, {}).get(group, {}) for key in ("vocabularies", "numbers"))
    result = {}
    for field in getattr(dataset.fields, group):
        ranges = Ranges.from_json(cut[field.name]) if field.name in cut else None
        result[field.name] = FieldValues(
            f"{group} field '{field.name}'", words.get(field.name) or (), field.size, ranges
        )
    return result


class Resolver:
    """Makes `Rows` of tables.

    Args:
      dataset: of the run.
      history_length: T.
      read: which column is what.

    Attributes:
      unknown: what the dataset does not know -> in how many rows.
    """

    def __init__(self, dataset: Dataset, history_length: int, read: Read):
        self._dataset, self._read = dataset, read
        self._users, self._items = (
            id_index.build(original_ids(table)) for table in (dataset.user_table, dataset.item_table)
        )
        self._values, self._numbers = values_of(dataset), numbers_of(dataset)
        if RECENCY in dataset.event_features and (read.history or not read.time):
            why = (
                "a history beside the rows has none"
                if read.history
                else "say which column is theirs, --columns time=..."
            )
            raise UserError(f"the run reads how long ago events were, for which rows and events need times: {why}")
        self._past = None if read.history or not history_length else Past(dataset)
        self.unknown: dict[str, int] = {}

    def __call__(self, source: Source, table: pa.Table) -> Rows:
        """The rows of a table, in their order.

        Args:
          source: the files; it begins with the table's first row, for messages.

        Raises:
          UserError: an item is missing, or a time is none.
        """
        dataset, read, n = self._dataset, self._read, table.num_rows
        user = self._find("user", source, table.column(read.user), self._users, dataset.num_users, True)
        item = self._find("item", source, table.column(read.item), self._items, dataset.num_items, False)
        columns: dict[str, Any] = {"user": user, "item": item, "label": np.zeros(n, np.uint8)}
        columns |= {name: np.zeros(n, np.uint8) for name in dataset.interactions if name.startswith("label_")}
        columns |= {f"amount_{name}": np.zeros(n, np.float32) for name in dataset.amounts}
        columns["time"] = np.zeros(n, np.int64)
        for field, column in read.contexts.items():
            given = table.column(column) if column else None
            if field in self._numbers:
                columns[value_column(field)] = self._number(field, given, n)
            else:
                columns[f"context_{field}"] = self._context(field, given, n)
        events = dataset.events
        if read.history:
            columns["history_start"], columns["history_end"], events = self._given(source, table.column(read.history))
        elif self._past is not None:
            time = self._times(source, table) if read.time else None
            columns["history_start"], columns["history_end"] = self._past.ranges(user, time)
            columns["time"] = columns["time"] if time is None else time
        else:
            columns["history_start"] = columns["history_end"] = np.zeros(n, np.int64)
        return Rows(dataset, columns, events)

    def _count(self, name: str, number: int) -> None:
        if number:
            self.unknown[name] = self.unknown.get(name, 0) + number

    def _find(
        self, kind: str, source: Source, column: pa.ChunkedArray, index: id_index.IdIndex, number: int, may_miss: bool
    ) -> np.ndarray:
        """[n] i64 rows of the ids of a column; `number` = it is new, or there is none."""
        words = canonical.texts(column).combine_chunks()
        known = index.find(words.dictionary.to_pylist()) if len(words.dictionary) else np.zeros(0, np.int64)
        codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if not may_miss and (codes < 0).any():
            row = int(np.argmax(codes < 0))
            raise UserError(f"{source.place(row)}: has no {kind}; give one for each row")
        rows = np.append(known, -1)[codes]
        self._count(f"new {kind}s, rows", int((rows < 0).sum()))
        return np.where(rows < 0, number, rows)

    def _context(self, field: str, column: pa.ChunkedArray | None, n: int) -> np.ndarray:
        """[n] i32 ids of a context field; without a column all are unknown."""
        if column is None:
            return np.ones(n, np.int32)
        words = canonical.texts(column).combine_chunks()
        ids, known = self._values[field].ids(words.dictionary.to_pylist())
        codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        missing = int(self._values[field].ids([None])[0][0])
        self._count(f"new values of {field}, rows", int((~np.append(known, True))[codes].sum()))
        return np.append(ids, missing)[codes].astype(np.int32)

    def _number(self, name: str, column: pa.ChunkedArray | None, n: int) -> np.ndarray:
        """[n] f32 numbers of the context, NaN = missing; without a column all are."""
        if column is None:
            return np.full(n, np.nan, np.float32)
        words = canonical.texts(column).combine_chunks()
        values, known = self._numbers[name].values(words.dictionary.to_pylist())
        codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        self._count(f"values of {name} that are no numbers, rows", int((~np.append(known, True))[codes].sum()))
        return np.append(values, np.float32(np.nan))[codes]

    def _times(self, source: Source, table: pa.Table) -> np.ndarray:
        """[n] i64 in the dataset's unit: dates, and numbers that are dates in another unit, are converted."""
        name, unit = self._read.time, times.unit_of(self._dataset)
        column = table.column(name)
        if column.null_count:
            place = source.place(int(np.argmax(column.is_null().to_numpy())))
            raise UserError(f"{place}: column '{name}' is empty; fill it in, or give rows without such a column")
        is_text = pa.types.is_string(column.type) and bool(self._read.time_format)
        found, of = read_times(source, name, column, Times(AUTO, self._read.time_format if is_text else ""))
        if unit == times.ORDER and of == OF_DATES and not pa.types.is_integer(column.type):
            raise UserError(
                f"{source}: column '{name}' holds dates, and the dataset's times are an order; give such numbers"
            )
        if unit != times.ORDER and of not in (unit, times.ORDER):
            whole, rest = times.NANOSECONDS[of], times.NANOSECONDS[unit]
            found = found * (whole // rest) if whole >= rest else found // (rest // whole)
        first = int(self._dataset.interactions["time"][0])
        early = int((found < first).sum())
        if early == len(found):
            shown = times.shown(first, unit)
            raise UserError(
                f"{source}: every '{name}' is before the dataset's first time, {shown}; is it counted in {unit}?"
            )
        self._count("times before the dataset's first, rows", early)
        return found

    def _given(self, source: Source, column: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """(starts, ends [n], events) of a column of lists of items, or of such texts, oldest first; new items are left out."""
        if not canonical.is_list(column.type):
            name, between = self._read.history, self._read.separator
            column = column_of(source, pa.table({name: column}), name, True, between, "--history-separator")
        lists = canonical.lists(column)
        words = canonical.texts(lists.flatten()).combine_chunks()
        known = self._items.find(words.dictionary.to_pylist()) if len(words.dictionary) else np.zeros(0, np.int64)
        item = np.append(known, -1)[words.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
        length = np.diff(lists.offsets.to_numpy())
        row = np.repeat(np.arange(len(length)), length)
        self._count("new items in histories, events", int((item < 0).sum()))
        row, item = row[item >= 0], item[item >= 0]
        end = np.cumsum(np.bincount(row, minlength=len(length)))
        start = np.concatenate([[0], end[:-1]])
        events = {"item": item.astype(np.int32), "time": np.zeros(len(item), np.int64)}
        fields = self._dataset.stored_event_fields
        events |= {f"field_{f.name}": np.full(len(item), PADDING, np.int32) for f in fields}
        missing = np.full(len(item), np.nan, np.float32)
        return start, end, events | {number.column: missing for number in self._dataset.numbers.event}


def _of_unknown(dataset: Dataset, kind: str) -> list[int]:
    """[C] table rows of a user or item of which nothing is known."""
    fields, offsets = getattr(dataset.fields, kind), dataset.fields.offsets()[kind]
    # As services have it: the first value of each field is unknown, further ones are not there.
    return [offsets[field.name] if k == 0 else 0 for field in fields for k in range(field.length)]


def which(names: Sequence[str], given: Mapping[str, str], without: Sequence[str], dataset: Dataset) -> Read:
    """Which column of a file is what.

    Args:
      names: the file's columns.
      given: role or context field -> column, of those with another name.
      without: context fields that the file has no column for.

    Raises:
      UserError: a column is not there; a role or field is none.
    """
    fields = [*(field.name for field in dataset.fields.context), *(one.name for one in dataset.numbers.context)]
    for role in given:
        if role not in (*ROLES, *fields):
            raise UserError(f"--columns {role}=...: no role or context field; {nearest(role, [*ROLES, *fields])}")
    for field in without:
        if field not in fields:
            raise UserError(f"--without {field}: no context field of the dataset; {nearest(field, fields)}")
    found = {}
    for role in ("user", "item", *(field for field in fields if field not in without)):
        name = given.get(role, role)
        if name not in names:
            also = f", or --without {role} to score all as unknown" if role in fields else ""
            raise UserError(
                f"the rows have no column '{name}' (there are: {', '.join(names)}); say which it is with --columns "
                f"{role}=...{also}"
            )
        found[role] = name
    optional = {}
    for role in ("time", "history"):
        name = given.get(role, "time" if role == "time" and "time" in names else "")
        if name and name not in names:
            raise UserError(f"--columns {role}={name}: no such column; {nearest(name, list(names))}")
        optional[role] = name
    contexts = {field: found.get(field, "") for field in fields}
    return Read(found["user"], found["item"], optional["time"], optional["history"], contexts)
