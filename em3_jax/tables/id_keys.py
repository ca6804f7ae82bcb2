"""Original ids as keys, exact: whole numbers of 64 bits, and texts, which are kept once, in a file.

A key is (field, kind, word): the number itself, or the number of the text among those kept. Texts are compared byte by byte.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from em3_jax.core.draws import hash_words
from em3_jax.tables.key_index import KeyIndex
from em3_jax.tables.mapped_rows import MappedRows

_FACTOR = np.uint64(0x9E3779B97F4A7C15 | 1)
_AT_ONCE = 1 << 16
NUMBER, TEXT, OTHER = 0, 1, 2
"""Kinds: a whole number, a text, and what has no original value: the number of an id within its field."""


class TextBlock(NamedTuple):
    """Texts one after the other.

    Attributes:
      data: [m] u8.
      start, length: [n] i64 of each.
    """

    data: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def take(self, which: np.ndarray) -> "TextBlock":
        """Some of the texts."""
        return TextBlock(self.data, self.start[which], self.length[which])

    def flat(self) -> np.ndarray:
        """[sum of the lengths] where in `data` the texts' bytes stand."""
        ends = np.cumsum(self.length)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.start - (ends - self.length), self.length)

    def hashes(self) -> np.ndarray:
        """[n] u64, of the bytes alone."""
        length, result = self.length, np.zeros(len(self.length), np.uint64)
        if not len(length):
            return result
        ends = np.cumsum(length)
        within = np.arange(ends[-1]) - np.repeat(ends - length, length)
        powers = np.multiply.accumulate(np.full(max(int(length.max()), 1), _FACTOR))
        words = (self.data[self.flat()].astype(np.uint64) + np.uint64(1)) * powers[within]
        filled = np.flatnonzero(length)
        if len(filled):
            result[filled] = np.add.reduceat(words, (ends - length)[filled])
        return hash_words(1, length, result)

    def equal(self, other: "TextBlock") -> np.ndarray:
        """[n] bool, whether each text is that of the other."""
        same = self.length == other.length
        some = np.flatnonzero(same & (self.length > 0))
        if len(some):
            one, two = self.take(some), other.take(some)
            bytes_ = one.data[one.flat()] == two.data[two.flat()]
            same[some] = np.logical_and.reduceat(bytes_, np.cumsum(one.length) - one.length)
        return same


class Keys(NamedTuple):
    """Keys of ids.

    Attributes:
      field: [n] u16 number of the field.
      kind: [n] u8 `NUMBER`, `TEXT` or `OTHER`.
      word: [n] i64; of a text that is not kept -1.
      hash: [n] u64 of all three, of a text of its bytes.
    """

    field: np.ndarray
    kind: np.ndarray
    word: np.ndarray
    hash: np.ndarray

    def take(self, which: np.ndarray) -> "Keys":
        """Some of the keys."""
        return Keys(*(array[which] for array in self))

    def equal(self, other: "Keys") -> np.ndarray:
        """[n] bool, whether each key is that of the other."""
        return (self.word == other.word) & (self.field == other.field) & (self.kind == other.kind)


def of_numbers(field: int | np.ndarray, words: np.ndarray, kind: int = NUMBER) -> Keys:
    """Keys of whole numbers [n] i64.

    >>> import numpy as np
    >>> from em3_jax.tables import id_keys
    >>> users, items = (id_keys.of_numbers(field, np.array([7, 8])) for field in (0, 1))
    >>> users.equal(items).tolist(), users.equal(users).tolist()  # user 7 is not item 7
    ([False, False], [True, True])
    """
    words = words.astype(np.int64, copy=False)
    fields = np.broadcast_to(np.asarray(field, np.uint16), words.shape)
    return Keys(fields, np.full(len(words), kind, np.uint8), words, hash_words(kind, fields, words))


def of_texts(field: int, words: np.ndarray, hashes: np.ndarray) -> Keys:
    """Keys of texts.

    Args:
      words: [n] i64, see `Keys`.
      hashes: [n] u64 of the texts, see `TextBlock.hashes`.

    >>> import numpy as np
    >>> from em3_jax.tables import id_keys
    >>> keys = id_keys.of_texts(2, np.array([0, -1]), np.array([11, 12], np.uint64))
    >>> keys.field.tolist(), keys.word.tolist()  # the second text is not kept
    ([2, 2], [0, -1])
    """
    fields, kind = np.full(len(words), field, np.uint16), np.full(len(words), TEXT, np.uint8)
    return Keys(fields, kind, words, hash_words(TEXT, fields, hashes))


class Texts:
    """Texts and their numbers, in the files texts.bytes and texts.ends of a folder; none ever goes.

    Args:
      folder: of the files.
      count: texts to begin with; what the files have beyond them is forgotten.
    """

    def __init__(self, folder: Path, count: int = 0, writable: bool = True):
        self.count = count
        self._ends = MappedRows(folder / "texts.ends", np.int64, count, writable)
        self._bytes = MappedRows(folder / "texts.bytes", np.uint8, self._end(count), writable)
        self._index = KeyIndex(folder if writable else None)
        for start in range(0, count, _AT_ONCE):
            numbers = np.arange(start, min(start + _AT_ONCE, count))
            self._index.add(self.block(numbers).hashes(), numbers)

    def _end(self, count: int) -> int:
        return int(self._ends.rows[count - 1]) if count else 0

    def block(self, numbers: np.ndarray) -> TextBlock:
        """The texts of some numbers [n] i64."""
        start = np.where(numbers > 0, self._ends.rows[np.maximum(numbers - 1, 0)], 0)
        return TextBlock(self._bytes.rows, start, self._ends.rows[numbers] - start)

    def find(self, texts: TextBlock, hashes: np.ndarray) -> np.ndarray:
        """[n] i64 numbers of texts, -1 of those that are not kept."""
        return self._index.find(hashes, lambda number, which: self.block(number).equal(texts.take(which)))

    def add(self, texts: TextBlock, hashes: np.ndarray) -> np.ndarray:
        """[n] i64 the numbers of distinct texts that are not kept, which now are."""
        numbers = self.count + np.arange(len(hashes))
        if not len(hashes):
            return numbers
        first = self._end(self.count)
        ends = first + np.cumsum(texts.length)
        self._ends.reserve(int(numbers[-1]) + 1)
        self._bytes.reserve(int(ends[-1]))
        self._ends.rows[numbers] = ends
        self._bytes.rows[first : int(ends[-1])] = texts.data[texts.flat()]
        self._index.add(hashes, numbers)
        self.count += len(numbers)
        return numbers

    def flush(self) -> None:
        """Returns when all texts are on the disk."""
        self._ends.flush()
        self._bytes.flush()
