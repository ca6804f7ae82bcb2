"""Original ids -> rows, vectorised: a hash table in two arrays that can be memory-mapped.

An id is a row of 64-bit words: an integer is one, a text its UTF-8 bytes, padded with zeros. Open
addressing with linear probing at a load of at most one half, so that an id costs about two random
reads, however many there are.

Ids are found by their canonical form (`values.canonical`): 5, 5.0, "5" and "5.0" are the same one,
whichever of them is asked for and whichever the index was built of. Integers that are asked of
integers and texts that stand in the index as they are take no detour through it.

Letters: I ids, w words of one, n ids asked for.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.values import TRUTHS, canonical

EMPTY = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads ids that follow each other
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_TRUTH_WORDS = [np.frombuffer(text.encode().ljust(8, b"\0"), np.uint64)[0] for text in TRUTHS]


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

        Args:
          ids: [n] numbers, texts, truth values, ..., of one type or of several.

        Raises:
          UserError: an id is missing (None, NaN), or a list or an object.
        """
        ids = _one_dimension(ids)
        if not self.is_text:
            return self._rows(*_integers(ids))
        texts = _texts(ids)
        rows = self._rows(*encode(texts, True, self.words.shape[1]))
        missed = np.flatnonzero(rows < 0)
        if len(missed):
            rows[missed] = self._otherwise_written([_decoded(texts[k]) for k in missed])
        return rows

    def _otherwise_written(self, texts: list[str]) -> np.ndarray:
        """[n] i64 rows of texts that do not stand in the index as they are; -1 = none."""
        forms = [canonical(text) or "" for text in texts]
        rows = np.full(len(texts), -1)
        other = [k for k, text in enumerate(texts) if forms[k] != text]
        rows[other] = self._rows(*encode([forms[k] for k in other], True, self.words.shape[1]))
        for k in np.flatnonzero(rows < 0) if self._by_form else ():
            rows[k] = self._by_form.get(forms[k], -1)
        return rows

    @functools.cached_property
    def _by_form(self) -> dict[str, int]:
        """Canonical form -> row, of the ids that stand in the index in another one, as "5.0" does.

        Datasets that were prepared before ids had one form may hold such ids.
        """
        letters = np.ascontiguousarray(self.words).view(np.uint8).reshape(len(self.words), -1)
        dotted = (letters == ord(".")).any(axis=1)
        rows = np.flatnonzero(dotted | np.isin(self.words[:, 0], _TRUTH_WORDS))
        result: dict[str, int] = {}
        for text, row in zip(self.ids(rows), rows.tolist(), strict=True):
            if (form := canonical(text)) not in (None, text):
                result.setdefault(form, row)
        return result

    def _rows(self, asked: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """[n] i64 rows of ids that are [n, w] words; -1 = none, as of those that do not fit."""
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
      UserError: an id ends in a zero byte.
    """
    is_text = not np.issubdtype(np.asarray(ids).dtype, np.integer)
    words, _ = encode(ids, is_text, _width(ids) if is_text else 1)
    size = _size(len(words))
    slots = np.full(size, EMPTY, np.int32)
    place, open_ = _hash(words, size), np.arange(len(words))
    while len(open_):
        free = np.take(slots, place[open_]) == EMPTY
        slots[place[open_[free]]] = open_[free]  # of several that want a slot, the last gets it
        open_ = open_[np.take(slots, place[open_]) != open_]
        place[open_] = (place[open_] + np.uint64(1)) & np.uint64(size - 1)
    return IdIndex(words, slots, is_text)


class GrowingIndex:
    """The index of texts that come one after another, at the cost of those that are new.

    What it holds follows from the texts in their order, in whatever pieces they were added: of several that want a slot, the
    first has it. All slots are given anew when there are twice as many texts, or when one is longer than all before.
    """

    def __init__(self) -> None:
        self._words, self._count = np.zeros((0, 1), np.uint64), 0
        self._slots = np.full(_size(0), EMPTY, np.int32)

    def __len__(self) -> int:
        return self._count

    def add(self, ids: Sequence[str]) -> None:
        """Adds texts that are not in it.

        Raises:
          UserError: an id ends in a zero byte.
        """
        if not len(ids):
            return
        first, end, width = self._count, self._count + len(ids), self._words.shape[1]
        wider = max(_width(ids) - width, 0)
        new, _ = encode(ids, True, width + wider)
        if end > len(self._words) or wider:  # a new array: what `index` gave stays as it was
            room = max(end, 2 * first) - first
            self._words = np.pad(self._words[:first], ((0, room), (0, wider)))
        self._words[first:end], self._count = new, end
        if wider or _size(end) > len(self._slots):
            self._slots, first = np.full(_size(end), EMPTY, np.int32), 0
        else:
            self._slots = self._slots.copy()  # as above
        self._settle(np.arange(first, end))

    def _settle(self, open_: np.ndarray) -> None:
        """Gives slots to rows [n], ascending; an earlier one takes the place of a later one, who steps on."""
        slots = self._slots
        place = _hash(self._words[open_], len(slots))
        while len(open_):
            held = np.take(slots, place)
            wants = (held == EMPTY) | (open_ < held)
            slots[place[wants][::-1]] = open_[wants][::-1]  # of several, the first comes last and stays
            got = np.take(slots, place) == open_
            left = got & (held != EMPTY)
            open_, place = np.append(open_[~got], held[left]), np.append(place[~got], place[left])
            order = np.argsort(open_)
            open_, place = open_[order], (place[order] + np.uint64(1)) & np.uint64(len(slots) - 1)

    @property
    def index(self) -> IdIndex:
        """As it is now; it stays so whatever is added."""
        return IdIndex(self._words[: self._count], self._slots, True)


def _width(ids: Sequence | np.ndarray) -> int:
    """Words that the longest of some texts takes."""
    if any(str(one).endswith("\0") for one in ids):
        raise UserError("an item or user id ends in a zero byte; rename it")
    longest = max((len(str(one).encode()) for one in ids), default=1)
    return max(-(-longest // 8), 1)


def _size(count: int) -> int:
    """Slots for so many ids."""
    return 1 << max(2 * count - 1, 1).bit_length()


def encode(ids: Sequence | np.ndarray, is_text: bool, width: int) -> tuple[np.ndarray, np.ndarray]:
    """([n, width] u64 words, [n] bool whether the id fits into them) of ids of one type."""
    if not len(ids):
        return np.zeros((0, width), np.uint64), np.zeros(0, bool)
    if not is_text:
        return _integers(np.asarray(ids))
    letters, room = _letters(_texts(ids)), 8 * width
    fixed = np.zeros((len(ids), room), np.uint8)
    fixed[:, : letters.shape[1]] = letters[:, :room]
    return fixed.view(np.uint64), ~np.any(letters[:, room:], axis=1)


def _one_dimension(ids: Any) -> Sequence | np.ndarray:
    """Ids as a list or an array [n]."""
    given = ids if isinstance(ids, list | tuple) else np.asarray(ids)
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise UserError(f"ids have shape {given.shape}; give a list of them, [n]")
    return given


def _integers(ids: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n, 1] u64 words, [n] bool whether the id is an integer of 64 bits) of ids of any type."""
    if not isinstance(ids, np.ndarray) and set(map(type, ids)) == {int}:
        ids = np.asarray(ids)  # of objects where one has more than 64 bits
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
        fits = np.ones(len(ids), bool)
        if ids.dtype == np.uint64:
            fits = np.less_equal(ids, np.iinfo(np.int64).max)
        return ids.astype(np.int64).view(np.uint64)[:, None], fits
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "f" and not np.isnan(ids).any():
        fits = (ids == np.floor(ids)) & (np.abs(ids) < 2.0**63)
        return np.where(fits, ids, 0).astype(np.int64).view(np.uint64)[:, None], fits
    numbers = np.zeros((len(ids), 1), np.int64)
    fits = np.zeros(len(ids), bool)
    for k, one in enumerate(ids):
        text = _form(one)
        number = int(text) if _INTEGER.fullmatch(text) else 0
        if text == str(number) and -(1 << 63) <= number < 1 << 63:
            numbers[k], fits[k] = number, True
    return numbers.view(np.uint64), fits


def _texts(ids: Sequence | np.ndarray) -> np.ndarray:
    """[n] U or S: texts as they are given, of all else the canonical form."""
    if isinstance(ids, np.ndarray):
        if ids.dtype.kind in "US":
            return ids
        if ids.dtype.kind in "iu":
            return ids.astype(np.str_)
    some = list(ids)
    if not set(map(type, some)) <= {str, bytes}:
        some = [one if isinstance(one, str | bytes) else _form(one) for one in some]
    return _encoded(some)


def _form(one: Any) -> str:
    """The canonical text of an id; "" of the empty text, which no id is."""
    if isinstance(one, list | tuple | dict | set | np.ndarray):
        kind = type(one).__name__
        raise UserError(f"an id is a number or a text, not {kind} as '{str(one)[:100]}'")
    text = canonical(one)
    if text is None and not isinstance(one, str | bytes):
        raise UserError(f"an id is missing ({one!s:.100}); leave it out")
    return text or ""


def _decoded(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode("utf-8", "surrogatepass")


def _encoded(texts: Sequence) -> np.ndarray:
    """[n] S: the UTF-8 bytes of Python's texts."""
    try:
        return np.array([*map(str.encode, texts)])
    except (TypeError, UnicodeEncodeError):
        return np.array([one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass") for one in texts])


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
