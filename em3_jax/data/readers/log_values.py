"""What values of a log have to be, and what SQL makes of them; see `log_engine`."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data import times
from em3_jax.data.readers.files import place
from em3_jax.data.readers.log_engine import PLACE, LogEngine, UnsuitedError, name_of
from em3_jax.data.readers.parquet import parquet_batches
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_log import COMPARISONS, MOST
from em3_jax.data.readers.table_times import AUTO, OF_DATES, Times, read_times

Rule = tuple[str, Any, float]
"""(column, comparison, number) of a label; without a comparison it is 1 or 0 as it stands."""
_SIGNS: dict[Any, str] = {compare: {"==": "=", "!=": "<>"}.get(sign, sign) for sign, compare in COMPARISONS.items()}


TIMES = "time of"
"""The relation of texts and the times that they say."""


class Clock(NamedTuple):
    """The times of a log.

    Attributes:
      value: of a row, in SQL.
      unit: see `data.times`.
      least, most: the first and the last.
      join: of the log with what `value` is of, in SQL; "" = it is of the log alone.
    """

    value: str
    unit: str
    least: int
    most: int
    join: str = ""

    def keyed(self, rows: int) -> tuple[str, int]:
        """(SQL of a number whose order is that of time and place, how many bits of it are the place); 0 = there is none.

        Sorting by one number is faster than by two.
        """
        bits = max(rows - 1, 1).bit_length()
        if (self.most - self.least).bit_length() + bits > 62:
            return "", 0
        return f"((({self.value}) - {self.least}) << {bits}) | log.{name_of(PLACE)}", bits


def clock(engine: LogEngine, name: str, options: Times) -> Clock:
    """The times of a log, which are read once for it."""
    least, most, rows = None, None, 0
    source: Source = engine.source
    kind: Any = None
    for file in engine.files:
        for batch in parquet_batches(file.path, [name], rows=1 << 20):
            column, kind = batch.column(0), file.kinds[name]
            if column.null_count:
                row = rows + int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise UnsuitedError(f"{place(source, row)}: column '{name}' is empty; fill it in or drop the row")
            if not pa.types.is_integer(kind):
                column = column.cast(pa.timestamp("ms", getattr(kind, "tz", None)), safe=False)
            values = column.cast(pa.int64()).to_numpy()
            if len(values):
                low, high = int(values.min()), int(values.max())
                least, most = (low, high) if least is None or most is None else (min(least, low), max(most, high))
            rows += len(values)
    if least is None or most is None:
        raise UnsuitedError(f"{source}: there are no rows; is it the right file?")
    ends, column = np.array([least, most]), f"log.{name_of(name)}"
    if pa.types.is_integer(kind):
        if options.unit == AUTO and any(times.is_plausible(ends, unit).sum() == 1 for unit in times.BY_SIZE):
            raise UnsuitedError  # whether some are dates in another unit, all of them say
        unit = read_times(source, name, pa.chunked_array([ends]), options)[1]
        return Clock(f"CAST({column} AS BIGINT)", unit, least, most)
    if least < 0:
        raise UnsuitedError  # what rounds down, and what towards zero, differs
    unit = read_times(source, name, pa.chunked_array([pa.array(ends, pa.timestamp("ms"))]), options)[1]
    return Clock(engine.milliseconds(column, kind), unit, least, most)


def is_text(engine: LogEngine, name: str, options: Times) -> bool:
    """Whether a column of times is of texts, or of numbers that are to be read as such."""
    kind = engine.types[name]
    return bool(options.format) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def clock_of_texts(engine: LogEngine, name: str, options: Times) -> Clock:
    """The times of a log that are texts: each different one is read once, and held meanwhile."""
    kind: Any = engine.types[name]
    if not any(of(kind) for of in (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)):
        raise UnsuitedError
    key = engine.words(name).key
    if key.null_count or not len(key):
        raise UnsuitedError(f"{engine.source}: column '{name}' is empty in some rows; fill it in or drop them")
    try:
        values, unit = read_times(engine.source, name, pa.chunked_array([key]), options)
    except UserError as error:  # what it says of a row is of the different texts
        raise UnsuitedError(f"{engine.source}: {str(error).partition(': ')[2]}") from None
    if unit != OF_DATES:
        raise UnsuitedError  # whether numbers are dates, all of them say
    engine.keep_table(TIMES, pa.table({"key": key, "number": pa.array(values, pa.int64())}))
    of = name_of(TIMES)
    join = f"JOIN {of} ON log.{name_of(name)} = {of}.key"
    return Clock(f"{of}.number", unit, int(values.min()), int(values.max()), join)


def number(column: str) -> str:
    return f"CAST(log.{name_of(column)} AS DOUBLE)"


def there(column: str) -> str:
    """Whether a row has a value; not by `isnan`, which DuckDB 2.0 takes for false where a file's statistics leave NaN out."""
    return f"coalesce(isfinite({number(column)}), false)"


