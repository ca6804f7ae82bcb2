"""Reading what users bring (text tables, Parquet, arrays), with errors that name the file and the place in it."""

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from em3_jax.data.canonical import words_and_codes
from em3_jax.types import UserError
from em3_jax.values import canonical

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")


def require(path: Path, hint: str = "check the path") -> Path:
    if not path.is_file():
        raise UserError(f"{path}: file missing; {hint}")
    return path


def place(path: Path, row: int, header: bool = True) -> str:
    """Where data row `row` (from 0) of a file stands: the line of a text file, the row of any other."""
    if path.suffix in PARQUET or path.suffix == ".npy":
        return f"{path} row {row} (counted from 0)"
    return f"{path} line {row + 1 + header}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that says which of `names` was probably meant."""
    names = list(map(str, names))
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}"


def require_columns(path: Path, wanted: Iterable[str], have: list[str]) -> None:
    for name in wanted:
        if name not in have:
            raise UserError(f"{path}: no column '{name}'; {nearest(name, have)}")
        if have.count(name) > 1:
            raise UserError(f"{path}: column '{name}' occurs {have.count(name)} times; rename all but one")


def require_values(path: Path, table: pa.Table, header: bool = True) -> None:
    """Refuses empty values, naming the first."""
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise UserError(f"{place(path, row, header)}: column '{name}' is empty; fill it in or drop the row")


def require_distinct(path: Path, ids: pa.ChunkedArray, header: bool = True) -> None:
    """Refuses an id that is empty or occurs twice, naming the (second) place."""
    _, codes = words_and_codes(ids)
    for row in np.flatnonzero(codes < 0):
        raise UserError(f"{place(path, row, header)}: the id is empty; fill it in or drop the row")
    first = np.unique(codes, return_index=True)[1]
    for row in np.setdiff1d(np.arange(len(codes)), first):
        raise UserError(
            f"{place(path, row, header)}: id {ids[int(row)]} occurs a second time; keep one row for each id"
        )


def read_text(
    path: Path,
    *,
    delimiter: str,
    names: list[str] | None = None,
    columns: list[str] | None = None,
    types: dict[str, pa.DataType] | None = None,
    quoted: bool = True,
    encoding: str = "utf8",
) -> pa.Table:
    """A delimited text file as a table.

    Args:
      delimiter: one character, or several (MovieLens writes `::`; such a file is small).
      names: column names, for a file without a header line.
      columns: which to read (default all).
      types: the type of a column; that of others is inferred.
      quoted: whether values may stand in double quotes.
    """
    require(path)
    parse = pa.csv.ParseOptions(
        delimiter=delimiter if len(delimiter) == 1 else "\t",
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
    )
    convert = pa.csv.ConvertOptions(
        include_columns=columns,
        column_types=types,
        timestamp_parsers=[pa.csv.ISO8601, "%Y/%m/%d %H:%M:%S", "%Y/%m/%d"],
        null_values=[""],  # "NA" and "null" may be somebody's ids
        strings_can_be_null=True,
    )

    def read(threads: bool) -> pa.Table:
        options = pa.csv.ReadOptions(column_names=names, encoding=encoding, use_threads=threads, block_size=1 << 24)
        source = path
        if len(delimiter) > 1:
            source = pa.BufferReader(path.read_bytes().replace(delimiter.encode(), b"\t"))
        return pa.csv.read_csv(source, read_options=options, parse_options=parse, convert_options=convert)

    try:
        return read(threads=True)
    except (pa.ArrowException, UnicodeDecodeError):
        try:
            return read(threads=False)  # slower, but it counts the lines
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise UserError(_readable(path, str(error).splitlines()[0], names or columns)) from None


def _readable(path: Path, message: str, names: list[str] | None) -> str:
    """pyarrow's message about a text file in this project's words."""
    if message == "Empty CSV file":
        return f"{path}: the file is empty; give a file with data"
    column, row = re.search(r"CSV column #(\d+)", message), re.search(r"Row #(\d+)", message)
    where = f"{path}" + (f" line {row[1]}" if row else "")
    if column and names and int(column[1]) < len(names):
        where += f", column '{names[int(column[1])]}'"
    return f"{where}: {re.split('conversion error to |parse error: (?:Row #[0-9]+: )?', message)[-1]}; mend the file"


