"""A log as a table of DuckDB, within this process."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.readers import log_engine
from em3_jax.data.readers.log_engine import PLACE, LogEngine, LogFile, UnsuitedError, name_of, text_of
from em3_jax.data.readers.source import Source

_MEGABYTES, _OF_THREAD = 640, 96
"""What DuckDB may hold before it writes to disk: at least, and of each of its threads."""


class DuckDB(LogEngine):
    """See `LogEngine`.

    Args:
      folder: for what does not fit in memory.
    """

    byte = "UTINYINT"

    def __init__(self, source: Source, files: list[LogFile], columns: list[str], folder: Path):
        super().__init__(source, files, columns)
        self._connection = duckdb.connect()
        threads = os.cpu_count() or 1
        self._connection.execute(f"SET temp_directory = {text_of(folder)}")
        self._connection.execute(f"SET memory_limit = '{max(_MEGABYTES, _OF_THREAD * threads)}MB'")
        self._connection.execute("SET enable_progress_bar = false")
        # By a file's statistics, which leave NaN out, DuckDB 2.0 takes isnan(x) for false and x < 9 for true.
        self._connection.execute("SET disabled_optimizers = 'statistics_propagation'")
        parts, rows = [], 0
        for file in files:
            shown = [f"{self.column(file, name)} AS {name_of(name)}" for name in columns]
            literal = glob.escape(str(file.path))  # a name is a pattern to DuckDB
            path = f"read_parquet({text_of(literal)}, file_row_number = true, hive_partitioning = false)"
            parts.append(f"SELECT {', '.join(shown)}, file_row_number + {rows} AS {name_of(PLACE)} FROM {path}")
            rows += file.rows
        self._connection.execute(f"CREATE VIEW log AS {' UNION ALL '.join(parts)}")

    def close(self) -> None:
        self._connection.close()

    def table(self, query: str) -> pa.Table:
        return self._fetched(query, "to_arrow_table")

    def one(self, query: str) -> tuple[Any, ...]:
        (row,) = self._fetched(query, "fetchall")
        return row

    def keep_table(self, name: str, table: pa.Table) -> None:
        self._connection.register("given", table)
        self._connection.execute(f"CREATE TEMP TABLE {name_of(name)} AS SELECT * FROM given")
        self._connection.unregister("given")

    def stream(self, query: str) -> Iterator[dict[str, np.ndarray]]:
        try:
            for batch in self._connection.sql(query).to_arrow_reader(log_engine.BATCH):
                yield {
                    name: column.to_numpy(zero_copy_only=False)
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
        except (duckdb.Error, pa.ArrowException) as error:
            raise self._refused(error) from None

    def milliseconds(self, column: str, kind: pa.DataType) -> str:
        if getattr(kind, "unit", "") == "ns":  # which DuckDB 2.0 has no epoch_ms of
            return f"epoch_ns({column}) // 1000000"
        if getattr(kind, "unit", "") == "us":  # which it rounds
            return f"epoch_us({column}) // 1000"
        return f"epoch_ms({f'CAST({column} AS TIMESTAMP)' if pa.types.is_date32(kind) else column})"

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
