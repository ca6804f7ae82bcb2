"""Frames of pandas, Polars, Arrow and others in place of a file, by Arrow's C stream (the PyCapsule interface)."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError

_PLAIN = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


@runtime_checkable
class Frame(Protocol):
    """What gives its rows as an Arrow stream: frames of pandas (from 2.2 on) and Polars, tables and readers of Arrow."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """A PyCapsule of an ArrowArrayStream."""


def write(frame: Frame, path: Path, shown: str) -> Path:
    """Writes a frame as a Parquet file, some rows at a time, and returns its path.

    Args:
      shown: what to call it in messages.
    """
    try:
        reader = pa.RecordBatchReader.from_stream(frame)
        schema = pa.schema([field.with_type(_plain(field.type)) for field in reader.schema])
        with pq.ParquetWriter(path, schema) as writer:
            for batch in reader:
                columns = map(_decoded, batch.columns, schema.types)
                writer.write_batch(pa.RecordBatch.from_arrays(list(columns), schema=schema))
    except (pa.ArrowException, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{shown}: is no table of plain columns ({reason}); write it to a Parquet file") from None
    return path


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type that older readers of Parquet files know as well; of categories as Polars has them that of their words."""
    words = kind.value_type if pa.types.is_dictionary(kind) else kind
    return _PLAIN.get(words, kind)


def _decoded(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):  # of views, which Arrow can neither cast nor decode
        return column.dictionary.cast(kind).take(column.indices)
    return column.cast(kind)
