"""Original ids -> rows, vectorised: a hash table in two arrays that can be memory-mapped.

An id is a row of 64-bit words: an integer is one, a text its UTF-8 bytes, padded with zeros. Open addressing with linear
probing at a load of at most one half, so that an id costs about two random reads, however many there are.

Letters: I ids, w words of one, n ids asked for.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from em3_jax.errors import UserError

EMPTY = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads ids that follow each other


@dataclasses.dataclass(frozen=True)
class IdIndex:
    """The rows of ids.

    Attributes:
      words: [I, w] u64, the ids.
      slots: [2^k] i32, rows in the order of their hashes; `EMPTY`.
      is_text: whether ids are texts, not integers.
    """

    words: np.ndarray
    slots: np.ndarray
    is_text: bool

    def find(self, ids: Sequence | np.ndarray) -> np.ndarray:
        """[n] i64 row of each id, -1 where there is none.

        Raises:
          UserError: the ids are of the other type.
        """
        asked, fits = encode(ids, self.is_text, self.words.shape[1])
        slots, last = self.slots, np.uint64(len(self.slots) - 1)
        place = _hash(asked, len(slots))
        row = np.take(slots, place)
        same = self._same(row, asked)
        open_ = np.flatnonzero(~same & (row != EMPTY))
        while len(open_):  # each round steps on to the next slot of those that met another id
            place[open_] = (place[open_] + np.uint64(1)) & last
            found = np.take(slots, place[open_])
            row[open_] = found
            hit = self._same(found, asked[open_])
            same[open_] = hit
            open_ = open_[~hit & (found != EMPTY)]
        return np.where(same & fits, row, -1).astype(np.int64)

    def _same(self, row: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """[n] bool whether the ids of `row` are the ones asked for; nothing is the same as `EMPTY`."""
        same = np.take(self.words[:, 0], row, mode="clip") == asked[:, 0]
        for k in range(1, asked.shape[1]):
            same &= np.take(self.words[:, k], row, mode="clip") == asked[:, k]
        return same & (row != EMPTY)

    def ids(self, rows: np.ndarray) -> list:
        """The original ids of rows [n], as Python integers or texts."""
        words = self.words[rows]
        if not self.is_text:
            return words[:, 0].view(np.int64).tolist()
        return [row.tobytes().rstrip(b"\0").decode() for row in words]


def build(ids: Sequence | np.ndarray) -> IdIndex:
    """The index of distinct ids.

    Raises:
      UserError: ids that are neither all integers nor all texts, or one that ends in a zero byte.
    """
    is_text = not np.issubdtype(np.asarray(ids).dtype, np.integer)
    if is_text:
        longest = max((len(str(one).encode()) for one in ids), default=1)
        width = max(-(-longest // 8), 1)
        if any(str(one).endswith("\0") for one in ids):
            raise UserError("an item or user id ends in a zero byte; rename it")
    else:
        width = 1
    words, _ = encode(ids, is_text, width)
    size = 1 << max(2 * len(words) - 1, 1).bit_length()
    slots = np.full(size, EMPTY, np.int32)
    place, open_ = _hash(words, size), np.arange(len(words))
    while len(open_):
        free = np.take(slots, place[open_]) == EMPTY
        slots[place[open_[free]]] = open_[free]  # of several that want a slot, the last gets it
        open_ = open_[np.take(slots, place[open_]) != open_]
        place[open_] = (place[open_] + np.uint64(1)) & np.uint64(size - 1)
    return IdIndex(words, slots, is_text)


def encode(ids: Sequence | np.ndarray, is_text: bool, width: int) -> tuple[np.ndarray, np.ndarray]:
    """([n, width] u64 words, [n] bool whether the id fits into them)."""
    if not len(ids):
        return np.zeros((0, width), np.uint64), np.zeros(0, bool)
    if is_text and isinstance(ids, list | tuple):  # numpy would make texts of a mixture
        other = next((one for one in ids if not isinstance(one, str | bytes)), None)
        if other is not None:
            raise UserError(f"ids are texts here, not {type(other).__name__} as {other!r}; convert them")
    given = np.asarray(ids)
    if is_text != (given.dtype.kind in "UST" or given.dtype == object):
        kinds = ("integers", "texts")
        raise UserError(f"ids are {kinds[is_text]} here, not {given.dtype.name} as {given.flat[0]!r}; convert them")
    if not is_text:
        if given.dtype.kind not in "iu":
            raise UserError(f"ids are integers here, not {given.dtype.name} as {given.flat[0]!r}; convert them")
        return given.astype(np.int64).view(np.uint64)[:, None], np.ones(len(given), bool)
    if given.dtype.kind != "S":
        given = np.array([one.encode() for one in given.tolist()])
    length = np.char.str_len(given)
    room = 8 * width
    fixed = given.astype(f"S{room}")
    return fixed.view(np.uint64).reshape(len(given), width), length <= room


def _hash(words: np.ndarray, size: int) -> np.ndarray:
    """[n] u64 first place of ids in `size` slots, a power of two."""
    mixed = words[:, 0] * _MIX
    for k in range(1, words.shape[1]):
        mixed = ((mixed ^ (mixed >> np.uint64(32))) + words[:, k]) * _MIX
    return mixed >> np.uint64(64 - (size.bit_length() - 1))
