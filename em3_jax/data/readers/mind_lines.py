"""Tab-separated lines without a header or quotes, as MIND has them, a block at a time: a file may be larger than memory."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from em3_jax.core.errors import UserError
from em3_jax.data.readers.files import require

BLOCK = 1 << 24  # bytes


class Block(NamedTuple):
    """Some lines of a file.

    Attributes:
      path: of the file.
      line: [n] i64 their numbers, from 1.
      cells: [n] of each column.
    """

    path: Path
    line: np.ndarray
    cells: list[pa.StringArray]

    def refuse(self, bad: np.ndarray, message: str) -> None:
        """Raises a `UserError` with `message` that names the first line where `bad` [n] is True, if there is one."""
        for k in np.flatnonzero(bad)[:1]:
            raise UserError(f"{self.path} line {self.line[k]}: {message}")


def blocks(path: Path, columns: tuple[int, ...], what: str) -> Iterator[Block]:
    """The lines of a file that are not blank, cut into cells.

    Args:
      path: the file.
      columns: how many cells a line may have; all have as many as the first.
      what: the cells are, for messages.

    Raises:
      UserError: the file is missing, a line has another number of cells, or is no UTF-8.
    """
    width = 0
    for first, data in _pieces(require(path), BLOCK):
        text = _lines(path, first, data)
        number = first + np.flatnonzero(pc.not_equal(text, "").to_numpy(zero_copy_only=False))
        text = text.filter(pc.not_equal(text, ""))
        if not len(text):
            continue
        split = pc.split_pattern(text, "\t")
        length = pc.list_value_length(split).to_numpy(zero_copy_only=False)
        width = width or int(length[0])
        bad = np.flatnonzero((length != width) | ~np.isin(length, columns))
        if len(bad):
            wanted = width if width in columns else " or ".join(map(str, columns))
            raise UserError(
                f"{path} line {number[bad[0]]}: {length[bad[0]]} cells, must be {wanted} ({what}) with tabs "
                "between; mend the line"
            )
        cells = split.flatten()
        places = np.arange(len(text)) * width
        yield Block(path, number, [cells.take(pa.array(places + k)) for k in range(width)])


def _pieces(path: Path, size: int) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, bytes up to the end of a line), of all of a file."""
    line, rest = 1, b""
    with (
        open(path, "rb") as file,
        tqdm(total=os.path.getsize(path), desc=path.name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while data := file.read(size):
            bar.update(len(data))
            data = rest + data
            cut = data.rfind(b"\n") + 1
            data, rest = data[:cut], data[cut:]
            if data:
                yield line, data
                line += data.count(b"\n")
    if rest:
        yield line, rest


def _lines(path: Path, first: int, data: bytes) -> pa.StringArray:
    """The lines of bytes, without their ends."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not len(ends) or ends[-1] < len(data):
        ends = np.append(ends, len(data))
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    lines = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))
    try:
        lines.validate(full=True)
    except pa.ArrowInvalid:
        bad = next(k for k, (a, b) in enumerate(itertools.pairwise(offsets)) if not _is_utf8(data[a:b]))
        raise UserError(f"{path} line {first + bad}: not UTF-8; save the file as UTF-8") from None
    return pc.utf8_rtrim(lines, "\r\n")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def words_of(cells: pa.StringArray) -> tuple[pa.StringArray, np.ndarray]:
    """(all words one after the other, how many each cell [n] has), words being what blanks are between."""
    trimmed = pc.utf8_trim_whitespace(cells)
    split = pc.utf8_split_whitespace(trimmed)
    length = pc.list_value_length(split).to_numpy(zero_copy_only=False).astype(np.int64)
    empty = pc.equal(trimmed, "").to_numpy(zero_copy_only=False)
    words = split.flatten()
    if empty.any():  # a cell without a word is split into one that is empty
        length[empty] = 0
        words = words.filter(pc.not_equal(words, ""))
    return words, length
