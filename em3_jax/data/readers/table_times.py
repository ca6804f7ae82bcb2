"""The column of times of somebody's table: whole numbers, dates and timestamps, or texts that say one of these."""

import datetime
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.data import times
from em3_jax.data.readers.files import File, nearest, place, text_of

OF_DATES = "milliseconds"
AUTO = "auto"
NO_TIMES = "none"
UNTIMED = ("others", "earlier")
"""Histories of a log without times: a user's other rows, or those before a row, in a drawn order."""
MILLISECOND = datetime.timedelta(milliseconds=1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

_CLOCK = r"[T ]\d{2}:?\d{2}(:?\d{2}(\.\d+)?)?"
_DATE = r"\d{4}[-/]\d{2}[-/]\d{2}"
KINDS = {
    "whole numbers": r"^\s*[-+]?\d+(\.0*)?\s*$",
    "dates without a time zone": rf"^{_DATE}({_CLOCK})?$",
    "dates with a time zone": rf"^{_DATE}{_CLOCK} ?(Z|[-+]\d{{2}}(:?\d{{2}})?)$",
}
"""What texts may say, and how they look."""


class Times(NamedTuple):
    """What the options of `table` say of times: `unit` of numbers, "auto" = by their size, "none" =
    there are no times; `format` of texts, "" = ISO 8601."""

    unit: str = AUTO
    format: str = ""


class Untimed(NamedTuple):
    """What the options of `table` say of the histories of a log without times: one of `UNTIMED`, and
    the `seed` of the order of its rows."""

    histories: str
    seed: int


def drawn_order(split: np.ndarray, seed: int) -> np.ndarray:
    """[n] i64 places of rows without times, in random order, those of training first and of test last.

    Args:
      split: [n] u8 of the rows.
    """
    place = np.empty(len(split), np.int64)
    first = 0
    for code, random in enumerate(np.random.default_rng(seed).spawn(3)):  # what a part has moves no other's order
        rows = np.flatnonzero(split == code)
        place[rows] = first + random.permutation(len(rows))
        first += len(rows)
    return place


def check(options: Times) -> None:
    """Refuses a unit that is none."""
    known = (AUTO, *times.UNITS, NO_TIMES)
    if options.unit not in known:
        raise UserError(f"--time-unit '{options.unit}': {nearest(options.unit, known)}")


def read_times(path: Path | File, name: str, column: pa.ChunkedArray, options: Times) -> tuple[np.ndarray, str]:
    """([n] i64 times, their unit): numbers as they stand, dates and timestamps as milliseconds since 1970, UTC without a zone.

    Args:
      path, name: of the file and its column, for messages.
      column: [n] without empty values.
    """
    check(options)
    if pa.types.is_dictionary(column.type):
        column = pc.cast(column, column.type.value_type)
    if options.format:
        return _formatted(path, name, column, options.format), _of_dates(path, name, options)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _texts(path, name, column)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        unit = _of_dates(path, name, options)
        zone = getattr(column.type, "tz", None)
        return column.cast(pa.timestamp("ms", zone), safe=False).cast(pa.int64()).to_numpy(), unit
    numbers = _numbers(path, name, column)
    if options.unit != AUTO:
        return numbers, options.unit
    _require_one_unit(path, name, numbers)
    return numbers, times.inferred(numbers)


def _require_one_unit(path: Path | File, name: str, numbers: np.ndarray) -> None:
    """Refuses numbers [n] i64 that are all dates, some in seconds and some in milliseconds, say: their order means nothing."""
    found = {unit: times.is_plausible(numbers, unit) for unit in times.BY_SIZE}
    count = {unit: int(there.sum()) for unit, there in found.items()}
    most = max(count, key=lambda unit: count[unit])
    if count[most] == len(numbers) or sum(count.values()) < len(numbers):
        return
    row = int(np.argmin(found[most]))
    other = next(unit for unit, there in found.items() if there[row])
    raise UserError(
        f"{place(path, row)}: time '{name}' is {numbers[row]}, a date in {other}, where most rows have {most}; write all "
        "in one unit, or pass --time-unit order if they only say which row comes first"
    )


def _of_dates(path: Path | File, name: str, options: Times) -> str:
    if options.unit not in (AUTO, OF_DATES):
        raise UserError(
            f"{path}: column '{name}' holds dates, which are kept as {OF_DATES}; leave --time-unit {options.unit} out"
        )
    return OF_DATES


def _numbers(path: Path | File, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """[n] i64 from whole numbers of any type."""
    kind = column.type
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise UserError(
            f"{path}: time '{name}' holds {kind}, e.g. '{text_of(column[0])}'; give whole numbers or ISO timestamps"
        )
    values = column.to_numpy()
    bad = np.zeros(0, np.int64)
    if values.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) >= 2.0**63))
    elif values.dtype.kind == "u":
        bad = np.flatnonzero(values > np.iinfo(np.int64).max)
    if len(bad):
        raise UserError(
            f"{place(path, bad[0])}: time '{name}' is {values[bad[0]]}; give whole numbers, e.g. milliseconds"
        )
    return values.astype(np.int64)


