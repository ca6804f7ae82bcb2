"""What double quotes mean in a delimited text, found by looking at all of them before it is parsed.

A parser that takes quotes for granted reads from a stray one to the next as one value, and the lines
between them are gone without a word. RFC 4180 lets quotes enclose a whole value, and doubles those
inside it; a tab-separated file in IANA's sense has no quoting. So, unless told:

    quotes enclose whole values                          they are quotes
    some do not, and all lines have the header's cells   they are part of the values
    ... but some enclose whole values                    TSV: part of the values; CSV: refused
    values run over lines that are whole rows            TSV: part of the values; CSV: refused
    anything else                                        refused, naming the line
"""

import copy
import csv
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from em3_jax.core import mapped
from em3_jax.core.errors import UserError

MODES = ("auto", "on", "off")
QUOTE, LF, CR = b'"'[0], b"\n"[0], b"\r"[0]
_CHUNK = 1 << 24
PIECE = 1 << 25
"""Bytes of a text that are looked at, or parsed, at once."""


class Layout(NamedTuple):
    """How a text is to be parsed: with quotes or not, whether values run over lines, its rows.

    `paired` says whether a line end is a row's end where an even number of quotes stands before it.
    """

    quoted: bool
    has_newlines: bool
    rows: int
    note: str = ""
    paired: bool = True


class _Text:
    """Places in a text: of line ends, quotes and delimiters."""

    def __init__(self, data: np.ndarray, delimiter: int):
        self.data, self.delimiter = data, delimiter
        self.ends, self.quotes = _line_ends(data), _places(data, QUOTE)

    def up_to(self, end: int) -> "_Text":
        """The first `end` bytes of it."""
        other = copy.copy(self)
        other.data, other.ends, other.quotes = (
            self.data[:end], self.ends[self.ends < end], self.quotes[self.quotes < end],
        )  # fmt: skip
        return other

    def encloses(self) -> bool:
        """Whether its quotes enclose whole values, and are doubled within."""
        doubled = np.diff(self.quotes, prepend=-2) == 1
        begins, closes = self.borders(self.quotes, -1), self.borders(self.quotes, 1)
        opens_well = (begins | doubled)[0::2]
        closes_well = (closes | np.append(doubled[1:], False))[1::2]
        return bool(len(self.quotes) % 2 == 0 and opens_well.all() and closes_well.all())

    def inside(self) -> np.ndarray:
        """[ends] bool: the line ends that stand between quotes."""
        return np.searchsorted(self.quotes, self.ends) % 2 == 1

    def neighbours(self, places: np.ndarray, step: int) -> np.ndarray:
        """The byte beside each place; a line end beyond the text."""
        beside = places + step
        inside = (beside >= 0) & (beside < len(self.data))
        return np.where(inside, self.data[np.where(inside, beside, 0)], LF)

    def borders(self, places: np.ndarray, step: int) -> np.ndarray:
        """Whether a value begins (step -1) or ends (step 1) at each place."""
        return np.isin(self.neighbours(places, step), (self.delimiter, LF, CR))

    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        """(start, end) of the lines that are not empty."""
        return _filled(self.data, self.ends)

    def is_uniform(self, columns: int) -> bool:
        """Whether every line that is not empty has `columns` cells, quotes being nothing special."""
        cells = _places(self.data, self.delimiter)
        start, end = self.lines()
        return bool((np.searchsorted(cells, end) - np.searchsorted(cells, start) == columns - 1).all())

    def enclosed(self) -> bool:
        """Whether some value of a line stands in quotes as a whole."""
        first = self.quotes[self.borders(self.quotes, -1)]
        stops = np.sort(np.concatenate([_places(self.data, self.delimiter), self.ends, [len(self.data)]]))
        stop = stops[np.searchsorted(stops, first, side="right")]
        last = stop - 1 - (self.neighbours(stop, -1) == CR)
        return bool(((last > first) & (self.data[last] == QUOTE)).any())


