"""Rows to score as they come, a piece at a time: Parquet and text files, however long."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.readers.source import Source


def pieces(source: Source, size: int) -> Iterator[pa.Table]:
    """Tables of `size` rows, the last one shorter; where one ends does not depend on how the files were written.

    Columns of text files are texts, as they stand. All files have the columns and types of the first.

    Raises:
      UserError: a file cannot be read, or has other columns; names it.
    """
    held: list[pa.Table] = []
    count, schema = 0, None
    for path, table in source.batches():
        schema = schema or table.schema
        table = _alike(path, table, schema)
        while table.num_rows:
            taken = table.slice(0, size - count)
            held.append(taken)
            count, table = count + taken.num_rows, table.slice(taken.num_rows)
            if count == size:
                yield pa.concat_tables(held).combine_chunks()
                held, count = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


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
