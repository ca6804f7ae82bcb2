"""Reading what users bring (text tables, Parquet, arrays), with errors that name the file and the place in it."""

import difflib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.data import canonical
from em3_jax.data.readers.delimited import AS_USUAL, TextFile, TextFormat
from em3_jax.data.readers.parquet import SUFFIXES, ParquetFile
from em3_jax.data.readers.source import Source, as_source

File = Source | TextFile | ParquetFile
MISSING = ("nan", "na", "n/a", "<na>", "null", "none")
"""What programs write for a number that is missing."""


def require(path: Path, hint: str = "check the path") -> Path:
    if not path.is_file():
        kind = "a folder, no file" if path.is_dir() else "file missing"
        raise UserError(f"{path}: {kind}; {hint}")
    return path


def place(path: Path | File, row: int | np.integer, header: bool = True) -> str:
    """Where data row `row` (from 0) stands: the line of a text file, the row of any other."""
    if not isinstance(path, Path):
        return path.place(int(row))
    if path.suffix in SUFFIXES or path.suffix == ".npy":
        return f"{path} row {row} (counted from 0)"
    return f"{path} line {row + 1 + header}"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint that says which of `names` was probably meant."""
    names = list(map(str, names))
    close = difflib.get_close_matches(name, names, n=1) or [n for n in names if n.lower() == name.lower()]
    return f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}"


def require_columns(path: Path | File, wanted: Iterable[str], have: list[str]) -> None:
    for name in wanted:
        if name not in have:
            raise UserError(f"{path}: no column '{name}'; {nearest(name, have)}")
        if have.count(name) > 1:
            raise UserError(f"{path}: column '{name}' occurs {have.count(name)} times; rename all but one")


def text_of(value: pa.Scalar) -> str:
    """A value of a file in a message; Python has no time that is finer than a microsecond."""
    try:
        return str(value)
    except ValueError:
        return str(value.cast(pa.int64()))


def require_values(path: Path | File, table: pa.Table, header: bool = True) -> None:
    """Refuses empty values, naming the first."""
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise UserError(f"{place(path, row, header)}: column '{name}' is empty; fill it in or drop the row")


def require_numbers(path: Path | File, name: str, ids: canonical.Column, header: bool = True) -> None:
    """Refuses a word for a missing number where all other ids are numbers: no user is called `nan` among 1, 2, 3."""
    words, codes = canonical.words_and_codes(ids)
    if not pa.types.is_string(words.type):
        return
    missing = pc.is_in(pc.utf8_lower(words), pa.array(MISSING)).to_numpy(zero_copy_only=False).astype(bool)
    number = pc.match_substring_regex(words, r"^[+-]?\d+(\.\d+)?$").fill_null(True).to_numpy(zero_copy_only=False)
    if not missing.any() or not number.any() or not (missing | number).all():
        return
    row = int(np.argmax(np.isin(codes, np.flatnonzero(missing))))
    raise UserError(
        f"{place(path, row, header)}: column '{name}' is '{ids[row]}', where all others are numbers; fill it in or drop the row"
    )


def require_distinct(path: Path | File, ids: canonical.Column, header: bool = True) -> None:
    """Refuses an id that is empty or occurs twice in whatever form, naming the (second) place."""
    codes = canonical.words_and_codes(canonical.texts(ids))[1]
    for row in np.flatnonzero(codes < 0):
        raise UserError(f"{place(path, row, header)}: the id is empty; fill it in or drop the row")
    require_numbers(path, "id", canonical.texts(ids), header)
    first = np.unique(codes, return_index=True)[1]
    for row in np.setdiff1d(np.arange(len(codes)), first):
        before = int(np.argmax(codes == codes[row]))
        one, other = str(ids[before]), str(ids[int(row)])
        as_ = "" if one == other else f" (it is the same as {one}, in {place(path, before, header)})"
        raise UserError(f"{place(path, row, header)}: id {other} occurs a second time{as_}; keep one row for each id")


def column_names(path: Path | File) -> list[str]:
    """The columns of a table; refuses a text whose first line is no header, or has another delimiter."""
    source = as_source(path) if isinstance(path, Path | Source) else path
    for part in source.parts if isinstance(source, Source) else [source]:
        part.check_header()
        other = part.other_delimiter()
        if other:
            shown = "tab" if other == "\t" else other
            raise UserError(
                f"{part.path}: its header '{part.names[0][:80]}' is one name; pass --delimiter '{shown}' if that "
                "is what stands between names"
            )
    return source.names


def read_table(path: Path | File, columns: list[str], as_text: set[str]) -> pa.Table:
    """The named columns of a table, in any form that `Source` knows.

    Args:
      as_text: columns that name things (ids, categories): they come in their canonical form as
        dictionary-encoded strings, lists as lists. Others come as numbers and times where that is what they hold.
    """
    table = read_verbatim(path, columns, as_text)
    for index, name in enumerate(table.column_names):
        column = table.column(name)
        if name in as_text:
            if not canonical.is_single(column.type):
                raise not_single(path, name, column.type, "single values")
            table = table.set_column(index, name, canonical.texts(column))
    return table


def read_verbatim(path: Path | File, columns: list[str], as_text: set[str]) -> pa.Table:
    """As `read_table`, but with the values of `as_text` as they stand in the file."""
    source = as_source(path) if isinstance(path, Path) else path
    require_columns(source, columns, column_names(source))
    return source.read(list(dict.fromkeys(columns)), as_text)


def not_single(path: Path | File, name: str, kind: pa.DataType, wanted: str) -> UserError:
    """What to say of a column that holds no single values where `wanted` are needed."""
    return UserError(
        f"{path}: column '{name}' holds {' '.join(str(kind).split())[:120]}, where {wanted} are needed; "
        "write a plain column of it"
    )


def open_text(path: Path, text: TextFormat = AS_USUAL) -> TextFile:
    """A text file of a known form, which may have more columns than `text` names."""
    return TextFile(require(path), text, spare=True)


def load_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped; never unpickled."""
    require(path)
    try:
        return npy.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else "damaged"
        raise UserError(f"{path}: not a readable .npy file ({reason}); save one array with numpy.save") from None


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
    names = []
    for row, one in enumerate(ids):
        name = canonical.canonical(one)
        if name is None:
            where = place(path, row, header=False)
            raise UserError(f"{where}: the id is empty; give one id for each row of the array")
        names.append(name)
    return names