def column_names(path: Path) -> list[str]:
    """The columns of a CSV, TSV or Parquet file."""
    require(path)
    if path.suffix in PARQUET:
        return open_parquet(path).schema_arrow.names
    _delimiter(path)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline()
    if not line.strip():
        raise UserError(f"{path}: the file is empty; give a file with a header line and data")
    header = pa.csv.read_csv(
        pa.BufferReader(line.encode()), parse_options=pa.csv.ParseOptions(delimiter=_delimiter(path))
    )
    return header.schema.names


def _delimiter(path: Path) -> str:
    if path.suffix not in DELIMITERS:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join([*DELIMITERS, *PARQUET])}")
    return DELIMITERS[path.suffix]


def open_parquet(path: Path) -> pq.ParquetFile:
    require(path)
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); write it again") from None


def parquet_batches(path: Path, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Columns of a Parquet file, `rows` rows at a time, so that the file may be larger than memory."""
    batches = open_parquet(path).iter_batches(rows, columns=columns)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); fetch or write it again") from None
        if batch is None:
            return
        yield batch


def read_parquet(path: Path, columns: list[str]) -> pa.Table:
    schema = pa.schema([open_parquet(path).schema_arrow.field(name) for name in columns])
    return pa.Table.from_batches(list(parquet_batches(path, columns, rows=1 << 20)), schema)


def read_table(path: Path, columns: list[str], as_text: set[str]) -> pa.Table:
    """The named columns of a CSV, TSV or Parquet file.

    Args:
      as_text: columns that name things (ids, categories): read as they stand, so that 007 and 7 are different ids; they
        come as dictionary-encoded strings, lists as lists.
    """
    require_columns(path, columns, column_names(path))
    columns = list(dict.fromkeys(columns))
    if path.suffix in PARQUET:
        table = read_parquet(path, columns)
        for index, name in enumerate(table.column_names):
            if name in as_text:
                table = table.set_column(index, name, _text(table.column(name)))
        return table
    text = pa.dictionary(pa.int32(), pa.string())
    return read_text(path, delimiter=_delimiter(path), columns=columns, types=dict.fromkeys(as_text, text))


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of any type as dictionary-encoded strings; whole floats as integers; lists unchanged."""
    if pa.types.is_nested(column.type):
        return column
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    chunks = []
    for chunk in column.unify_dictionaries().chunks:
        words = chunk.dictionary
        if pa.types.is_floating(words.type):
            values = words.to_numpy(zero_copy_only=False)
            if (values == np.floor(values)).all():
                words = words.cast(pa.int64())
        chunks.append(pa.DictionaryArray.from_arrays(chunk.indices.cast(pa.int32()), words.cast(pa.string())))
    return pa.chunked_array(chunks, type=pa.dictionary(pa.int32(), pa.string()))


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped; never unpickled."""
    require(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error}); save it with numpy.save") from None


def read_array(path: Path, rows: int, of: str) -> np.ndarray:
    """Features [rows, D] or [rows, N, D] from a .npy file, as f16 or f32, memory-mapped where no cast is needed.

    Args:
      rows: how many there must be.
      of: what the rows belong to, for the message.
    """
    array = load_array(path)
    if array.dtype.kind != "f":
        raise UserError(f"{path}: dtype is {array.dtype}; save features as float16 or float32")
    if array.ndim not in (2, 3):
        raise UserError(f"{path}: shape is {array.shape}; features must be [items, D] or [items, tokens, D]")
    if len(array) != rows:
        raise UserError(f"{path}: {len(array)} rows, but {of} has {rows}; give one row an item, in that order")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=tuple(range(1, array.ndim))))
    if len(bad):
        raise UserError(f"{place(path, bad[0])}: NaN or infinity ({len(bad)} such rows); mend the array")
    return np.asarray(array) if array.dtype in (np.float16, np.float32) else array.astype(np.float32)


def read_ids(path: Path) -> list[str]:
    """The canonical ids of a .npy file, or of a text file with one a line."""
    require(path)
    if path.suffix == ".npy":
        ids = load_array(path).ravel().tolist()
    else:
        try:
            ids = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    names = list(map(canonical, ids))
    if None in names:
        where = place(path, names.index(None), header=False)
        raise UserError(f"{where}: the id is empty; give one id for each row of the array")
    return names
