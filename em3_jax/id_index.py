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
        found = np.take(self.words, row, axis=0, mode="clip")  # whole rows: of a column, numpy would first copy all
        return (found == asked).all(axis=1) & (row != EMPTY)

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
    """([n, width] u64 words, [n] bool whether the id fits into them).

    Raises:
      UserError: the ids are of the other type.
    """
    if not len(ids):
        return np.zeros((0, width), np.uint64), np.zeros(0, bool)
    if is_text and isinstance(ids, list | tuple):  # numpy would make texts of a mixture
        given = _encoded(ids)
    else:
        given = np.asarray(ids)
        given = _encoded(given.tolist()) if is_text and given.dtype.kind in "OT" else given
    if given.dtype.kind not in ("US" if is_text else "iu"):
        first = given.flat[0]
        kind = "text" if given.dtype.kind in "UST" else type(first).__name__
        room = " of 64 bits" if given.dtype.kind == "O" and isinstance(first, int) else ""
        raise UserError(_of_other_type(is_text, room, kind, first))
    if not is_text:
        fits = given <= np.iinfo(np.int64).max if given.dtype == np.uint64 else np.ones(len(given), bool)
        return given.astype(np.int64).view(np.uint64)[:, None], fits
    letters, room = _letters(given), 8 * width
    fixed = np.zeros((len(given), room), np.uint8)
    fixed[:, : letters.shape[1]] = letters[:, :room]
    return fixed.view(np.uint64), ~letters[:, room:].any(axis=1)


def _encoded(texts: Sequence) -> np.ndarray:
    """[n] S: the UTF-8 bytes of Python's texts."""
    try:
        return np.array([*map(str.encode, texts)])
    except (TypeError, UnicodeEncodeError):
        for one in texts:
            if not isinstance(one, str | bytes):
                raise UserError(_of_other_type(True, "", type(one).__name__, one)) from None
        return np.array([one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass") for one in texts])


def _of_other_type(is_text: bool, room: str, kind: str, example: object) -> str:
    example = example.item() if isinstance(example, np.generic) else example
    return f"ids are {('integers', 'texts')[is_text]}{room} here, not {kind} as {str(example)[:100]!r}; convert them"


def _letters(texts: np.ndarray) -> np.ndarray:
    """[n, L] u8: the UTF-8 bytes of texts [n] of dtype U or S, zeros after the end."""
    if texts.dtype.kind == "U":
        letters = np.ascontiguousarray(texts).view(np.uint32).reshape(len(texts), -1)
        if letters.max() < 128:  # as nearly all ids: their code points are their bytes
            return letters.astype(np.uint8)
        texts = _encoded(texts.tolist())
    return np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), -1)


def _hash(words: np.ndarray, size: int) -> np.ndarray:
    """[n] u64 first place of ids in `size` slots, a power of two."""
    mixed = words[:, 0] * _MIX
    for k in range(1, words.shape[1]):
        mixed = ((mixed ^ (mixed >> np.uint64(32))) + words[:, k]) * _MIX
    return mixed >> np.uint64(64 - (size.bit_length() - 1))
