"""A log in Parquet files as a table of DuckDB, which numbers ids and sorts in bounded memory, however long the log."""

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.data import canonical
from em3_jax.data.readers.source import Source

PLACE = "em3 place"
"""The column that numbers the rows of all files, from 0."""
BATCH = 1 << 20
_MEGABYTES, _OF_THREAD = 640, 96
"""What DuckDB may hold before it writes to disk: at least, and of each of its threads."""


class UnsuitedError(Exception):
    """The log cannot be read this way.

    Args:
      fault: what is wrong with the data, if it is that.
    """

    def __init__(self, fault: str = ""):
        super().__init__(fault)
        self.fault = fault


class Words(NamedTuple):
    """The different values of a column, in the order of the rows in which they stand first.

    Attributes:
      key: [m] as they stand.
      form: [m] canonical texts, see `data.canonical`; null = it is no value.
      first, rows, events: [m] i64 the first row of each; in how many rows, and events, it stands.
    """

    key: pa.Array
    form: pa.Array
    first: np.ndarray
    rows: np.ndarray
    events: np.ndarray

    def numbered(self, order: str) -> tuple[pa.Array, np.ndarray]:
        """(the texts [k], each once; [m] i32 the number of each key's, -1 where it is no value).

        Args:
          order: of the texts: "first" = of the rows in which they stand, "sorted" = by their bytes.
        """
        if order == "first" and pa.types.is_integer(self.key.type) and not self.form.null_count:
            return self.form, np.arange(len(self.form), dtype=np.int32)  # each has a text of its own
        texts = pc.unique(self.form.drop_null())
        texts = texts.take(pc.sort_indices(texts)) if order == "sorted" else texts
        number = pc.index_in(self.form, value_set=texts).fill_null(-1)
        return texts, number.to_numpy(zero_copy_only=False).astype(np.int32)


class LogFile(NamedTuple):
    """A Parquet file of a log.

    Attributes:
      path: where it lies.
      kinds: column -> its type; of one without any value null, whatever it is stored as.
      values: column -> its one value, of what the names of folders say.
      rows: how many it has.
    """

    path: Path
    kinds: Mapping[str, pa.DataType]
    values: Mapping[str, str | None]
    rows: int


class LogEngine:
    """The columns of a log as the relation `log`; a context manager.

    Args:
      source: the log, to be named in messages.
      files: what it is read from.
      columns: those that are read.
      folder: for what does not fit in memory.

    Raises:
      UnsuitedError: not all files are of the same types.
    """

    def __init__(self, source: Source, files: list[LogFile], columns: list[str], folder: Path):
        self.source, self.files, self.types = source, files, _types(files, columns)
        self._connection = duckdb.connect()
        threads = os.cpu_count() or 1
        self._connection.execute(f"SET temp_directory = {_text(folder)}")
        self._connection.execute(f"SET memory_limit = '{max(_MEGABYTES, _OF_THREAD * threads)}MB'")
        self._connection.execute("SET enable_progress_bar = false")
        # By a file's statistics, which leave NaN out, DuckDB 2.0 takes isnan(x) for false and x < 9 for true.
        self._connection.execute("SET disabled_optimizers = 'statistics_propagation'")
        parts, rows = [], 0
        for file in files:
            shown = [f"{self._column(file, name)} AS {name_of(name)}" for name in columns]
            literal = glob.escape(str(file.path))  # a name is a pattern to DuckDB
            path = f"read_parquet({_text(literal)}, file_row_number = true, hive_partitioning = false)"
            parts.append(f"SELECT {', '.join(shown)}, file_row_number + {rows} AS {name_of(PLACE)} FROM {path}")
            rows += file.rows
        self._connection.execute(f"CREATE VIEW log AS {' UNION ALL '.join(parts)}")

    def _column(self, file: LogFile, name: str) -> str:
        """A column of a file in the type that it has in all of them."""
        if name not in file.kinds:
            return _text(file.values[name])
        own, kind = file.kinds[name], self.types[name]
        if own == kind:
            return name_of(name)
        return "NULL" if pa.types.is_null(own) else f"CAST({name_of(name)} AS DOUBLE)"

    def __enter__(self) -> "LogEngine":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self._connection.close()

    def one(self, query: str) -> tuple[Any, ...]:
        """The one row that a query gives."""
        (row,) = self._fetched(query, "fetchall")
        return row

    def words(self, column: str, is_event: str = "false") -> Words:
        """The values of a column.

        Args:
          is_event: a condition.
        """
        name, place = name_of(column), name_of(PLACE)
        found = self._fetched(
            f"SELECT {name} AS key, min({place}) AS first, count(*) AS rows, count(*) FILTER (WHERE {is_event}) AS events "
            "FROM log GROUP BY 1 ORDER BY first",
            "to_arrow_table",
        )
        key = found.column("key").combine_chunks()
        numbers = [found.column(one).to_numpy() for one in ("first", "rows", "events")]
        return Words(key, canonical.forms_of(key), *numbers)

    def keep(self, name: str, words: Words, numbers: np.ndarray) -> None:
        """Makes a relation `name` (key, number) of the values of a column and their numbers [m] i32."""
        table = pa.table({"key": words.key, "number": pa.array(numbers, pa.int32())})
        self._connection.register("given", table)
        self._connection.execute(f"CREATE TEMP TABLE {name_of(name)} AS SELECT key, number FROM given")
        self._connection.unregister("given")

    def stream(self, query: str) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a query, some at a time: column -> [m]."""
        try:
            for batch in self._connection.sql(query).to_arrow_reader(BATCH):
                yield {
                    name: column.to_numpy(zero_copy_only=False)
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
        except (duckdb.Error, pa.ArrowException) as error:
            raise self._refused(error) from None

    def _fetched(self, query: str, how: str) -> Any:
        """All rows of a query at once."""
        try:
            return getattr(self._connection.sql(query), how)()
        except duckdb.Error as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> Exception:
        """What to raise: a value that SQL has no place for is read in memory."""
        if isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException | duckdb.BinderException):
            return UnsuitedError()
        said = str(error).splitlines()[0][:200]
        return UserError(f"{self.source}: {said}; is it whole, and is there room on the disk of --out?")


def name_of(column: str) -> str:
    """A name as SQL has it."""
    return '"' + column.replace('"', '""') + '"'


def _text(value: object) -> str:
    """A text as SQL has it; NULL for None."""
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


def _types(files: list[LogFile], columns: list[str]) -> dict[str, pa.DataType]:
    """Column -> its type in all files; of columns of folder names text. Whole numbers beside floats are floats."""
    types: dict[str, pa.DataType] = {}
    for name in columns:
        kinds = {file.kinds.get(name, pa.string()) for file in files}
        kinds = {kind for kind in kinds if not pa.types.is_null(kind)} or {pa.null()}
        kinds = {pa.float64()} if kinds == {pa.int64(), pa.float64()} else kinds
        if len(kinds) > 1:
            raise UnsuitedError
        (types[name],) = kinds
    return types
