"""A log as a table of Spark: of this machine, of a cluster, or of Spark Connect, where it outgrows one machine.

What is asked is what DuckDB is asked. Results come as sorted Parquet parts in the working folder, which, like the log, all of
Spark's machines have to see under the same path.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError
from em3_jax.data.readers import log_engine
from em3_jax.data.readers.log_engine import PLACE, LogEngine, LogFile, UnsuitedError
from em3_jax.data.readers.parquet import parquet_batches
from em3_jax.data.readers.source import Source

_SETTINGS = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.ansi.doubleQuotedIdentifiers": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
_FUNCTIONS = {"isfinite": "abs(x) <= 1.7976931348623157e308", "isinf": "abs(x) = CAST('Infinity' AS DOUBLE)"}
_OF_VALUES = (
    "ArithmeticException",
    "NumberFormatException",
    "DateTimeException",
    "AnalysisException",
    "ParseException",
)
"""What Spark raises where SQL has no place for a value, or no name for a column."""


class Spark(LogEngine):
    """See `LogEngine`.

    Args:
      folder: for results.
      address: a master such as local[*] or spark://host:7077, or sc://host of Spark Connect; "" = SPARK_REMOTE, or what
        Spark's own configuration says, or this machine.

    Raises:
      UserError: pyspark or Java is missing, or Spark does not start.
    """

    byte = "SMALLINT"

    def __init__(self, source: Source, files: list[LogFile], columns: list[str], folder: Path, address: str):
        super().__init__(source, files, columns)
        if any(set('`"') & set(name) for name in columns):
            raise UnsuitedError
        self._folder, self._results = folder.absolute(), 0
        self._session, self._is_own = _session(address, folder)
        self._before = {name: self._session.conf.get(name, None) for name in _SETTINGS}
        for name, value in _SETTINGS.items():
            self._session.conf.set(name, value)
        for name, value in _FUNCTIONS.items():
            self._session.sql(f"CREATE OR REPLACE TEMPORARY FUNCTION {name}(x DOUBLE) RETURNS BOOLEAN RETURN {value}")
        log, rows = None, 0
        for file in files:
            part = self._of_file(file, columns, rows)
            log, rows = part if log is None else log.unionAll(part), rows + file.rows
        assert log is not None  # there are files
        log.createOrReplaceTempView("log")

    def _of_file(self, file: LogFile, columns: list[str], before: int) -> Any:
        """The rows of a file, numbered from `before` on."""
        from pyspark.sql import functions

        read = self._session.read.parquet(_uri(file.path))
        shown = [
            functions.expr(self.column(file, name)) if name in file.kinds else functions.lit(file.values[name])
            for name in columns
        ]
        shown = [column.alias(name) for column, name in zip(shown, columns, strict=True)]
        return read.select(*shown, (functions.col("_metadata.row_index") + before).alias(PLACE))

    def close(self) -> None:
        if self._is_own:
            self._session.stop()
            return
        for name, value in self._before.items():
            self._session.conf.unset(name) if value is None else self._session.conf.set(name, value)

    def table(self, query: str) -> pa.Table:
        parts = self._written(query)
        tables = [pq.read_table(part) for part in parts]
        shutil.rmtree(parts[0].parent)
        return pa.concat_tables(tables)

    def keep_table(self, name: str, table: pa.Table) -> None:
        self._results += 1
        path = self._folder / f"kept-{self._results}.parquet"
        pq.write_table(table, path)
        self._session.read.parquet(_uri(path)).createOrReplaceTempView(f"`{name}`")

    def stream(self, query: str) -> Iterator[dict[str, np.ndarray]]:
        for part in self._written(query):
            for batch in parquet_batches(part, pq.read_schema(part).names, log_engine.BATCH):
                columns = (column.to_numpy(zero_copy_only=False) for column in batch.columns)
                yield dict(zip(batch.schema.names, columns, strict=True))
            part.unlink()

    def milliseconds(self, column: str, kind: pa.DataType) -> str:
        if getattr(kind, "unit", "") == "ns":
            return f"({column} div 1000000)"
        return f"(unix_micros(CAST({column} AS TIMESTAMP)) div 1000)"

    def _written(self, query: str) -> list[Path]:
        """The files of a query's rows, in their order."""
        self._results += 1
        folder = self._folder / f"result-{self._results}"
        try:
            self._session.sql(query).write.parquet(f"file://{folder}", compression="zstd")
        except Exception as error:  # of Spark, of Java behind it, or of the network between
            raise self._refused(error) from None
        parts = sorted(folder.glob("part-*.parquet"))
        if not parts:
            raise UserError(f"{folder}: Spark's machines wrote nothing here; give an --out that all of them see")
        return parts

    def _refused(self, error: Exception) -> Exception:
        said = str(error)
        if any(kind in said[:2000] or kind == type(error).__name__ for kind in _OF_VALUES):
            return UnsuitedError()
        return UserError(
            f"{self.source}: Spark: {_first_line(said)}; is the log whole, and is there room on the disks?"
        )


def _session(address: str, folder: Path) -> tuple[Any, bool]:
    """(a session of Spark, whether it is ours and to be stopped)."""
    try:
        from pyspark.sql import SparkSession
    except ModuleNotFoundError as error:
        raise UserError(f"--engine spark: this needs {error.name}; pip install 'em3_jax[spark]'") from None
    running = SparkSession.getActiveSession()
    if running is not None and not address:
        return running, False
    remote = address or os.environ.get("SPARK_REMOTE", "")
    if not remote.startswith("sc://") and not _has_java():
        raise UserError(
            "--engine spark: there is no Java; install Java 17 or later and set JAVA_HOME, or use --engine duckdb"
        )
    builder = SparkSession.builder
    if remote.startswith("sc://"):
        builder = builder.remote(remote)
    elif remote:
        builder = builder.master(remote)
    if not remote.startswith("sc://"):
        place = str(folder.absolute())
        local = {"spark.local.dir": place, "spark.sql.warehouse.dir": place, "spark.ui.showConsoleProgress": "false"}
        for name, value in local.items():
            builder = builder.config(name, value)
    try:
        session = builder.appName("em3 prepare table").getOrCreate()
        if not remote.startswith("sc://"):
            session.sparkContext.setLogLevel("ERROR")
    except Exception as error:
        where = f" at {remote}" if remote else ""
        raise UserError(f"--engine spark: Spark{where} does not start ({_first_line(str(error))})") from None
    return session, running is None


def _has_java() -> bool:
    home = os.environ.get("JAVA_HOME", "")
    return bool(shutil.which("java")) if not home else (Path(home) / "bin" / "java").exists()


def _uri(path: Path) -> str:
    """A file, whose name is a pattern to Spark."""
    return "file://" + re.sub(r"([\\{}\[\]*?^])", r"\\\1", str(path.absolute()))


def _first_line(said: str) -> str:
    """Of what went wrong; what went wrong in Java stands behind what Python called."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["no reason given"]
    return next((line.removeprefix(": ") for line in lines if line.startswith(": ")), lines[0])[:200]