def _formatted(path: Path | File, name: str, column: pa.ChunkedArray, format_: str) -> np.ndarray:
    """[n] i64 milliseconds of texts, or whole numbers such as 20240501, in a format that `datetime.strptime` knows."""
    text = column.cast(pa.string()).combine_chunks().dictionary_encode()
    found, bad = [], None
    for k, word in enumerate(text.dictionary.to_pylist()):  # a value that occurs again is parsed once
        try:
            moment = datetime.datetime.strptime(word, format_)
        except re.error:  # what Python makes of a directive that occurs twice
            raise UserError(f"--time-format '{format_}': names a part of the time twice; write each once") from None
        except ValueError:
            moment, bad = EPOCH, k if bad is None else bad
        zone = moment.tzinfo or datetime.UTC
        found.append((moment.replace(tzinfo=zone) - EPOCH) // MILLISECOND)
    codes = text.indices.to_numpy()
    if bad is not None:
        row = int(np.argmax(codes == bad))
        raise UserError(
            f"{place(path, row)}: time '{name}' is '{text[row]}', which is not of the format '{format_}'; "
            "mend it or --time-format"
        )
    return np.array(found, np.int64)[codes]


def _texts(path: Path | File, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers or timestamps from texts that all say the same kind of time; else the first that is not of most others' kind."""
    text = column.cast(pa.string())
    of_kind = {kind: pc.match_substring_regex(text, pattern).to_numpy() for kind, pattern in KINDS.items()}
    most = max(of_kind, key=lambda kind: int(of_kind[kind].sum()))
    good = of_kind[most]
    if not good.any():
        raise UserError(
            f"{place(path, 0)}: time '{name}' is '{text[0]}'; give whole numbers or ISO timestamps in every row, or say what "
            "they look like with --time-format, e.g. '%d.%m.%Y %H:%M'"
        )
    if not good.all():
        row = int(np.argmin(good))
        raise UserError(
            f"{place(path, row)}: time '{name}' is '{text[row]}', where most rows have {most}; give whole numbers or ISO "
            "timestamps in every row, of one kind"
        )
    if most == "whole numbers":
        text, kind = pc.replace_substring_regex(pc.utf8_trim_whitespace(text), r"\.0*$", ""), pa.int64()
    else:  # as Arrow writes them; what is finer than a microsecond is cut off
        text = pc.replace_substring(pc.replace_substring(text, "/", "-"), " +", "+")
        text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
        text = pc.replace_substring_regex(text, r" (Z|-\d{2}(:?\d{2})?)$", r"\1")
        kind = pa.timestamp("us", "UTC" if most == "dates with a time zone" else None)
    try:
        return text.cast(kind)
    except pa.ArrowException:
        row = next(k for k, value in enumerate(text) if not _can_be(kind, value))
        if kind == pa.int64():
            raise UserError(f"{place(path, row)}: time '{name}' is {column[row]}, beyond 64 bits; mend it") from None
        raise UserError(
            f"{place(path, row)}: time '{name}' is '{column[row]}', which is no date and time; mend it"
        ) from None


def _can_be(kind: pa.DataType, value: pa.Scalar) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowException:
        return False
    return True
