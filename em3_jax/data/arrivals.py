"""Rows of a log as they arrive: each is checked by itself, and one that is wrong is named and does not hide the others.

The options are those of `em3 prepare table` that speak of interactions. What that reader decides of a whole log, the unit of its
times and the types of its columns, is decided here by the first rows, and kept.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError, nearest
from em3_jax.data import canonical, times
from em3_jax.data.append_entities import Told
from em3_jax.data.format import NOT_PART
from em3_jax.data.readers.encode import field_names
from em3_jax.data.readers.table_log import MOST, check_names, rule_of
from em3_jax.data.readers.table_times import AUTO, KINDS, OF_DATES, Times, read_times
from em3_jax.data.sources.arrived import LOOSE, UNTYPED
from em3_jax.data.sources.files import DELIMITERS

ROLES = ("user", "item", "label", "time", "weight", "user_key", "item_key")
EVENTS = ("clicks", "all", "none")
SUPPORTED = (
    "interactions", "items", "users", "columns", "label", "labels", "amounts", "item_fields", "user_fields",
    "context_fields", "event_fields", "features", "events", "time_unit", "time_format",
)  # fmt: skip
"""Options of `em3 prepare table` that logs which are appended to may have."""
FIXED = {"split": "all its rows are trained", "in_order": "late rows are kept", "overwrite": "it is appended to"}
"""Options that have no effect on such a log, and why."""
_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"


class Wrong(NamedTuple):
    """A row that cannot be taken: its number among those that arrived together, and why not."""

    row: int
    why: str


class NoColumnError(UserError):
    """A column that the mapping names was never there, or more than once."""


class Rows(NamedTuple):
    """Rows that can be taken, in the order of arrival.

    Attributes:
      row: [n] i64 their numbers among those that arrived together.
      user, item: [n] canonical texts.
      label: [n] u8.
      time: [n] i64.
      columns: column of interactions -> [n] values: label_<name> u8, amount_<name> f32, weight f32.
      context, event: field name -> [n] canonical texts, null = unknown.
    """

    row: np.ndarray
    user: pa.DictionaryArray
    item: pa.DictionaryArray
    label: np.ndarray
    time: np.ndarray
    columns: dict[str, np.ndarray]
    context: dict[str, pa.DictionaryArray]
    event: dict[str, pa.DictionaryArray]

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows [m]."""
        pick = pa.array(rows)
        texts = lambda of: {name: _used(one.take(pick)) for name, one in of.items()}  # noqa: E731
        return Rows(
            self.row[rows], _used(self.user.take(pick)), _used(self.item.take(pick)), self.label[rows], self.time[rows],
            {name: one[rows] for name, one in self.columns.items()}, texts(self.context), texts(self.event),
        )  # fmt: skip


