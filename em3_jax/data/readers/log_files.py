"""The files of a log as an engine reads them: Parquet files, and texts that have been made such, a piece at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.core.progress import Progress
from em3_jax.data.readers.delimited import TextFile
from em3_jax.data.readers.files import require_columns
from em3_jax.data.readers.log_engine import PLACE, LogFile, UnsuitedError
from em3_jax.data.readers.parquet import ParquetFile
from em3_jax.data.readers.source import Source


def log_files(source: Source, columns: list[str], ids: Iterable[str], folder: Path) -> list[LogFile]:
    """What a log is read from.

    Args:
      columns: those that are read.
      ids: those that hold ids and categories, which are read as they stand.
      folder: for what is made of texts.

    Raises:
      UnsuitedError: the columns of a file cannot be told apart in SQL, or a column of a text changes its type within.
    """
    files: list[LogFile] = []
    texts = [part for part in source.parts if isinstance(part, TextFile)]
    progress = Progress(sum(part.rows for part in texts), unit="row", quiet=not texts, doing="reading texts")
    for part, values in zip(source.parts, source.partitions, strict=True):
        if any(name not in part.names and name not in values for name in columns):
            raise UnsuitedError
        own, given = [name for name in columns if name in part.names], {k: v for k, v in values.items() if k in columns}
        require_columns(part, own, part.names)
        given = {name: value for name, value in given.items() if name not in own}
        if isinstance(part, ParquetFile):
            files.append(_of_parquet(part, own, given))
        else:
            files += _of_text(part, own, set(ids), given, folder / f"text-{len(files)}", progress)
    progress.close()
    if not files:
        raise UnsuitedError(f"{source}: there are no rows; is it the right file?")
    return files


def _of_parquet(part: ParquetFile, columns: list[str], values: Mapping[str, str | None]) -> LogFile:
    schema = part.file.schema_arrow
    _require_apart([*schema.names, *values])
    kinds = {}
    for name in columns:
        kind = schema.field(name).type
        kinds[name] = kind.value_type if pa.types.is_dictionary(kind) else kind
    return LogFile(part.path, kinds, values, part.rows)


def _require_apart(names: list[str]) -> None:
    """SQL does not tell names by their case."""
    folded = [name.casefold() for name in names]
    if len(set(folded)) < len(folded) or {"file_row_number", PLACE} & set(folded):
        raise UnsuitedError


def _of_text(
    part: TextFile, columns: list[str], ids: set[str], values: Mapping[str, str | None], path: Path, progress: Progress
) -> list[LogFile]:
    """Files of a text's columns, one after the other; where a column is found to hold more than before, another begins.

    A text says nothing of types, so that of a column is known when all of it has been read: whole numbers may become
    floats, and empty cells anything.

    Args:
      path: of the files, but for their number and suffix.
    """
    _require_apart([*columns, *values])
    made: list[LogFile] = []
    writer: pq.ParquetWriter | None = None
    kinds: dict[str, pa.DataType] = {}
    try:
        for table in part.pieces(columns, ids & set(columns)):
            table, looser = _as_before(table, kinds)
            if writer is None or looser:
                if writer is not None:
                    writer.close()
                kinds = {name: table.schema.field(name).type for name in columns}
                made.append(LogFile(path.with_name(f"{path.name}-{len(made)}.parquet"), _plain(kinds), values, 0))
                schema = pa.schema([(name, _stored(kind)) for name, kind in kinds.items()])
                writer = pq.ParquetWriter(made[-1].path, schema, compression="zstd", compression_level=1)
            writer.write_table(table.cast(schema))
            made[-1] = made[-1]._replace(rows=made[-1].rows + table.num_rows)
            progress.advance(table.num_rows)
    finally:
        if writer is not None:
            writer.close()
    return made


def _as_before(table: pa.Table, kinds: Mapping[str, pa.DataType]) -> tuple[pa.Table, bool]:
    """(a piece in the types of those before, whether one of its own is looser than theirs)."""
    looser = False
    for k, field in enumerate(table.schema):
        kind = kinds.get(field.name, field.type)
        if field.type == kind:
            continue
        if pa.types.is_null(field.type) or (field.type, kind) == (pa.int64(), pa.float64()):
            table = table.set_column(k, field.name, table.column(k).cast(kind, safe=False))  # rounded, as parsed
        elif pa.types.is_null(kind) or (kind, field.type) == (pa.int64(), pa.float64()):
            looser = True
        else:
            raise UnsuitedError
    return table, looser


def _plain(kinds: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    return {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in kinds.items()}


def _stored(kind: pa.DataType) -> pa.DataType:
    """What a type is written as: a column without a value as whole numbers, of which none is there."""
    return pa.int8() if pa.types.is_null(kind) else kind
