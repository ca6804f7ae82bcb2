"""Columns of numbers, as files have them. Letter: m numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.data.canonical import texts
from em3_jax.data.readers.encode import field_names
from em3_jax.data.readers.files import place
from em3_jax.data.readers.source import Source

Values = dict[str, np.ndarray]
"""Field name -> [m] f64, NaN = missing."""


def read_numbers(source: Source, read: pa.Table, columns: tuple[str, ...], option: str) -> Values:
    """The columns of a table as numbers; texts that say a number are one.

    Args:
      option: that names them, for messages.

    Raises:
      UserError: a value is no number, or is infinite; or none is there.
    """
    names, _ = field_names(list(columns))
    return {names[name]: _numbers(source, name, read.column(name), option) for name in columns}


def _numbers(source: Source, name: str, column: pa.ChunkedArray, option: str) -> np.ndarray:
    """[m] f64."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    else:
        words = texts(column).combine_chunks()
        known = np.array([_parsed(word) for word in words.dictionary.to_pylist()] + [None], object)
        codes = words.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        bad = np.array([value is None for value in known[:-1]] + [False])[codes]
        if bad.any():
            row = int(np.argmax(bad))
            value = words.dictionary[int(codes[row])].as_py()
            raise UserError(
                f"{place(source, row)}: column '{name}' is '{value}', and {option} takes numbers; mend it, or name the "
                "column as a field of categories"
            )
        values = np.array([np.nan if value is None else value for value in known], np.float64)[codes]
    if np.isinf(values).any():
        row = int(np.argmax(np.isinf(values)))
        raise UserError(
            f"{place(source, row)}: column '{name}' is infinite; mend it, or leave it empty where nothing is known"
        )
    if np.isnan(values).all():
        raise UserError(f"{source}: column '{name}' has no number in any row; leave it out of {option}")
    return values


def _parsed(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