class Options(NamedTuple):
    """What a mapping says of rows that arrive, see `em3 prepare table`."""

    roles: Mapping[str, str]
    label: tuple[str, np.ufunc | None, float]
    labels: Mapping[str, tuple[str, np.ufunc | None, float]]
    amounts: Mapping[str, str]
    context: Mapping[str, str]
    event: Mapping[str, str]
    events: str
    times: Times
    users: Told
    items: Told

    @property
    def rule(self) -> str:
        """What a click is, in words."""
        column, compare, threshold = self.label
        return column if compare is None else f"{column} {compare.__name__} {threshold:g}"

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row has."""
        named = [self.roles["user"], self.roles["item"], self.roles["time"], self.label[0]]
        named += [*([self.roles["weight"]] if "weight" in self.roles else [])]
        named += [*(column for column, *_ in self.labels.values()), *self.amounts.values(), *self.context, *self.event]
        return tuple(dict.fromkeys(named))


def options(mapping: str, given: Mapping[str, Any]) -> Options:
    """The options of a mapping file.

    Args:
      mapping: its path, for messages.
      given: what `prepare.read_mapping` reads.

    Raises:
      UserError: an option that only a whole log can have, or that has no effect.
    """
    for name in given:
        if name in FIXED:
            raise UserError(
                f"{mapping}: {name} has no effect on a log that is appended to, {FIXED[name]}; leave it out"
            )
        if name not in SUPPORTED:
            raise UserError(
                f"{mapping}: {name} is of whole logs; a log that is appended to has {', '.join(SUPPORTED)}; leave it out, or "
                "set config.stream.append=False"
            )
    columns = dict(given.get("columns", {}))
    for role in columns:
        if role not in ROLES:
            raise UserError(f"{mapping}: columns: no role '{role}'; {nearest(role, ROLES)}")
    roles = {role: role for role in ROLES if role != "weight"} | columns
    told = {kind: _told(mapping, kind, given, columns, roles) for kind in ("user", "item")}
    labels, amounts = dict(given.get("labels", {})), dict(given.get("amounts", {}))
    check_names(labels, amounts)
    events = given.get("events") or EVENTS[0]
    if events not in EVENTS:
        raise UserError(f"{mapping}: events: '{events}'; {nearest(events, EVENTS)}")
    context, event = (field_names(list(given.get(f"{group}_fields", ())))[0] for group in ("context", "event"))
    event = {} if events == "none" else event
    label = rule_of(given["label"]) if given.get("label") else (roles["label"], None, 1.0)
    unit = given.get("time_unit", AUTO)
    if unit not in (AUTO, *times.UNITS):
        raise UserError(f"{mapping}: time_unit: '{unit}'; {nearest(unit, (AUTO, *times.UNITS))}")
    return Options(
        roles, label, {name: rule_of(rule) for name, rule in labels.items()}, amounts, context, event, events,
        Times(unit, given.get("time_format", "")), told["user"], told["item"],
    )  # fmt: skip


def _told(
    mapping: str, kind: str, given: Mapping[str, Any], columns: Mapping[str, str], roles: Mapping[str, str]
) -> Told:
    """What a mapping says of users or items."""
    file, fields = given.get(f"{kind}s", ""), given.get(f"{kind}_fields", ())
    features = given.get("features", {}) if kind == "item" else {}
    if not file:
        if fields or features:
            raise UserError(f"{mapping}: {kind}_fields, features: are of {kind}s, whose file is not named; add {kind}s")
        return Told()
    if not isinstance(file, str | Path) or Path(file).suffix not in DELIMITERS:
        raise UserError(f"{mapping}: {kind}s: name one .csv or .tsv file, which grows beside the log")
    for field in fields:
        if field.endswith(":multi"):
            raise UserError(
                f"{mapping}: {kind}_fields: '{field}' has several values; a log that is appended to has one each"
            )
    key = columns.get(f"{kind}_key", roles[kind])
    return Told(str(file), key, field_names(list(fields))[0], {name: str(one) for name, one in features.items()})


class Arrivals:
    """Reads rows that arrive.

    Args:
      how: the options.
      known: what earlier rows have decided, of `known`; {} before the first.
    """

    def __init__(self, how: Options, known: Mapping[str, Any]):
        self._how = how
        self.known: dict[str, Any] = {"types": {}, "from": "", "kind": "", "unit": ""} | dict(known)
        """column -> what it holds, where that was seen, what kind of times there are, and their unit; JSON values."""

    def read(self, table: pa.Table, where: str) -> tuple[Rows, list[Wrong]]:
        """(rows that can be taken, rows that cannot).

        Args:
          where: what the rows come from.

        Raises:
          UserError: a column is missing, or is of another type than it was. NoColumnError: it is missing in the first rows.
        """
        self._check_schema(table, where)
        how, wrong = self._how, np.full(table.num_rows, None, object)

        def refuse(bad: np.ndarray, why: Callable[[int], str] | str) -> None:
            for row in np.flatnonzero(bad):
                wrong[row] = wrong[row] or (why if isinstance(why, str) else why(int(row)))

        names = {role: how.roles[role] for role in ("user", "item")}
        ids = {role: _texts(table.column(name)) for role, name in names.items()}
        for role, texts in ids.items():
            refuse(_mask(texts.is_null()), f"has no {role} (column '{names[role]}')")
        time = self._times(where, table.column(how.roles["time"]), refuse)
        label = _truths(table.column(how.label[0]), how.label, f"label '{how.label[0]}'", refuse, optional=False)
        columns: dict[str, np.ndarray] = {}
        for name, rule in how.labels.items():
            columns[f"label_{name}"] = _truths(table.column(rule[0]), rule, f"label '{name}'", refuse, optional=True)
        for name, column in how.amounts.items():
            columns[f"amount_{name}"] = _positive(table.column(column), f"amount '{name}'", refuse, optional=True)
        if "weight" in how.roles:
            columns["weight"] = _positive(table.column(how.roles["weight"]), "weight", refuse, optional=False)
        taken = np.flatnonzero(wrong == None)  # noqa: E711 - elementwise
        pick = pa.array(taken)
        context, event = (
            {field: _texts(table.column(column)).take(pick) for column, field in of.items()}
            for of in (how.context, how.event)
        )
        rows = Rows(
            taken, _used(ids["user"].take(pick)), _used(ids["item"].take(pick)), label[taken], time[taken],
            {name: values[taken] for name, values in columns.items()},
            {name: _used(texts) for name, texts in context.items()},
            {name: _used(texts) for name, texts in event.items()},
        )  # fmt: skip
        return rows, [Wrong(int(row), wrong[row]) for row in np.flatnonzero(wrong != None)]  # noqa: E711

    def _check_schema(self, table: pa.Table, where: str) -> None:
        """Refuses rows whose columns are not those of the rows before."""
        types, seen = self.known["types"], self.known["from"]
        untyped, loose = ({key.encode(): value.encode() for key, value in of.items()} for of in (UNTYPED, LOOSE))
        for name in self._how.needed:
            if (count := table.column_names.count(name)) > 1:
                raise NoColumnError(f"{where}: {count} columns are named '{name}'; give each its own name")
            if not count:
                there = ", ".join(table.column_names)
                if not seen and table.schema.metadata != loose:
                    raise NoColumnError(
                        f"{where}: no column '{name}'; {nearest(name, table.column_names)}; name it in the mapping as it is there"
                    )
                was = f"; {seen} had it, of type {types[name]}" if name in types else ""
                raise UserError(f"{where}: no column '{name}' (there are: {there}){was}")
            kind = _kind(table.column(name).type)
            if kind in ("nothing", types.get(name)) or table.schema.metadata == untyped:
                continue
            if name in types:
                raise UserError(
                    f"{where}: column '{name}' holds {kind}, in {seen} it held {types[name]}; write one of both"
                )
            if kind == "lists":
                raise UserError(f"{where}: column '{name}' holds {table.column(name).type}; give single values")
            types[name] = kind
        self.known["from"] = seen or where

    def _times(self, where: str, column: pa.ChunkedArray, refuse: Callable) -> np.ndarray:
        """[n] i64; 0 where there is none."""
        result, asked = np.zeros(len(column), np.int64), self._how.times
        column = canonical.plain(column)
        there = _mask(column.is_valid())
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if is_text:
            there &= _mask(pc.not_equal(column, "").fill_null(False))
        refuse(~there, f"has no time (column '{self._how.roles['time']}')")
        if is_text and not asked.format:
            if not self.known["kind"] and self.known["unit"] not in ("", OF_DATES):
                self.known["kind"] = next(iter(KINDS))  # numbers, in files that have types
            of_kind = {kind: _mask(pc.match_substring_regex(column, p).fill_null(False)) for kind, p in KINDS.items()}
            kind = self.known["kind"] or max(of_kind, key=lambda one: int(of_kind[one].sum()))
            refuse(
                there & ~of_kind[kind], lambda row: f"its time is '{column[row]}', where the rows before have {kind}"
            )
            there &= of_kind[kind]
            self.known["kind"] = kind if there.any() else self.known["kind"]
        rows = np.flatnonzero(there)
        if not len(rows):
            return result
        is_date = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
        is_date |= bool(asked.format) or self.known["kind"].startswith("dates")
        # Numbers are read as they are: their unit is settled by the first rows.
        plainly = asked if is_date or asked.unit != AUTO else asked._replace(unit=times.ORDER)
        found, bad = _one_by_one(where, column, rows, plainly)
        refuse(bad, lambda row: f"its time is '{column[row]}', which is no time")
        good = np.flatnonzero(there & ~bad)
        result[good] = found[good]
        if not self.known["unit"] and len(good):
            unit = OF_DATES if is_date else times.inferred(result[good])
            self.known["unit"] = unit if asked.unit == AUTO else asked.unit
        if asked.unit == AUTO and not is_date and self.known["unit"] in times.BY_SIZE:
            unit = self.known["unit"]
            strange = there & ~bad & ~times.is_plausible(result, unit)
            refuse(strange, lambda row: f"its time is {column[row]}, no date in {unit}, which the rows before have")
        return result


def _one_by_one(where: str, column: pa.ChunkedArray, rows: np.ndarray, asked: Times) -> tuple[np.ndarray, np.ndarray]:
    """([n] i64 times, [n] bool which of the rows have none that can be read): all at once where they can be."""
    result, bad, parts = np.zeros(len(column), np.int64), np.zeros(len(column), bool), [rows]
    while parts:
        part = parts.pop()
        try:
            result[part] = read_times(Path(where), "time", column.take(pa.array(part)), asked)[0]
        except UserError:
            if len(part) == 1:
                bad[part] = True
            else:
                parts += np.array_split(part, 2)
    return result, bad


def _kind(kind: pa.DataType) -> str:
    """What a column holds, in words: what is one in any two files is one here."""
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_null(kind):
        return "nothing"
    if pa.types.is_boolean(kind):
        return "truth values"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return "numbers"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "dates"
    return "texts" if canonical.is_single(kind) else "lists"


def _texts(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return canonical.texts(column).combine_chunks()


def _used(texts: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same with the words in the order in which the rows have them, and no others."""
    return texts.cast(pa.string()).dictionary_encode()


