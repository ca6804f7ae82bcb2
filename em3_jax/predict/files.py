"""Rows to score as they come, a piece at a time: Parquet and text files, however long."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError
from em3_jax.data.readers import parquet
from em3_jax.data.readers.decoding import plain_suffix
from em3_jax.data.readers.delimited import DELIMITERS
from em3_jax.data.readers.source import Source

_BATCH = 1 << 16


def pieces(source: Source, size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, the last one shorter; where one ends does not depend on how the files were written.

    Columns of text files are texts, as they stand. All files have the columns and types of the first.

    Raises:
      UserError: a file cannot be read, or has other columns; names it.
    """
    held: list[pa.Table] = []
    count = 0
    for table in _tables(source):
        while table.num_rows:
            taken = table.slice(0, size - count)
            held.append(taken)
            count, table = count + taken.num_rows, table.slice(taken.num_rows)
            if count == size:
                yield pa.concat_tables(held).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _tables(source: Source) -> Iterator[pa.Table]:
    schema: pa.Schema | None = None
    for path in source.files:
        try:
            for batch in _batches(path):
                table = pa.Table.from_batches([batch])
                if schema is None:
                    schema = table.schema
                yield _alike(path, table, schema)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]})") from None


def _alike(path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of the first file, in their order."""
    if table.schema.equals(schema):
        return table
    for name in schema.names:
        if name not in table.column_names:
            raise UserError(f"{path}: no column '{name}', which the file before has; give files of the same columns")
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as error:
        raise UserError(f"{path}: its columns are of other types than those of the file before ({error})") from None


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    suffix = plain_suffix(path)
    if suffix in parquet.SUFFIXES:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(_BATCH)
        return
    if suffix not in DELIMITERS:
        raise UserError(f"{path}: of no kind that is known; give .parquet, {', '.join(DELIMITERS)}")
    separator = DELIMITERS[suffix]
    parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse) as opened:
        names = opened.schema.names
    as_texts = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    with pa.csv.open_csv(path, parse_options=parse, convert_options=as_texts) as opened:
        yield from opened