def holds(column: str, compare: np.ufunc | None, threshold: float) -> str:
    """Whether a rule holds, or a column is 1."""
    return f"({number(column)} {'=' if compare is None else _SIGNS[compare]} {threshold!r})"


class Judged(NamedTuple):
    """The columns of a log that are no ids.

    Attributes:
      label: what a click is.
      others: name -> rule of further labels.
      amounts: name -> column.
      weight, group: columns; "" = there is none.
      numbers: columns that are cut into ranges.
    """

    label: Rule
    others: dict[str, Rule]
    amounts: dict[str, str]
    weight: str
    group: str
    numbers: tuple[str, ...] = ()


def check_types(engine: LogEngine, time: str, ids: set[str], judged: Judged) -> None:
    """Refuses columns that are not of the plain types.

    Args:
      time, ids: the column of times, those of ids and fields; others hold numbers, labels truth values as well.
    """
    amounts = {*judged.amounts.values(), judged.weight, *judged.numbers}
    of_ids = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean)
    of_numbers = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_float32, pa.types.is_float64)
    of_times = (pa.types.is_timestamp, pa.types.is_date32, pa.types.is_integer, *of_ids[1:3])
    for name, kind in engine.types.items():
        known = of_times if name == time else of_ids if name in ids else of_numbers
        if not any(is_kind(kind) for is_kind in known) or (name == time and kind == pa.uint64()):
            raise UnsuitedError
        if name in amounts and pa.types.is_boolean(kind):
            raise UnsuitedError


def check_values(engine: LogEngine, judged: Judged) -> None:
    """Refuses labels, amounts, weights, groups and numbers that are none, in one pass over the log."""
    asked = _of_labels(judged) | _of_amounts(judged.amounts)
    for name in judged.numbers:
        asked["infinite", name] = f"min({name_of(PLACE)}) FILTER (WHERE isinf({number(name)}))"
        asked["number", name] = f"count(*) FILTER (WHERE {there(name)})"
    at, label = f"min({name_of(PLACE)}) FILTER (WHERE ", judged.label
    for name in (one for one in (label[0], judged.weight, judged.group) if one):
        asked["empty", name] = f"{at}{name_of(name)} IS NULL)"
    asked["bad", label[0]] = f"{at}{_wrong(label)})"
    if weight := judged.weight:
        asked["out of range", weight] = (
            f"{at}NOT (isfinite({number(weight)}) AND {number(weight)} BETWEEN 0 AND {MOST}))"
        )
        asked["above 0", weight] = f"count(*) FILTER (WHERE {number(weight)} > 0)"
    asked["clicks", ""] = f"count(*) FILTER (WHERE {holds(*label)})"
    found = dict(zip(asked, engine.one(f"SELECT {', '.join(asked.values())} FROM log"), strict=True))
    for (what, name), value in found.items():
        if what in ("empty", "bad", "unfit", "out of range", "infinite") and value is not None:
            raise UnsuitedError(f"{place(engine.source, value)}: column '{name}' is {what}; mend it or drop the row")
        if (what, value) in (("some", 0), ("number", 0), ("above 0", 0)) or (what == "different" and value < 2):
            raise UnsuitedError(f"{engine.source}: '{name}' has no value, or the same in every row; leave it out")
        if what == "yes" and value in (0, found["some", name]):
            raise UnsuitedError(f"{engine.source}: label '{name}' has one class alone; change its rule")
    if found["clicks", ""] == engine.source.rows:
        raise UnsuitedError(f"{engine.source}: every row is a click; draw negatives with --negatives 3")


def _of_labels(judged: Judged) -> dict[tuple[str, str], str]:
    """(what, further label) -> what to ask."""
    asked = {}
    for name, rule in judged.others.items():
        asked["unfit", name] = (
            f"min({name_of(PLACE)}) FILTER (WHERE isinf({number(rule[0])}) OR {there(rule[0])} AND {_wrong(rule)})"
        )
        asked["some", name] = f"count(*) FILTER (WHERE {there(rule[0])})"
        asked["yes", name] = f"count(*) FILTER (WHERE {there(rule[0])} AND {holds(*rule)})"
    return asked


def _of_amounts(amounts: dict[str, str]) -> dict[tuple[str, str], str]:
    """(what, amount) -> what to ask."""
    asked = {}
    for name, column in amounts.items():
        wrong = f"isinf({number(column)}) OR ({there(column)} AND {number(column)} NOT BETWEEN 0 AND {MOST})"
        asked["unfit", name] = f"min({name_of(PLACE)}) FILTER (WHERE {wrong})"
        low, high = (f"{of}({number(column)}) FILTER (WHERE {there(column)})" for of in ("min", "max"))
        asked["different", name] = f"CASE WHEN {high} > {low} THEN 2 ELSE 1 END"
    return asked


def _wrong(rule: Rule) -> str:
    """Whether a value is none that the rule judges."""
    column, compare, _ = rule
    finite = f"NOT isfinite({number(column)})"
    return f"({finite} OR {number(column)} NOT IN (0, 1))" if compare is None else finite
