"""One canonical form of an id or a field's value, whatever file, service or language it comes from.

Parquet has numbers where CSV has text, JSON has one kind of number, a column with a gap turns whole
numbers into floats: 5, 5.0, "5.0" and Decimal("5.00") are the same value, and so are True, "true"
and "TRUE". Vocabularies and ids hold the form that `canonical` gives, and whatever is looked up in
them is brought to it first.
"""

import datetime
import decimal
import math
import re
import uuid
from typing import Any

import numpy as np

WHOLE_TEXT = r"^([+-]?(?:0|[1-9]\d*))\.0+$"
"""A whole number with a fraction of zeros. "007", "1.10" and "1e3" are names, and stay."""
TRUTHS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_WHOLE_TEXT = re.compile(WHOLE_TEXT, re.ASCII)


def canonical(value: Any) -> str | None:
    """The canonical text of a single value; None where there is none (None, NaN, the empty text).

    Whole numbers of any type have no fraction, others the shortest text that reads back as the same
    number of their width; truth values are "true" and "false"; bytes are UTF-8 text, else a UUID
    (16 bytes, that as text are not printable either), else hexadecimal digits; dates and times are ISO 8601.
    """
    if isinstance(value, str):
        if value in TRUTHS:
            return TRUTHS[value]
        whole = _WHOLE_TEXT.fullmatch(value)
        return _signed(whole[1]) if whole else value or None
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return _whole(int(value))
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        is_whole = math.isfinite(value) and value == math.floor(value)
        return str(int(value)) if is_whole else str(value)
    if isinstance(value, decimal.Decimal):
        if value.is_nan():
            return None
        is_whole = value.is_finite() and value == value.to_integral_value()
        return _whole(int(value)) if is_whole else f"{value.normalize():f}"
    if isinstance(value, bytes):
        return _of_bytes(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value) or None


def _whole(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # of more than 4,300 digits, which Python writes in no decimal form
        return f"{value:#x}"


def _signed(digits: str) -> str:
    digits = digits.removeprefix("+")
    return "0" if digits == "-0" else digits


def _of_bytes(value: bytes) -> str | None:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = None
    if len(value) == 16 and not (text and text.isprintable()):  # few UUIDs are UTF-8, none is a text
        return str(uuid.UUID(bytes=value))
    return value.hex() if text is None else canonical(text)
