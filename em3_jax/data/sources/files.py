"""A text file that grows, and a folder into which files are dropped."""

import os
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq

from em3_jax.core.errors import UserError
from em3_jax.data.sources.arrived import SOURCE, UNTYPED, Arrived, check_kind, of_another

MOST = 32 << 20  # bytes of text that are taken together
HEADER = 1 << 16  # longest line of names that is looked for
TAIL = 1 << 12  # bytes before a position by which the file is known again
DELIMITERS = {".csv": ",", ".tsv": "\t"}
T = TypeVar("T")
_NOTHING: list[tuple[str, str, str]] = []


class _Place(NamedTuple):
    """Where reading of a file goes on: after `start` bytes and `line` lines, the last of these bytes being `before`."""

    header: list[str]
    start: int
    line: int
    before: bytes


class GrowingFile:
    """A .csv or .tsv file that lines are appended to; a half-written last line waits.

    A position is {"source": path, "offset": bytes, "line": lines, "header": [names], "tail": CRC-32 of the last bytes before it,
    see `TAIL`}. By these bytes a file is known again, which may lie elsewhere later. Each line is a row: no cell holds a line
    end.
    """

    def __init__(self, path: Path):
        self._path, self.name, self._own = path, str(path), str(path.absolute())

    def check(self, position: Mapping[str, Any]) -> None:
        check_kind(self.name, position, "offset")
        if position:
            self._opened(lambda file: self._place(file, position))

    def poll(self, position: Mapping[str, Any]) -> Arrived | None:
        check_kind(self.name, position, "offset")

        def read(file: BinaryIO) -> tuple[_Place, bytes, bool] | None:
            place = self._place(file, position)
            if place is None:
                return None
            file.seek(place.start)
            text = file.read(MOST)
            return place, text[: text.rfind(b"\n") + 1], len(text) == MOST

        found = self._opened(read)
        if found is None:
            return None
        place, text, is_full = found
        if not text:
            if is_full:
                raise UserError(
                    f"{self._path} line {place.line + 1}: is longer than {MOST:,} bytes; is it a text file?"
                )
            return None
        arrived = self._read(text, place.header, place.start, place.line)
        after = {SOURCE: self._own, "tail": zlib.crc32((place.before + text)[-TAIL:])}
        return arrived._replace(position=arrived.position | after)

    def _opened(self, read: Callable[[BinaryIO], T]) -> T:
        try:
            with open(self._path, "rb") as file:
                return read(file)
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}; name the log in the mapping as `interactions`") from None

    def _place(self, file: BinaryIO, position: Mapping[str, Any]) -> _Place | None:
        """Where reading goes on; None where there is no whole line of names yet."""
        length, offset = file.seek(0, os.SEEK_END), position.get("offset", 0)
        if length < offset:
            raise self._other(
                position,
                f"{self._path}: has become shorter, from {offset:,} or more to {length:,} bytes; a file that is followed may "
                "only be appended to",
            )
        file.seek(0)
        first = file.readline(HEADER)
        if not first.endswith(b"\n"):
            return None
        header = self._names(first)
        if header != position.get("header", header):
            raise self._other(
                position,
                f"{self._path}: its columns have become {', '.join(header)}; "
                f"they were {', '.join(position['header'])}; put lines of other columns into another file",
            )
        start, line = (offset, position["line"]) if offset else (len(first), 1)
        tail = min(start, TAIL)
        file.seek(start - tail)
        before = file.read(tail)
        if position.get("tail", crc := zlib.crc32(before)) != crc:
            raise self._other(
                position,
                f"{self._path} before line {line + 1}: other lines stand there than were read; a file that is followed may only "
                "be appended to; restore it",
            )
        return _Place(header, start, line, before)

    def _other(self, position: Mapping[str, Any], changed: str) -> UserError:
        """What is wrong with a file that is not the one that was read: another one was named, or it has changed."""
        was = position.get(SOURCE, self._own)
        return UserError(changed) if was == self._own else of_another(self.name, was)

    def _names(self, first: bytes) -> list[str]:
        try:
            cells = first.decode("utf-8-sig").rstrip("\r\n").split(DELIMITERS[self._path.suffix])
        except UnicodeDecodeError:
            raise UserError(f"{self._path} line 1: is no UTF-8; write the file in UTF-8") from None
        return [cell.strip('"') for cell in cells]

    def _read(self, text: bytes, header: list[str], start: int, line: int) -> Arrived:
        """Rows of whole lines, those that are empty left out."""
        lines = text.splitlines(keepends=True)
        numbers = [k for k, one in enumerate(lines) if one.strip()]
        why: dict[int, str] = {}  # of rows without as many cells as the header

        def note(row: csv.InvalidRow) -> str:
            why[row.number - 1] = f"has {row.actual_columns} cells, the header names {row.expected_columns}"
            return "skip"

        parsing = csv.ParseOptions(delimiter=DELIMITERS[self._path.suffix], invalid_row_handler=note)
        reading = csv.ReadOptions(column_names=header, use_threads=False, block_size=len(text) + 1)
        types = csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        try:
            table = csv.read_csv(pa.BufferReader(text), reading, parsing, types)
        except pa.ArrowException as error:
            raise UserError(f"{self._path} after line {line}: {str(error).splitlines()[0]}; mend the file") from None
        if table.num_rows + len(why) != len(numbers):
            if any(_is_open(one) for one in lines):
                return self._without_open(lines, header, start, line)
            raise UserError(
                f"{self._path} after line {line}: {len(numbers):,} lines are {table.num_rows + len(why):,} rows; write no line "
                "ends within cells"
            )
        good = [number for row, number in enumerate(numbers) if row not in why]
        at = lambda number: f"{self._path} line {line + 1 + number}"  # noqa: E731
        bad = [
            (at(numbers[row]), one, lines[numbers[row]].decode(errors="replace").rstrip()) for row, one in why.items()
        ]
        position = {"offset": start + len(text), "line": line + len(lines), "header": header}
        table = table.replace_schema_metadata(UNTYPED)
        return Arrived(table, position, self.name, lambda row: at(good[row]), bad)

    def _without_open(self, lines: list[bytes], header: list[str], start: int, line: int) -> Arrived:
        """The same where a cell is not closed, which would take the lines after it for its own: such lines are no rows."""
        rest = b"".join(b"\n" if _is_open(one) else one for one in lines)
        found, offset = self._read(rest, header, start, line), start + sum(map(len, lines))
        bad = [
            (
                f"{self._path} line {line + 1 + k}",
                "has a quote that is not closed",
                one.decode(errors="replace").rstrip(),
            )
            for k, one in enumerate(lines)
            if _is_open(one)
        ]
        return found._replace(position=found.position | {"offset": offset}, bad=bad + found.bad)


