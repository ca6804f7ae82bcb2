"""A table that somebody brings: a file, several, a pattern such as parts/*.csv, a folder of parts, or a frame."""

import copy
import functools
import glob
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from em3_jax.core import addresses, paths
from em3_jax.core.errors import UserError
from em3_jax.data.canonical import TEXTS
from em3_jax.data.readers import frames, parquet
from em3_jax.data.readers.decoding import COMPRESSIONS, plain_suffix
from em3_jax.data.readers.delimited import AS_USUAL, TextFile, TextFormat

Paths = str | Path | Sequence[str | Path]
Tables = str | Path | Sequence[str | Path] | frames.Frame
"""What `em3 prepare table` reads: files, here or at the addresses of a bucket; from Python also a frame."""
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class Source:
    """A table in one or more files of the same columns, one after the other.

    Args:
      given: a file; a folder, whose parts are taken in the order of their names; a pattern with *, ?
        or [...]; or several of these, also as a text with commas.
      text: how text files are written.
      role: what the table is; where it is given, `given` may also be addresses of a bucket, or a frame, which
        `bring` makes files of.

    Attributes:
      files: all files.
      name, stem, parent: as of a path, of the first that was given; of what is no file here `parent` is None.
    """

    def __init__(self, given: Tables, text: TextFormat = AS_USUAL, role: str = ""):
        self._before = 0
        self.files: list[Path] = []
        self.partitions: list[dict[str, str | None]] = []
        self.parent: Path | None
        self._text = text
        self._unpacked_in: Path | None = None
        self._frame: frames.Frame | None = None
        self._remote: dict[int, addresses.Remote] = {}
        if isinstance(given, frames.Frame):
            self._of_frame(given, role)
            return
        named = _given(given, bool(role))
        found = [_files(path) for path in named]
        for files in found:
            for file in files:
                if isinstance(file, addresses.Remote):
                    self._remote[len(self.files)] = file
                self.files.append(Path(file.address) if isinstance(file, addresses.Remote) else file)
        shown = list(map(addresses.written_out, named))
        self._counts, first = [len(files) for files in found], 0
        for path, count in zip(named, self._counts, strict=True):
            self.partitions += _hive(path, self.files[first : first + count])
            first += count
        self._shown = shown[0] if len(named) == 1 else f"{shown[0]} (and {len(named) - 1} more)"
        self.name, self.parent = named[0].name, None if self._remote else named[0].parent
        packed = named[0].suffix.lower() in COMPRESSIONS
        self.stem = Path(named[0].stem).stem if packed else named[0].stem

    def _of_frame(self, frame: frames.Frame, role: str) -> None:
        self._frame, self.files, self.partitions, self._counts = frame, [Path(f"{role}.parquet")], [{}], [1]
        self._shown, self.name, self.stem, self.parent = f"the frame of {role}", f"{role}.parquet", role, None

    def bring(self, folder: Path, unpack: bool) -> dict[str, str]:
        """Makes files of what is none here: (path -> what to call it in messages) of these.

        Args:
          folder: for them.
          unpack: whether packed texts are unpacked there when they are opened, not into memory.
        """
        self._unpacked_in = folder if unpack else None
        if self._frame is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.files = [frames.write(self._frame, folder / self.name, self._shown)]
            return {str(self.files[0]): self._shown}
        fetched = {k: folder / str(k) / self.files[k].name for k in self._remote}
        addresses.fetch({path: self._remote[k] for k, path in fetched.items()})
        self.files = [fetched.get(k, path) for k, path in enumerate(self.files)]
        return {str(path): self._remote[k].address for k, path in fetched.items()}

    def __str__(self) -> str:
        return self._shown

    @functools.cached_property
    def parts(self) -> list[TextFile | parquet.ParquetFile]:
        """The files, opened."""
        return [self._open(path) for path in self.files]

    def _open(self, path: Path) -> TextFile | parquet.ParquetFile:
        if plain_suffix(path) not in parquet.SUFFIXES:
            return TextFile(path, self._text, unpack_in=self._unpacked_in)
        if path.suffix.lower() not in parquet.SUFFIXES:
            raise UserError(f"{path}: Parquet is compressed within; unpack the file and give it as .parquet")
        return parquet.ParquetFile(path)

    @property
    def names(self) -> list[str]:
        """Of the columns, those of folder names such as day=1 among them."""
        return [*self.parts[0].names, *(name for name in self.partitions[0] if name not in self.parts[0].names)]

    @property
    def notes(self) -> list[str]:
        return list(dict.fromkeys(note for part in self.parts for note in part.notes))

    @property
    def rows(self) -> int:
        """Rows of all files, by their line ends or footers."""
        return sum(part.rows for part in self.parts)

    def batches(self) -> Iterator[tuple[Path, pa.Table]]:
        """(file, some of its rows), all columns: as they stand, of text files and of folder names as texts."""
        for part, values in zip(self.parts, self.partitions, strict=True):
            for batch in part.batches():
                table = pa.Table.from_batches([batch])
                for name in (one for one in values if one not in part.names):
                    table = table.append_column(name, pa.array([values[name]] * table.num_rows, pa.string()))
                yield part.path, table

    def name_parts(self, column: str, names: Sequence[str]) -> None:
        """Gives what was given names, in a column of all rows: of the first path the first name, and so on.

        Of two paths they are the first name and the last.

        Raises:
          UserError: there are more or fewer paths than names.
        """
        if len(self._counts) == 2:
            names = (names[0], names[-1])
        if len(self._counts) != len(names):
            raise UserError(
                f"{self}: {len(self._counts)} files, folders or patterns; give {len(names)}, of {', '.join(names)}, with "
                f"commas, or {names[0]} and {names[-1]} alone"
            )
        if twice := [file for k, file in enumerate(self.files) if file in self.files[:k]]:
            raise UserError(
                f"{addresses.written_out(twice[0])}: is named twice; each of {', '.join(names)} has files of its own"
            )
        of_files = [name for name, count in zip(names, self._counts, strict=True) for _ in range(count)]
        self.partitions = [values | {column: name} for values, name in zip(self.partitions, of_files, strict=True)]

    def after(self, rows: int) -> "Source":
        """The same, whose `place` counts from row number `rows` on: of a piece of it, for messages."""
        other = copy.copy(self)
        other._before = rows
        return other

    def place(self, row: int | np.integer) -> str:
        """Where row number `row` (from 0) of all stands: the line of a text file, the row of any other."""
        row = int(row) + self._before
        for part in self.parts:
            if row < part.rows:
                return part.place(row)
            row -= part.rows
        raise IndexError(row)

    def read(self, columns: list[str], texts: set[str]) -> pa.Table:
        """The named columns of all files.

        Args:
          texts: columns to read as they stand, so that 007 and 7 are different; from text files they
            come as dictionary-encoded strings. Others are read as what they look like.
        """
        tables = []
        for part, values in zip(self.parts, self.partitions, strict=True):
            own = [name for name in columns if name in part.names]
            missing = [name for name in columns if name not in own and name not in values]
            if missing:
                raise UserError(f"{part.path}: no column '{missing[0]}', which the file before has; {_alike(part)}")
            table = part.read(own, texts)
            for name in columns:
                if name not in own:
                    column = pa.array([values[name]] * part.rows, pa.string())
                    table = table.append_column(name, column if name in texts else parquet.as_number(column))
            tables.append(table.select(columns))
        return tables[0] if len(tables) == 1 else self._together(tables)

    def _together(self, tables: list[pa.Table]) -> pa.Table:
        """One table of all; a column that one file has as text and another as numbers is text."""
        columns = {}
        for k, name in enumerate(tables[0].column_names):
            kinds = {table.column(k).type for table in tables}
            chunked = [table.column(k) for table in tables]
            try:
                if len(kinds) > 1 and TEXTS in kinds:
                    chunked = [parquet.as_text(column) for column in chunked]
                merged = pa.concat_tables([pa.table({name: c}) for c in chunked], promote_options="permissive")
            except (pa.ArrowException, ValueError):
                first = tables[0].column(k).type
                other = next(n for n, table in enumerate(tables) if table.column(k).type != first)
                raise UserError(
                    f"{self.parts[other].path}: column '{name}' holds {tables[other].column(k).type}, and {first} in the "
                    "files before; write it in one type"
                ) from None
            columns[name] = merged.column(0)
        return pa.table(columns)


