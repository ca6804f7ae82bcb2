"""Memory-mapped arrays, read a part at a time without what was read staying in memory."""

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

PART = 1 << 22


def parts(rows: np.ndarray | range | int, *arrays: np.ndarray, size: int = PART) -> Iterator[Any]:
    """Rows a part at a time, to index arrays with; after each the pages of `arrays` are given back.

    Args:
      rows: numbers of rows, or how many there are from the first on.
      arrays: mapped files, or arrays in memory, which stay as they are.
      size: rows of a part.
    """
    rows = range(rows) if isinstance(rows, int) else rows
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield slice(part.start, part.stop) if isinstance(part, range) else part
        for array in arrays:
            release(array)


def release(array: np.ndarray) -> None:
    """Gives back what memory the pages of a mapped file take; read again, they are loaded again.

    A file that was written to keeps what was written.
    """
    base: object = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)
