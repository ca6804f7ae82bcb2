"""Where keys stand: a hash table that remembers positions, of which many are found, added or removed at once.

Keys themselves lie elsewhere, in memory or in a file, at their positions. A slot holds 32 bits of a key's hash and its position;
where these bits agree, whoever asks compares the key in full, so that two keys of one hash are two keys.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_EMPTY, _GONE = np.uint64(0), np.uint64(0xFFFFFFFF)  # the low half; else it is the position + 1
_AT_ONCE = 1 << 17
LARGEST = (1 << 32) - 3
"""The largest position."""


class KeyIndex:
    """Positions of keys by their hashes: open addressing with linear probing, at most 60 % full.

    Args:
      folder: where the slots lie, in a file without a name; None = in memory.

    >>> import numpy as np
    >>> from em3_jax.tables.key_index import KeyIndex
    >>> keys = np.array([40, 50, 60])  # which lie at positions 0, 1, 2
    >>> index, hashes = KeyIndex(), keys.astype(np.uint64) << 32
    >>> index.add(hashes, np.arange(3))
    >>> asked = np.array([60, 41])
    >>> equal = lambda position, which: keys[position] == asked[which]
    >>> index.find(asked.astype(np.uint64) << 32, equal).tolist()
    [2, -1]
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._slots = self._new(1 << 12)
        self._held = self._filled = 0  # slots with a position; and those that had one

    def __len__(self) -> int:
        return self._held

    def _new(self, size: int) -> np.ndarray:
        if self._folder is None:
            return np.zeros(size, np.uint64)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.asarray(np.memmap(file, np.uint64, "w+", shape=(size,)))

    def _place(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> _SHIFT).astype(np.int64) & (len(self._slots) - 1)

    def find(self, hashes: np.ndarray, equal: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """[n] i64 the positions of keys, -1 of those that are not here.

        Args:
          hashes: [n] u64 of the keys.
          equal: (positions [m] i64, which of the keys [m] i64) -> [m] bool, whether they are the same.
        """
        found = np.full(len(hashes), -1, np.int64)
        which, place = np.arange(len(hashes)), self._place(hashes)
        while len(which):
            slot = self._slots[place]
            low = slot & _LOW
            is_same = (low != _EMPTY) & (low != _GONE) & ((slot ^ hashes[which]) >> _SHIFT == 0)
            maybe = np.flatnonzero(is_same)
            position = (low[maybe] - np.uint64(1)).astype(np.int64)
            is_equal = equal(position, which[maybe])
            found[which[maybe[is_equal]]] = position[is_equal]
            is_same[maybe[~is_equal]] = False
            goes_on = (low != _EMPTY) & ~is_same
            which, place = which[goes_on], (place[goes_on] + 1) & (len(self._slots) - 1)
        return found

    def add(self, hashes: np.ndarray, positions: np.ndarray) -> None:
        """Adds keys that are distinct and not here."""
        if not len(positions):
            return
        if int(positions.max()) > LARGEST:
            raise OverflowError(f"position {positions.max()} of a key index, whose largest is {LARGEST}")
        if (self._filled + len(positions)) > 0.6 * len(self._slots):
            self._rebuild(len(positions))
        self._put((hashes >> _SHIFT << _SHIFT) | (positions.astype(np.uint64) + np.uint64(1)))
        self._held += len(positions)

    def _put(self, entries: np.ndarray) -> None:
        place = self._place(entries)
        while len(entries):
            low = self._slots[place] & _LOW
            is_free = (low == _EMPTY) | (low == _GONE)
            self._slots[place[is_free]] = entries[is_free]  # of several for one slot the last has it
            is_put = is_free & (self._slots[place] == entries)
            self._filled += int(np.count_nonzero(is_put & (low == _EMPTY)))
            entries, place = entries[~is_put], (place[~is_put] + 1) & (len(self._slots) - 1)

    def remove(self, hashes: np.ndarray, positions: np.ndarray) -> None:
        """Removes keys that are here."""
        wanted = (hashes >> _SHIFT << _SHIFT) | (positions.astype(np.uint64) + np.uint64(1))
        place = self._place(hashes)
        self._held -= len(wanted)
        while len(wanted):
            slot = self._slots[place]
            if not (slot & _LOW).all():
                raise KeyError("a key to remove is not in the index")
            is_it = slot == wanted
            self._slots[place[is_it]] = slot[is_it] | _GONE
            wanted, place = wanted[~is_it], (place[~is_it] + 1) & (len(self._slots) - 1)

    def _rebuild(self, more: int) -> None:
        """Makes room for `more` keys, and forgets those that are gone."""
        old, size = self._slots, len(self._slots)
        while (self._held + more) > 0.4 * size:
            size *= 2
        self._slots, self._filled = self._new(size), 0
        for start in range(0, len(old), _AT_ONCE):
            part = np.asarray(old[start : start + _AT_ONCE])
            low = part & _LOW
            self._put(part[(low != _EMPTY) & (low != _GONE)])
