"""A log as a table of an engine that speaks SQL, which numbers ids and sorts in bounded memory, however long the log."""

import abc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.progress import Progress
from em3_jax.data import canonical
from em3_jax.data.readers.source import Source

PLACE = "em3 place"
"""The column that numbers the rows of all files, from 0."""
BATCH = 1 << 20


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


class LogEngine(abc.ABC):
    """The columns of a log as the relation `log`, which is asked in SQL; a context manager.

    What is asked is the same for all engines but for the attributes here. They have the functions isfinite and isinf.

    Args:
      source: the log, to be named in messages.
      files: what it is read from.
      columns: those that are read.

    Attributes:
      types: column -> its type in all files.
      progress: of the rows whose values are looked at.
      byte: the type of whole numbers up to 255.

    Raises:
      UnsuitedError: not all files are of the same types.
    """

    byte: str

    def __init__(self, source: Source, files: list[LogFile], columns: list[str]):
        self.source, self.files, self.types = source, files, _types(files, columns)
        self.progress = Progress(0, unit="row", quiet=True)

    def __enter__(self) -> "LogEngine":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.progress.close()
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Gives back what it holds."""

    @abc.abstractmethod
    def table(self, query: str) -> pa.Table:
        """All rows of a query."""

    @abc.abstractmethod
    def keep_table(self, name: str, table: pa.Table) -> None:
        """Makes a relation of a table."""

    @abc.abstractmethod
    def stream(self, query: str) -> Iterator[dict[str, np.ndarray]]:
        """The rows of a query, some at a time: column -> [m]."""

    @abc.abstractmethod
    def milliseconds(self, column: str, kind: pa.DataType) -> str:
        """Milliseconds since 1970, in SQL, of a column of dates or timestamps; what is finer is cut off."""

    def one(self, query: str) -> tuple[Any, ...]:
        """The one row that a query gives."""
        (row,) = self.table(query).to_pylist()
        return tuple(row.values())

    def words(self, column: str, is_event: str = "false") -> Words:
        """The values of a column.

        Args:
          is_event: a condition.
        """
        name, place = name_of(column), name_of(PLACE)
        found = self.table(
            f"SELECT {name} AS key, min({place}) AS first, count(*) AS rows, count(*) FILTER (WHERE {is_event}) AS events "
            "FROM log GROUP BY 1 ORDER BY first"
        )
        self.progress.advance(self.source.rows)
        key = found.column("key").combine_chunks()
        numbers = [found.column(one).to_numpy() for one in ("first", "rows", "events")]
        return Words(key, canonical.forms_of(key), *numbers)

    def keep(self, name: str, words: Words, numbers: np.ndarray) -> None:
        """Makes a relation `name` (key, number) of the values of a column and their numbers [m] i32."""
        self.keep_table(name, pa.table({"key": words.key, "number": pa.array(numbers, pa.int32())}))

    def column(self, file: LogFile, name: str) -> str:
        """A column of a file, in SQL, in the type that it has in all of them."""
        if name not in file.kinds:
            return text_of(file.values[name])
        own, kind = file.kinds[name], self.types[name]
        if own == kind:
            return name_of(name)
        return "NULL" if pa.types.is_null(own) else f"CAST({name_of(name)} AS DOUBLE)"


def name_of(column: str) -> str:
    """A name as SQL has it."""
    return '"' + column.replace('"', '""') + '"'


def text_of(value: object) -> str:
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