def _alike(part: TextFile | parquet.ParquetFile) -> str:
    return part.headless() or "give files of the same columns"


def as_source(path: "str | Path | Source") -> Source:
    return path if isinstance(path, Source) else Source(path)


def _given(given: Paths, anywhere: bool) -> list[Path]:
    """The paths; with `anywhere` also addresses."""

    def path_of(one: str | Path) -> Path:
        return Path(one) if anywhere and addresses.kind_of(one) else paths.local(one)

    if isinstance(given, str | Path):
        if "," not in str(given) or (not addresses.kind_of(given) and paths.local(given).exists()):
            return [path_of(given)]
        given = [part.strip() for part in str(given).split(",") if part.strip()]
    if not isinstance(given, Sequence) or not all(isinstance(path, str | Path) for path in given):
        raise UserError(
            f"a {type(given).__name__}: is neither paths nor a frame that gives an Arrow stream, as those of pandas (from 2.2 "
            "on), Polars and Arrow do; give one of these, or write it to a Parquet file"
        )
    if not given:
        raise UserError("a list of files names no file; give at least one")
    return [path_of(path) for path in given]


def _files(path: Path) -> Sequence[Path | addresses.Remote]:
    """The files that a path, or an address, stands for."""
    if addresses.kind_of(path):
        remote = {Path(one.address): one for one in addresses.listed(addresses.written_out(path))}
        is_folder = not addresses.has_magic(str(path)) and path not in remote
        return [remote[one] for one in (_data(list(remote), path) if is_folder else remote)]
    if path.is_dir():
        return _data(sorted(file for file in path.rglob("*") if file.is_file()), path)
    if path.exists():
        return [path]
    found = sorted(Path(one) for one in glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
    if not found:
        hint = "no file has such a name" if glob.has_magic(str(path)) else "file missing"
        raise UserError(f"{path}: {hint}; check the path")
    return [file for one in found for file in _files(one)]


def _data(inside: list[Path], folder: Path) -> list[Path]:
    """Those of the files in a folder that are its parts."""
    files = [file for file in inside if not _is_hidden(file.relative_to(folder))]
    kinds, shown = sorted({plain_suffix(file) for file in files}), addresses.written_out(folder)
    if not files:
        raise UserError(f"{shown}: a folder without a file; give a file, or a folder of parts")
    if len(kinds) > 1:
        raise UserError(f"{shown}: a folder of {', '.join(kinds)} files; give a folder of parts of one kind, or a file")
    return files


def _is_hidden(path: Path) -> bool:
    """Whether it is no data: _SUCCESS, _metadata, .part-0.crc."""
    return any(part.startswith((".", "_")) and "=" not in part for part in path.parts)


def _hive(path: Path, files: list[Path]) -> list[dict[str, str | None]]:
    """Of each file the columns that are written in the names of its folders below `path`, as day=1."""
    result = []
    for file in files:
        folders = file.relative_to(path).parts[:-1] if file.is_relative_to(path) else ()
        pairs = (folder.partition("=") for folder in folders if "=" in folder)
        result.append({name: None if value == _NO_VALUE else urllib.parse.unquote(value) for name, _, value in pairs})
    return result
