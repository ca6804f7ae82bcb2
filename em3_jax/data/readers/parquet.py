"""One Parquet file: its columns as Spark, DuckDB, Polars, pandas and others write them, in plain types."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError
from em3_jax.data import canonical

SUFFIXES = (".parquet", ".pq")
_ROWS, _FEW = 1 << 20, 1 << 16
_WHOLE = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}  # below, each whole number has its own
_MOMENTS = pa.timestamp("us"), pa.timestamp("us", "UTC")


class ParquetFile:
    """A Parquet file with its columns' names."""

    def __init__(self, path: Path):
        self.path, self.file = path, open_parquet(path)
        self.notes: list[str] = []
        self.names = self.file.schema_arrow.names
        self.rows = self.file.metadata.num_rows

    def __str__(self) -> str:
        return str(self.path)

    def check_header(self) -> None:
        """The file says itself what its columns are called."""

    def headless(self) -> str:
        return ""

    def other_delimiter(self) -> str:
        return ""

    def place(self, row: int) -> str:
        """Where row number `row` (from 0) stands, for messages."""
        return f"{self.path} row {row} (counted from 0)"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All columns as they stand, some rows at a time."""
        return parquet_batches(self.path, self.names, rows=_FEW)

    def read(self, columns: list[str], texts: set[str]) -> pa.Table:
        """The named columns; but those of `texts` as numbers and times, where that is what they hold."""
        fields = [self.file.schema_arrow.field(name) for name in columns]
        batches = list(parquet_batches(self.path, columns, rows=_ROWS))
        table = pa.Table.from_batches(batches, pa.schema(fields))
        if table.num_rows != self.rows:
            raise UserError(f"{self.path}: {self.rows} rows by its footer, but {table.num_rows} in it; write it again")
        for k, name in enumerate(columns):
            column = canonical.plain(table.column(k))
            if name in texts and _is_coarse(column):
                self.notes.append(
                    f"{self.path.name}: column '{name}' has floats so large that different whole "
                    "numbers may have become one; write it as integers of 64 bits or as text"
                )
            table = table.set_column(k, name, column if name in texts else as_number(column))
        return table


def _is_coarse(column: pa.ChunkedArray) -> bool:
    """Whether floats stand here that may have been several whole numbers.

    So DuckDB writes sums and other integers of 128 bits, and pandas integers beside a missing one.
    """
    if canonical.is_list(column.type):
        return _is_coarse(pc.list_flatten(column))
    bound = _WHOLE.get(column.type)
    return bool(bound and pc.any(pc.greater_equal(pc.abs(column), bound)).as_py())


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file, its footer read."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


def parquet_batches(path: Path, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, `rows` rows at a time, so that the file may be larger than memory."""
    batches = open_parquet(path).iter_batches(rows, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"{path}: damaged ({reason}); fetch or write it again") from None
        if batch is None:
            return
        yield batch.select(columns)


def read_parquet(path: Path, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file as they stand in it."""
    schema = pa.schema([open_parquet(path).schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(list(parquet_batches(path, columns, rows=_ROWS)), schema)


def as_number(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of decimals, categories or texts as the numbers, truth values or times it holds; else as it is."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_number(column.cast(kind.value_type))
    if pa.types.is_decimal(kind):
        return _of_decimals(column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return column
    text = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
    for number in (pa.int64(), pa.float64(), pa.bool_(), *_MOMENTS):
        try:
            return text.cast(number)
        except pa.ArrowException:
            continue
    return text


def _of_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole numbers where all are, in 64 bits; else floats."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowException:
        values = [None if v is None else float(v) for v in column.to_pylist()]
        return pa.chunked_array([pa.array(values, pa.float64())])


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """A column as texts [n], each as it stands: lists with commas between their values; null where there is none.

    Raises:
      ValueError: it has neither texts nor lists of them.
    """
    column = canonical.plain(column)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = column.type
    if canonical.is_list(kind):
        if not canonical.is_single(kind.value_type):
            raise ValueError
        words = pa.chunked_array([pc.list_flatten(column)])
        size = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(size)]), pa.int32())
        rows = pa.ListArray.from_arrays(offsets, as_text(words).fill_null(""), mask=column.is_null())
        return pc.binary_join(rows, ", ")
    if not canonical.is_single(kind):
        raise ValueError
    if pa.types.is_dictionary(kind):
        return as_text(column.dictionary).take(column.indices)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    return canonical.forms_of(column)
