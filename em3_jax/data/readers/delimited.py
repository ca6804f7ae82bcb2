"""One delimited text file: its header, what its quotes mean, and its columns."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from em3_jax.core.errors import UserError
from em3_jax.data.canonical import TEXTS
from em3_jax.data.readers import quoting
from em3_jax.data.readers.decoding import COMPRESSIONS, not_utf8, plain_suffix, utf8_bytes

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
STAND_IN = "\x1f"  # for a delimiter of several characters: Arrow's parser takes one byte
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " "}
_HEAD = 1 << 20
_BLOCK = 1 << 24
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_MOMENT = re.compile(r"\d{4}[-/]\d{1,2}[-/]\d{1,2}([T ].*)?")


class TextFormat(NamedTuple):
    """What the options say of text tables.

    Attributes:
      delimiter: between two cells; "" = what the file's suffix says.
      quoting: one of `quoting.MODES`.
      encoding: "" = UTF-8, or UTF-16 where that is certain.
      has_header: None = unless `names` are given.
      names: of the columns, in place of a header's; () = the header's.
    """

    delimiter: str = ""
    quoting: str = "auto"
    encoding: str = ""
    has_header: bool | None = None
    names: tuple[str, ...] = ()


AS_USUAL = TextFormat()


def check_format(text: TextFormat) -> TextFormat:
    """The format with the delimiter as it stands in files; refuses what cannot be."""
    if text.quoting not in quoting.MODES:
        raise UserError(f"--quoting '{text.quoting}': choose one of {', '.join(quoting.MODES)}")
    delimiter = _NAMES.get(text.delimiter.lower(), text.delimiter)
    if set(delimiter) & set('"\r\n\0') or not delimiter.isascii():
        raise UserError(f"--delimiter {text.delimiter!r}: give ASCII characters but quotes and line ends")
    if text.has_header is False and not text.names:
        raise UserError("--no-header: without a header the columns need names; give --column-names")
    return text._replace(delimiter=delimiter)


class TextFile:
    """A delimited text, decoded, with its header read.

    Args:
      path: the file.
      text: how it is written.
      spare: whether there may be further columns behind those that `text` names.
      unpack_in: a folder for what is not UTF-8 as it lies there; None = in memory.

    Attributes:
      names: of the columns, in the file's order; "" where there is none.
      notes: what is worth telling of how it was read.
    """

    def __init__(self, path: Path, text: TextFormat, spare: bool = False, unpack_in: Path | None = None):
        self.path, self._mode = path, text.quoting
        self.notes: list[str] = []
        self._layout: quoting.Layout | None = None
        self._suffix = plain_suffix(path)
        delimiter = text.delimiter or DELIMITERS.get(self._suffix, "")
        if not delimiter:
            known, packed = ", ".join([*DELIMITERS, ".parquet"]), ", ".join(COMPRESSIONS)
            raise UserError(
                f"{path}: unknown kind of file; give one of {known} (text also packed, {packed}), or say what stands "
                "between the cells of a text with --delimiter"
            )
        self._data = utf8_bytes(path, text.encoding, unpack_in)
        self._shown = delimiter
        if len(delimiter) > 1:
            self._data, delimiter = self._one_byte(delimiter), STAND_IN
        self._delimiter = delimiter
        cells, lines, offset = self._first_record()
        has_header = not text.names if text.has_header is None else text.has_header
        if spare and text.names:
            text = text._replace(names=(*text.names, *[""] * (len(cells) - len(text.names))))
        if text.names and len(text.names) != len(cells):
            raise UserError(
                f"{path}: its first line has {len(cells)} cells, but {len(text.names)} columns are named "
                f"({', '.join(text.names)[:120]}); name all of them, in their order"
            )
        self._blanks = has_header and any(cell.startswith(" ") for cell in cells[1:])
        self.first_line = 1 + (lines if has_header else 0)
        self._body = self._data[offset if has_header else 0 :]
        self.names = [cell.strip() for cell in (text.names or cells)]
        self._is_sure = text.has_header is not None or bool(text.names)

    def __str__(self) -> str:
        return str(self.path)

    def _one_byte(self, delimiter: str) -> np.ndarray:
        data = bytes(self._data)
        if STAND_IN.encode() in data:
            raise UserError(f"{self.path}: holds the control character 0x1f, which is used in place of '{delimiter}'")
        return np.frombuffer(data.replace(delimiter.encode(), STAND_IN.encode()), np.uint8)

    def _first_record(self) -> tuple[list[str], int, int]:
        """(cells of the first line that is not empty, lines up to its end, bytes up to there)."""
        head = self._data[:_HEAD]
        ends = quoting._line_ends(head)
        starts, stops = quoting._filled(head, ends)
        if not len(starts):
            raise UserError(f"{self.path}: the file is empty; give a file with data")
        line, lines = bytes(head[starts[0] : stops[0]]), int(np.searchsorted(ends, stops[0])) + 1
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise not_utf8(self.path, self._data) from None
        cells = text.split(self._delimiter)
        if self._mode != "off" and text.count('"') % 2 == 0:
            cells = next(csv.reader([text], delimiter=self._delimiter))
        elif self._mode != "off" and any(cell.startswith('"') for cell in cells):
            reader = quoting.records(head[starts[0] :], self._delimiter)
            cells, lines = next(reader), lines + reader.line_num - 1
        return cells, lines, int(ends[lines - 1]) + 1 if lines <= len(ends) else len(head)

    def check_header(self) -> None:
        """Refuses a first line that plainly holds values, so that the columns have no names yet."""
        numbers = [bool(_NUMBER.fullmatch(name) or _MOMENT.fullmatch(name)) for name in self.names]
        if not self._is_sure and self.names and 2 * sum(numbers) >= len(numbers):
            raise UserError(f"{self.path}: {self.headless()}, or pass --header if these are their names")

    def headless(self) -> str:
        """That the first line seems to be no header, and what to do."""
        shown = self._shown.join(self.names)[:80]
        return f"its first line is '{shown}', which is no header; name its columns in order with --column-names"

    def other_delimiter(self) -> str:
        """A delimiter that the header plainly has in place of the one it was read with, or ""."""
        if len(self.names) == 1:
            return next((sign for sign in ",;\t|" if sign in self.names[0]), "")
        return ""

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def layout(self) -> quoting.Layout:
        if self._layout is None:
            is_tsv = self._delimiter == "\t" or self._suffix in (".tsv", ".tab")
            self._layout = quoting.examine(
                str(self.path), self._body, ord(self._delimiter), len(self.names), self._mode, is_tsv, self.first_line
            )
            if self._layout.note:
                self.notes.append(f"{self.path.name}: {self._layout.note}")
        return self._layout

    def place(self, row: int) -> str:
        """Where row number `row` (from 0) stands, for messages."""
        line = quoting.line_of(self._body, self._delimiter, self.layout, row) + self.first_line
        return f"{self.path} line {line}"

    def read(self, columns: list[str], texts: set[str], types: dict[str, pa.DataType] | None = None) -> pa.Table:
        """The named columns.

        Args:
          texts: those to read as they stand, as dictionary-encoded strings.
          types: of others; what has none is read as what its values look like.

        Raises:
          UserError: a line has too many or too few cells, a value is no UTF-8, lines got lost.
        """
        found: set[int] = set()
        table = self._columns(self._body, columns, (types or {}) | dict.fromkeys(texts, TEXTS), found)
        if table.num_rows != self.rows:
            raise self._lost(table.num_rows)
        self._note_unnamed(found)
        return table

    def pieces(self, columns: list[str], texts: set[str]) -> Iterator[pa.Table]:
        """As `read`, some rows at a time, so that the file may be longer than memory: types are those of a piece's values."""
        rows, unnamed, layout = 0, set[int](), self.layout
        whole = [self._body] if layout.rows else []
        found = (piece.data for piece in quoting.pieces(self._body, ord(self._delimiter), layout.quoted))
        for body in found if layout.paired else whole:
            table = self._columns(body, columns, dict.fromkeys(texts, TEXTS), unnamed, rows)
            rows += table.num_rows
            yield table
        if rows != self.rows:
            raise self._lost(rows)
        self._note_unnamed(unnamed)

    def _columns(
        self, body: np.ndarray, columns: list[str], known: dict[str, pa.DataType], unnamed: set[int], before: int = 0
    ) -> pa.Table:
        """The named columns of rows that come after so many others.

        Args:
          known: types.
          unnamed: takes the numbers, from 1, of columns that hold something and have no name.
        """
        places = [self.names.index(name) for name in columns]
        nameless = [k for k, name in enumerate(self.names) if not name and k > 0]  # the first is an index
        numbered = [str(k) for k in range(len(self.names))]
        types = {str(k): known[n] for k, n in zip(places, columns, strict=True) if n in known}
        types |= dict.fromkeys(map(str, nameless), TEXTS)
        table = self._parse(body, numbered, [*map(str, places), *map(str, nameless)], types, before)
        unnamed |= {k + 1 for k in nameless if table.column(str(k)).null_count < table.num_rows}
        table = table.select([str(k) for k in places]).rename_columns(columns)
        if any(pa.types.is_binary(column.type) for column in table.columns):
            raise not_utf8(self.path, self._data)
        return _without_blanks(table) if self._blanks else table

    def _note_unnamed(self, found: set[int]) -> None:
        shown = ", ".join(map(str, sorted(found)))
        note = f"{self.path.name}: column number {shown} has no name in the header; it is left out"
        self.notes += [note] if found and note not in self.notes else []

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All columns that have a name, as the texts that stand there, some rows at a time; null where nothing stands.

        Raises:
          UserError: as `read`.
        """
        named = {str(k): name for k, name in enumerate(self.names) if name}
        parse, convert = self._options(list(named), dict.fromkeys(named, pa.string()))
        numbered = [str(k) for k in range(len(self.names))]
        options = pa.csv.ReadOptions(column_names=numbered, block_size=self._block_size(self._body))
        rows = 0
        try:
            source = pa.BufferReader(pa.py_buffer(self._body))
            for batch in pa.csv.open_csv(source, options, parse, convert) if self.rows else ():
                rows += batch.num_rows
                table = pa.Table.from_batches([batch]).rename_columns(list(named.values()))
                yield from (_without_blanks(table) if self._blanks else table).to_batches()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self._error(str(error)) from None
        if rows != self.rows:
            raise self._lost(rows)

    def _lost(self, rows: int) -> UserError:
        return UserError(
            f"{self.path}: {self.rows} rows by its line ends, but {rows} by its quotes; "
            "mend the quotes, or pass --quoting off if they are part of the values"
        )

    def _options(
        self, columns: list[str], types: dict[str, pa.DataType]
    ) -> tuple[pa.csv.ParseOptions, pa.csv.ConvertOptions]:
        """How the body is cut, and what its columns become."""
        parse = pa.csv.ParseOptions(
            delimiter=self._delimiter,
            quote_char='"' if self.layout.quoted else False,
            newlines_in_values=self.layout.has_newlines,
        )
        convert = pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=types,
            timestamp_parsers=[pa.csv.ISO8601, "%Y/%m/%d %H:%M:%S", "%Y/%m/%d"],
            null_values=[""],  # "NA" and "null" may be somebody's ids
            strings_can_be_null=True,
        )
        return parse, convert

    def _parse(
        self, body: np.ndarray, names: list[str], columns: list[str], types: dict[str, pa.DataType], before: int
    ) -> pa.Table:
        parse, convert = self._options(columns, types)
        if not self.rows or not len(body):
            return pa.table({name: pa.array([], types.get(name, pa.null())) for name in columns})
        for threads in (True, False):  # the second is slower, but counts rows
            options = pa.csv.ReadOptions(column_names=names, use_threads=threads, block_size=self._block_size(body))
            try:
                source = pa.BufferReader(pa.py_buffer(body))
                return pa.csv.read_csv(source, options, parse, convert)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                message = str(error)
        raise self._error(message, before)

    def _block_size(self, body: np.ndarray) -> int:
        """Of the parser, in bytes: a line fits in, and no block ends in a carriage return.

        The parser drops the line feed that follows at the head of the next block, in quotes too.
        """
        if not self.layout.has_newlines:
            return _BLOCK
        ends = quoting._line_ends(body)
        longest = int(np.diff(ends, prepend=0, append=len(body)).max(initial=0))
        size = max(_BLOCK, 2 * longest)
        while np.any(body[size - 1 :: size] == quoting.CR):
            size += 1
        return size

    def _error(self, message: str, before: int = 0) -> UserError:
        """pyarrow's message in this project's words, of rows that come after so many others."""
        if re.search("invalid UTF-?8", message):
            return not_utf8(self.path, self._data)
        row, column = re.search(r"Row #(\d+)", message), re.search(r"CSV column #(\d+)", message)
        where = self.place(before + int(row[1]) - 1) if row else str(self.path)
        if column and int(column[1]) < len(self.names):
            where += f", column '{self.names[int(column[1])]}'"
        found = re.search(r"Expected \d+ columns, got \d+", message)
        reason = found[0] if found else re.split("conversion error to |parse error: ", message.splitlines()[0])[-1]
        return UserError(f"{where}: {reason}; mend the file")


def _without_blanks(table: pa.Table) -> pa.Table:
    """The blanks that stand after the delimiters, as after those of the header, are not part of texts."""
    for k, column in enumerate(table.columns):
        if column.type in (TEXTS, pa.string()):
            text = pc.utf8_ltrim(column.cast(pa.string()), " ")
            text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
            text = text.dictionary_encode().cast(TEXTS) if column.type == TEXTS else text
            table = table.set_column(k, table.column_names[k], text)
    return table