def _places(data: np.ndarray, byte: int) -> np.ndarray:
    """Where `byte` stands, a piece at a time: a mask of a whole file would be as large as the file."""
    found = [np.flatnonzero(data[k : k + _CHUNK] == byte) + k for k in range(0, len(data), _CHUNK)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _line_ends(data: np.ndarray) -> np.ndarray:
    """Places of the last byte of each line end: of LF, CR LF, or CR alone."""
    ends, returns = _places(data, LF), _places(data, CR)
    if not len(returns):
        return ends
    last = np.minimum(returns + 1, len(data) - 1)
    return np.sort(np.concatenate([ends, returns[(data[last] != LF) | (returns == len(data) - 1)]]))


def _filled(data: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    start = np.concatenate([[0], ends + 1])
    end = np.append(ends, len(data))
    if not len(data):
        return start[:0], end[:0]
    end = end - ((end > start) & (data[np.maximum(end - 1, 0)] == CR))
    return start[end > start], end[end > start]


def pieces(data: np.ndarray, delimiter: int, quoted: bool) -> Iterator[_Text]:
    """A text as pieces of whole rows, of about `PIECE` bytes.

    Args:
      quoted: whether a line end between quotes is none of a row's.
    """
    start = 0
    while start < len(data):
        size = PIECE
        while True:
            stop = min(start + size, len(data))
            text = _Text(data[start:stop], delimiter)
            if stop == len(data):
                break
            # A carriage return may have its line feed behind the piece.
            ends = text.ends[text.ends < stop - start - (text.data[-1] == CR)]
            ends = ends[np.searchsorted(text.quotes, ends) % 2 == 0] if quoted else ends
            if len(ends):
                text = text.up_to(int(ends[-1]) + 1)
                break
            size *= 2
        yield text
        mapped.release(data)
        start += len(text.data)


def examine(
    where: str, data: np.ndarray, delimiter: int, columns: int, mode: str, is_tsv: bool, first_line: int
) -> Layout:
    """How the body of a text is to be parsed.

    Args:
      where: the file, for messages.
      data: [bytes] u8, UTF-8 without the header.
      delimiter: one byte.
      columns: how many the header has.
      mode: one of `MODES`.
      is_tsv: whether it is a format that has no quoting of its own.
      first_line: the number of the body's first line.

    Raises:
      UserError: the quotes can be read in more than one way, or in none.
    """
    plain = _in_pieces(data, delimiter, mode)
    if plain is not None:
        return plain
    text = _Text(data, delimiter)
    quotes, as_lines = text.quotes, Layout(False, False, len(text.lines()[0]))
    if text.encloses():
        inside = text.inside()
        rows = len(_filled(data, text.ends[~inside])[0])
        if mode == "on" or not inside.any():
            return Layout(True, bool(inside.any()), rows)
        if columns == 1 or not text.is_uniform(columns):
            return Layout(True, True, rows)
        if is_tsv:
            return as_lines
        line = int(np.searchsorted(text.ends, quotes[2 * _first(quotes, text.ends[inside])]))
        raise UserError(
            f"{where} line {line + first_line}: a value in quotes runs over several lines, each of which is a "
            "whole row by itself; pass --quoting off if quotes are part of the values, or --quoting on"
        )
    if mode == "auto" and (is_tsv or not text.enclosed()) and text.is_uniform(columns):
        note = "double quotes are part of the values, since they do not enclose them"
        return as_lines._replace(note=note)
    return _with_strays(where, data, delimiter, columns, first_line)


def _in_pieces(data: np.ndarray, delimiter: int, mode: str) -> Layout | None:
    """The layout of a text whose quotes enclose values without line ends, or mean nothing, a piece at a time; None of others.

    Of a long text the places of its line ends and quotes alone would take as much memory as it does.
    """
    rows, quoted = 0, False
    for text in pieces(data, delimiter, mode != "off"):
        if mode != "off" and len(text.quotes):
            if not text.encloses() or text.inside().any():
                return None
            quoted = True
        rows += len(text.lines()[0])
    return Layout(quoted, False, rows)


def _first(quotes: np.ndarray, inside: np.ndarray) -> int:
    """The number of the value in quotes in which the first of the places `inside` lies."""
    return int(np.searchsorted(quotes, inside[0]) // 2)


def _with_strays(where: str, data: np.ndarray, delimiter: int, columns: int, first_line: int) -> Layout:
    """The layout of a text with quotes in the middle of values that have none around them."""
    rows, before = 0, 0
    reader = records(data, chr(delimiter), strict=True)
    hint = "double it, or pass --quoting off if quotes are part of the values"
    try:
        for cells in reader:
            rows += bool(cells)
            if cells and len(cells) != columns:
                raise csv.Error("")
            before = reader.line_num
    except csv.Error:
        line = before + first_line
        raise UserError(
            f"{where} line {line}: a stray double quote, neither around a value nor doubled; {hint}"
        ) from None
    return Layout(True, rows < len(_Text(data, delimiter).lines()[0]), rows, paired=False)


def records(data: np.ndarray, delimiter: str, strict: bool = False):
    """A `csv.reader` of a text whose quotes enclose values."""
    csv.field_size_limit(1 << 31)
    lines = io.StringIO(bytes(data).decode("utf-8", "surrogateescape"), newline="")
    return csv.reader(lines, delimiter=delimiter, strict=strict)


def line_of(data: np.ndarray, delimiter: str, layout: Layout, row: int) -> int:
    """The line (from 0) of a body in which its row number `row` (from 0) begins."""
    if not layout.quoted:
        starts, _ = _filled(data, ends := _line_ends(data))
        return int(np.searchsorted(ends, starts[row]))
    reader, before = records(data, delimiter), 0
    for cells in reader:
        if cells and row == 0:
            return before
        row, before = row - bool(cells), reader.line_num
    return before
