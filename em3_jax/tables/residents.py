"""Which ids have the rows of a table of fixed size: they are admitted when seen often enough, and give way to others.

An id that was seen `admit_after` times, in as many batches, takes a row; one that is not admitted reads `unknown`. Where no
row is free, others leave: those used least often (lfu, Einziger et al. 2017: counts are halved now and then, so that the
past does not weigh for ever), longest ago (lru), or admitted first (age). Those who left are in a `spill.Spill` and come
back when they are named again. All of it is exact: keys are compared in full.

Victims are chosen ahead, a 16th of the table at a time, and pass on their turn if they were named meanwhile.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.tables.id_keys import Keys
from em3_jax.tables.key_index import KeyIndex
from em3_jax.tables.sketch import CountMin
from em3_jax.tables.spill import HEAD, Spill

AHEAD = 16
COUNTED = 16  # rows named, as a multiple of the capacity, after which counts are halved
PER_ROW = 4  # counters of a line of the sketch
EVICT = ("lfu", "lru", "age")
Keep = Callable[[np.ndarray], np.ndarray]
"""(which of the keys) -> their words [*] i64, with which they can be found."""
_ARRAYS = ("hash", "word", "born", "last", "count", "field", "kind", "held", "pinned", "used")
_NUMBERS = ("clock", "births", "named", "halved", "admitted", "evicted", "returned", "unused_from")


class Moves(NamedTuple):
    """What has to move between the table and the spill, rows [*] i64 of the table and places [*] i64 of the spill.

    Attributes:
      out, out_place: rows that leave, and where to.
      back, back_place: rows for ids that come back, and where from.
      born: rows for new ids, of those that had others' values.
      birth: number of the first of them, among all births.
    """

    out: np.ndarray
    out_place: np.ndarray
    back: np.ndarray
    back_place: np.ndarray
    born: np.ndarray
    birth: int

    @property
    def any(self) -> bool:
        """Whether something has to."""
        return bool(len(self.out) or len(self.back) or len(self.born))


class Residents:
    """Ids and their rows, of a table of `capacity` rows, of which row 0 is nobody's.

    Args:
      admit_after: see above, 1 to 255.
      evict: one of `EVICT`.
      spill: where rows go.
      where: the setting of the capacity, for what is refused.

    Attributes:
      admitted, evicted, returned: ids, all in all.
    """

    def __init__(self, capacity: int, admit_after: int, evict: str, spill: Spill, where: str = "capacity"):
        self.capacity, self._admit_after, self._evict = capacity, admit_after, evict
        self.spill, self._where = spill, where
        self.hash, self.word = np.zeros(capacity, np.uint64), np.zeros(capacity, np.int64)
        self.born, self.last = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self.count = np.zeros(capacity, np.uint32)
        self.field, self.kind = np.zeros(capacity, np.uint16), np.zeros(capacity, np.uint8)
        self.held, self.pinned, self.used = (np.zeros(capacity, bool) for _ in range(3))
        self.used[0] = self.pinned[0] = True
        self.clock = self.births = self.named = self.halved = 0
        self.admitted = self.evicted = self.returned = 0
        self.unused_from = 1
        self._index, self._victims, self._chosen = KeyIndex(), np.zeros(0, np.int64), -1
        self._sketch = CountMin(PER_ROW * capacity) if admit_after > 1 else None

    def __len__(self) -> int:
        """Ids that have a row."""
        return len(self._index)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `load` takes; what was chosen ahead is forgotten, so that a run that goes on from here does the same."""
        self._victims = self._victims[:0]
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {"numbers": np.array([getattr(self, name) for name in _NUMBERS], np.int64)}
        if self._sketch is not None:
            arrays |= {"counters": self._sketch.counters, "added": np.array(self._sketch.added)}
        return arrays

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes up what `state` gave."""
        for name in _ARRAYS:
            getattr(self, name)[:] = arrays[name]
        for name, value in zip(_NUMBERS, arrays["numbers"].tolist(), strict=True):
            setattr(self, name, value)
        if self._sketch is not None:
            self._sketch.counters[:] = arrays["counters"]
            self._sketch.added = int(arrays["added"])
        rows = np.flatnonzero(self.held)
        self._index.add(self.hash[rows], rows)

    def keys(self, rows: np.ndarray) -> Keys:
        """Whose rows [n] these are."""
        return Keys(self.field[rows], self.kind[rows], self.word[rows], self.hash[rows])

    def find(self, keys: Keys) -> np.ndarray:
        """[n] i64 the rows of keys, -1 of those that have none."""
        return self._index.find(keys.hash, lambda row, which: self.keys(row).equal(keys.take(which)))

    def pin(self, keys: Keys, rows: np.ndarray) -> None:
        """Gives rows [n] that nobody had to keys for good."""
        self._settle(keys, rows)
        self.pinned[rows] = True

    def begin(self) -> None:
        """A batch begins: what it names is not evicted before the next."""
        self.clock += 1

    def touch(self, rows: np.ndarray, count: bool) -> None:
        """The batch names ids that have rows [n]; `count`: which counts as a use."""
        self.last[rows] = self.clock
        if not count:
            return
        self.count[rows] += 1
        self.named += len(rows)
        if self.named >= COUNTED * self.capacity:
            self.count >>= 1
            self.named, self.halved = 0, self.halved + 1

    def call(
        self, keys: Keys, prefer: np.ndarray, learn: bool, keep: Keep | None = None, admits: np.ndarray | None = None
    ) -> tuple[np.ndarray, Moves]:
        """(rows [n] i64, -1 of ids that are not admitted; what has to move).

        Args:
          keys: distinct ids that the batch names.
          prefer: [n] i64 the row that each would take if nobody has had it; -1 = any.
          learn: ids are counted; False counts none, brings back those that left, and admits those of which one batch is
            enough.
          keep: keeps the texts of ids that are admitted; None where all keys are of numbers.
          admits: [n] bool new ids that may be admitted; None = all.

        Raises:
          UserError: the batch names more ids than there are rows.
        """
        rows = self.find(keys)
        self.touch(rows[rows >= 0], learn)
        absent = np.flatnonzero(rows < 0)
        place = self.spill.find(keys.take(absent))
        back, new = absent[place >= 0], absent[place < 0]
        if not learn and self._sketch is not None:
            new = new[:0]
        place = place[place >= 0]
        if admits is not None:
            new = new[admits[new]]
        if self._sketch is not None and len(new):
            new = new[self._sketch.add(keys.hash[new]) >= self._admit_after]
        if keep is not None and len(new):
            keys.word[new] = keep(new)
        rows[new] = self._untouched(prefer[new])
        seeking = np.concatenate([back, new[rows[new] < 0]])
        unused = self._unused(len(seeking))
        victims = self._evictable(len(seeking) - len(unused))
        rows[seeking] = np.concatenate([unused, victims])
        out_place = self._leave(victims)
        heads = self.spill.heads(place)
        self.spill.back(place)
        self._settle(keys.take(back), rows[back], learn, heads)
        self._settle(keys.take(new), rows[new], learn)
        born = rows[seeking[len(unused) :]]
        born = born[~np.isin(born, rows[back])]
        moves = Moves(victims, out_place, rows[back], place, born, self.births)
        self.births += len(new)
        self.admitted, self.returned = self.admitted + len(new), self.returned + len(back)
        return rows, moves

    def _untouched(self, prefer: np.ndarray) -> np.ndarray:
        """[n] i64 the preferred rows that nobody has had; else -1."""
        rows = np.where((prefer > 0) & (prefer < self.capacity), prefer, 0)
        rows = np.where(self.used[rows], -1, rows)
        self.used[rows[rows >= 0]] = True
        return rows

    def _unused(self, most: int) -> np.ndarray:
        """Rows that nobody has had, the first ones, `most` at most."""
        found: list[np.ndarray] = []
        while most and self.unused_from < self.capacity:
            part = self.unused_from + np.flatnonzero(~self.used[self.unused_from : self.unused_from + 4 * most])[:most]
            whole = len(part) < most
            self.unused_from = min(self.unused_from + 4 * most if whole else int(part[-1]) + 1, self.capacity)
            most -= len(part)
            found.append(part)
        rows = np.concatenate([np.zeros(0, np.int64), *found])
        self.used[rows] = True
        return rows

    def _evictable(self, count: int) -> np.ndarray:
        """[count] i64 rows whose ids have to leave."""
        found: list[np.ndarray] = []
        while count:
            if not len(self._victims):
                self._choose(count)
            victims = self._victims[self.last[self._victims] <= self._chosen]
            found.append(victims[:count])
            self.held[found[-1]] = False  # not to be chosen once more
            self._victims, count = victims[count:], count - len(found[-1])
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _choose(self, least: int) -> None:
        """Chooses victims ahead, `least` or more."""
        rows = np.flatnonzero(self.held & ~self.pinned & (self.last < self.clock))
        if len(rows) < least:
            raise UserError(
                f"{self._where}={self.capacity}: a batch names more ids than there are rows for; give "
                f"{self.capacity + least - len(rows):,} or more, or train and evaluate with smaller batches"
            )
        score = self.born[rows] if self._evict == "age" else self.last[rows]
        if self._evict == "lfu":
            score = self.count[rows].astype(np.int64) << 31 | score
        many = min(max(least, self.capacity // AHEAD), len(rows))
        some = np.argpartition(score, many - 1)[:many]
        self._victims, self._chosen = rows[some[np.argsort(score[some], kind="stable")]], self.clock - 1

    def _leave(self, rows: np.ndarray) -> np.ndarray:
        """[n] i64 the places that the ids of rows go to."""
        if not len(rows):
            return rows
        heads = np.zeros(len(rows), HEAD)
        for name in ("hash", "word", "born", "last", "count", "field", "kind"):
            heads[name] = getattr(self, name)[rows]
        heads["halved"] = self.halved
        self._index.remove(self.hash[rows], rows)
        self.evicted += len(rows)
        return self.spill.leave(heads)

    def _settle(self, keys: Keys, rows: np.ndarray, learn: bool = False, heads: np.ndarray | None = None) -> None:
        """Gives rows to keys; with `heads`, to those that have come back."""
        self.hash[rows], self.word[rows], self.field[rows], self.kind[rows] = (
            keys.hash,
            keys.word,
            keys.field,
            keys.kind,
        )
        self.born[rows], self.last[rows], self.count[rows] = self.clock, self.clock, 0
        self.held[rows] = self.used[rows] = True
        if heads is not None:
            self.born[rows] = heads["born"]
            self.count[rows] = heads["count"] >> np.minimum(self.halved - heads["halved"], 31).astype(np.uint32)
        self.count[rows] += np.uint32(learn)
        self._index.add(keys.hash, rows)