def _is_open(line: bytes) -> bool:
    """Whether a cell of a line begins with a quote, and quotes are not in pairs."""
    return line.count(b'"') % 2 == 1 and re.search(rb'(?:^|[,\t])"', line) is not None


class Folder:
    """A folder into which .csv, .tsv and .parquet files are dropped; each is read once, those that are there by their names.

    A name that begins with "." or "_", or ends otherwise, is not looked at: write a file under such a name, and rename it when it
    is whole. A .csv or .tsv without a last line end, and a .parquet without its end, wait.

    A position is {"source": path, "files": {name: bytes}, "reading": name, "at": position within it}. By a file that was read a
    folder is known again, which may lie elsewhere later; files that were read may be removed.
    """

    def __init__(self, path: Path):
        self._path, self.name, self._own = path, str(path), str(path.absolute())

    def check(self, position: Mapping[str, Any]) -> None:
        self._check(position, self._sizes())

    def _check(self, position: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        check_kind(self.name, position, "files")
        was, files = position.get(SOURCE, self._own), position.get("files", {})
        if was != self._own and not any(sizes.get(name) == size for name, size in files.items()):
            raise of_another(self.name, was)

    def poll(self, position: Mapping[str, Any]) -> Arrived | None:
        sizes = self._sizes()
        self._check(position, sizes)
        files, reading = dict(position.get("files", {})), position.get("reading", "")
        for name, size in files.items():
            if name in sizes and sizes[name] != size and name != reading:
                raise UserError(
                    f"{self._path / name}: has {sizes[name]:,} bytes, it had {size:,} when it was read; files that were "
                    "read stay as they are, write further rows to another"
                )
        names = [reading] if reading else []
        names += [name for name in sorted(sizes) if name not in files]
        for name in names:
            path, at = self._path / name, position.get("at", {}) if name == reading else {}
            if name not in sizes:
                raise UserError(f"{path}: is gone, and was not read to its end; put it back")
            if name == reading and sizes[name] != files[name]:
                raise UserError(
                    f"{path}: has {sizes[name]:,} bytes, it had {files[name]:,} when its first rows were read; put it back"
                )
            if not _is_whole(path):
                continue
            found = _of_parquet(path, at) if path.suffix == ".parquet" else GrowingFile(path).poll(at)
            files[name] = sizes[name]
            if found is None:
                continue
            ends = found.position.get("offset", found.position.get("group")) == (
                sizes[name] if path.suffix != ".parquet" else found.position["groups"]
            )
            after = {
                SOURCE: self._own,
                "files": files,
                "reading": "" if ends else name,
                "at": {} if ends else found.position,
            }
            return found._replace(position=after)
        return None

    def _sizes(self) -> dict[str, int]:
        try:
            return {
                entry.name: entry.stat().st_size
                for entry in os.scandir(self._path)
                if not entry.name.startswith((".", "_")) and Path(entry.name).suffix in (".parquet", *DELIMITERS)
            }
        except FileNotFoundError as error:
            if error.filename == str(self._path):
                raise UserError(f"{self._path}: is gone; name the folder in the mapping as `interactions`") from None
            return self._sizes()  # a file was renamed meanwhile


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        length, end = file.seek(0, os.SEEK_END), b"PAR1" if path.suffix == ".parquet" else b"\n"
        if (length < 12 and path.suffix == ".parquet") or not length:
            return False
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


def _of_parquet(path: Path, at: Mapping[str, Any]) -> Arrived | None:
    """The next row group; a position within is {"group": number, "groups": of them all, "row": rows before}."""
    try:
        file = pq.ParquetFile(path)
        group, row = at.get("group", 0), at.get("row", 0)
        if not file.num_row_groups:
            return None
        table = file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}); mend it") from None
    after = {"group": group + 1, "groups": file.num_row_groups, "row": row + table.num_rows}
    return Arrived(table, after, str(path), lambda k: f"{path} row {row + k}", _NOTHING)