def _mask(values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[n] bool that may be written to."""
    return np.array(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy(), bool)


def _floats(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """([n] f64, NaN where there is no number; [n] bool: there is something)."""
    column = canonical.plain(column)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    there = _mask(column.is_valid())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        there &= _mask(pc.not_equal(column, "").fill_null(False))
        lower = pc.utf8_lower(column)
        column = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", lower))
        is_number = pc.match_substring_regex(column, _NUMBER)
        column = pc.if_else(is_number, pc.utf8_trim_whitespace(column), pa.scalar(None, column.type))
    try:
        values = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    except pa.ArrowException:  # dates, say
        return np.full(len(column), np.nan), there
    values = np.array(values.to_numpy(zero_copy_only=False) if isinstance(values, pa.Array) else values.to_numpy())
    return values, there & ~(np.isnan(values) & pa.types.is_floating(column.type))


def _truths(
    column: pa.ChunkedArray, rule: tuple[str, np.ufunc | None, float], what: str, refuse: Callable, optional: bool
) -> np.ndarray:
    """[n] u8: 0, 1, and `NOT_PART` where an optional one is not there."""
    values, there = _floats(column)
    _, compare, threshold = rule
    if not optional:
        refuse(~there, f"has no {what}")
    bad = there & (~np.isfinite(values) if compare is not None else ~np.isin(values, (0, 1)))
    refuse(bad, lambda row: f"its {what} is '{column[row]}'; give {'a number' if compare is not None else '0 or 1'}")
    found = (compare or np.equal)(values, threshold).astype(np.uint8)
    return np.where(there, found, np.uint8(NOT_PART)).astype(np.uint8)


def _positive(column: pa.ChunkedArray, what: str, refuse: Callable, optional: bool) -> np.ndarray:
    """[n] f32 numbers from 0 up, NaN where an optional one is not there."""
    values, there = _floats(column)
    refuse(
        there & ~((values >= 0) & (values <= MOST)),
        lambda row: f"its {what} is '{column[row]}'; give a number from 0 up",
    )
    if not optional:
        refuse(~there, f"has no {what}")
    return values.astype(np.float32)
