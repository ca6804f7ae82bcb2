"""Untidy inputs for the tests of the readers: what hypothesis draws of columns, types, encodings and layouts."""

import decimal
import os
from pathlib import Path

import pyarrow as pa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset

NUMBERS = ("int8", "int64", "float32", "float64", "decimal", "text", "large text", "view", "enum", "binary", "struct")


def generated(examples: int) -> settings:
    """The same inputs in every run; EM3_CAMPAIGN=2000 tries as many others, and makes none smaller."""
    common = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
    campaign = int(os.environ.get("EM3_CAMPAIGN", "0"))
    if campaign:
        return settings(max_examples=campaign, phases=[Phase.generate], **common)
    return settings(max_examples=examples, derandomize=True, **common)


def dataset_or_one_line(make) -> Dataset | str:
    """What `make` gives, or the line it refuses its input with; any other exception fails the test."""
    try:
        return make()
    except UserError as error:
        message = " ".join(str(error).split())  # as a command shows it
        assert message and len(message) < 1000, message
        return message


def as_type(values: list[int | None], kind: str) -> pa.Array:
    """Whole numbers as a column of the type that some writer gives them."""
    if kind in ("int8", "int64", "float32", "float64"):
        return pa.array(values, {"int8": pa.int8(), "int64": pa.int64(), "float32": pa.float32(),
                                 "float64": pa.float64()}[kind])  # fmt: skip
    if kind == "decimal":
        return pa.array([None if v is None else decimal.Decimal(v) for v in values], pa.decimal128(20, 3))
    if kind == "struct":
        return pa.StructArray.from_arrays([pa.array(values, pa.int64())], ["only"])
    texts = [None if v is None else str(v) for v in values]
    if kind == "binary":
        return pa.array([t and t.encode() for t in texts], pa.binary())
    types = {"text": pa.string(), "large text": pa.large_string(), "view": pa.string_view(),
             "enum": pa.dictionary(pa.int8(), pa.string())}  # fmt: skip
    return pa.array(texts, types[kind])


def lines(rows: list[list], delimiter: str, end: str = "\n") -> str:
    return end.join(delimiter.join("" if cell is None else str(cell) for cell in row) for row in rows) + end


ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "cp1252"])
ENDS = st.sampled_from(["\n", "\r\n", "\n\n", "\r"])


def encoded(path: Path, text: str, encoding: str) -> Path:
    path.write_bytes(text.encode(encoding, "replace"))
    return path
