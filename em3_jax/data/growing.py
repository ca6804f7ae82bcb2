"""Arrays and vocabularies in files that grow at the cost of what is added, and that are cut back to what was committed."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike

FIRST_LENGTH = 1024  # elements that a new file has room for
_HEADER = 128  # bytes before the elements, as numpy writes them for arrays of one dimension


class Column:
    """An array of one dimension in a .npy file, memory-mapped; room doubles, so that adding n elements costs n.

    The file is longer than what is in use: how much that is, whoever uses it keeps. What is beyond is 0, or left over from what
    was never committed.

    Args:
      path: of the file, which is made where it is not there.
      dtype: of the elements.
    """

    def __init__(self, path: Path, dtype: DTypeLike):
        self._path, self._dtype = path, np.dtype(dtype)
        if not path.exists() or path.stat().st_size < _HEADER:  # a kill may have come between the two
            path.parent.mkdir(parents=True, exist_ok=True)
            self._resize(FIRST_LENGTH)
        else:
            room = (path.stat().st_size - _HEADER) // self._dtype.itemsize
            self._array = np.memmap(path, self._dtype, "r+", _HEADER, (room,))

    def _resize(self, room: int) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (room,)}
        with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
            # A file cut short by a kill has the older header, which names fewer elements than there is room for.
            os.ftruncate(file.fileno(), _HEADER + room * self._dtype.itemsize)
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == _HEADER
        self._array = np.memmap(self._path, self._dtype, "r+", _HEADER, (room,))

    def reserve(self, length: int) -> None:
        """Makes room for so many elements."""
        if length > len(self._array):
            self._resize(max(length, 2 * len(self._array)))

    def write(self, start: int, values: np.ndarray) -> None:
        """Elements from place `start` on."""
        self.reserve(start + len(values))
        self._array[start : start + len(values)] = values

    def put(self, places: np.ndarray, values: np.ndarray | int) -> None:
        """Elements at places [n], for which there is room."""
        self._array[places] = values

    def __getitem__(self, index):
        return np.asarray(self._array)[index]

    def first(self, length: int) -> np.ndarray:
        """The first elements, memory-mapped; what is written later is seen in it."""
        self.reserve(length)
        return np.asarray(self._array)[:length]


class Words:
    """Texts numbered in the order in which they come, in a file of a JSON text a line.

    Args:
      path: of the file.
      bytes_: of it that are committed; what is beyond is cut off.
    """

    def __init__(self, path: Path, bytes_: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        self._file.truncate(bytes_)
        self._file.seek(0)
        self._number = {json.loads(line): k for k, line in enumerate(self._file)}
        self._written = len(self._number)
        self.bytes = bytes_

    def __len__(self) -> int:
        return len(self._number)

    def __iter__(self):
        return iter(self._number)

    def numbers(self, texts: pa.DictionaryArray) -> np.ndarray:
        """[n] i64 number of each text, -1 where there is none; those that are new are numbered onward."""
        used, codes = texts.dictionary.to_pylist(), texts.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        known = self._number
        found = [known.setdefault(word, len(known)) for word in used]
        return np.append(np.asarray(found, np.int64), -1)[codes]

    def after(self, number: int) -> list[str]:
        """The texts from a number on, at their own cost."""
        found = []
        for word in reversed(self._number):
            if self._number[word] < number:
                break
            found.append(word)
        return found[::-1]

    def flush(self) -> None:
        """Writes the new texts; they count once `bytes` is committed."""
        if self._written < len(self._number):
            new = self.after(self._written)
            self._file.write("".join(json.dumps(word) + "\n" for word in new).encode())
            self._file.flush()
            self._written, self.bytes = len(self._number), self._file.tell()

    def close(self) -> None:
        self._file.close()
