"""Rows that have left a table, in memory-mapped files of a run's folder, to come back as they left, bit for bit.

    spill/rows     the rows: embedding and optimizer's slots, as many bytes each
    spill/heads    whose they are, when they left, and when they came back
    spill/texts.*  ids that are texts, see `id_keys.Texts`

Checkpoints do not copy the files. A row that came back stays where it was until no checkpoint is kept that needs it there, so the
files are right for each of these: `era` counts checkpoints, and of checkpoint k the rows are here that had left until k and come
back after it.
"""

from pathlib import Path

import numpy as np

from em3_jax.tables.id_keys import Keys
from em3_jax.tables.key_index import KeyIndex
from em3_jax.tables.mapped_rows import MappedRows

NEVER = np.iinfo(np.int32).max
KEPT = 2  # checkpoints that may be gone back to
_AT_ONCE = 1 << 17
HEAD = np.dtype(
    [
        ("hash", "<u8"), ("word", "<i8"), ("born", "<i8"), ("last", "<i8"), ("count", "<u4"), ("halved", "<i4"),
        ("left", "<i4"), ("back", "<i4"), ("field", "<u2"), ("kind", "u1"), ("pad", "u1", (5,)),
    ]
)  # fmt: skip
"""Whose a row is (`hash`, `word`, `field`, `kind`: see `id_keys.Keys`), what decides who leaves (`born`, `last`, `count`,
`halved`: see `residents`), the era in which it left, and that in which it came back."""


class Spill:
    """Rows that have left.

    Args:
      folder: of the files.
      row_bytes: of a row.
      era: of the checkpoint to go on from; 0 = the run begins.
      count: places that it names.
      writable: False only reads: what that checkpoint has.

    Attributes:
      era: of what is done now; one more than that of the checkpoint before.
      count: places in the files that were ever in use.
    """

    def __init__(self, folder: Path, row_bytes: int, era: int = 0, count: int = 0, writable: bool = True):
        self.folder, self.era, self.count = folder, era + 1, count
        self._heads = MappedRows(folder / "heads", HEAD, count, writable)
        self._rows = MappedRows(folder / "rows", np.dtype((np.void, row_bytes)), count, writable)
        self._index = KeyIndex(folder if writable else None)
        self._free = np.zeros(0, np.int64)
        self._returned: dict[int, list[np.ndarray]] = {}  # era -> places, of each batch
        for start in range(0, count, _AT_ONCE):
            self._recall(np.arange(start, min(start + _AT_ONCE, count)), era, writable)
        if writable:
            self._release()

    def _recall(self, places: np.ndarray, era: int, writable: bool) -> None:
        """Takes up some places as they were at a checkpoint."""
        heads = self._heads.rows[places]
        is_free, came_later = heads["left"] > era, heads["back"] > era
        is_here = ~is_free & came_later
        self._index.add(heads["hash"][is_here], places[is_here])
        if not writable:
            return
        self._heads.rows["back"][places[is_here]] = NEVER
        self._free = np.concatenate([self._free, places[is_free]])
        for back in np.unique(heads["back"][~is_free & ~came_later]):
            self._returned.setdefault(int(back), []).append(places[~is_free & (heads["back"] == back)])

    def __len__(self) -> int:
        """Rows that are here."""
        return len(self._index)

    @property
    def bytes(self) -> int:
        """Of the rows that are here, with their heads."""
        return len(self) * (self._rows.rows.dtype.itemsize + HEAD.itemsize)

    def heads(self, places: np.ndarray) -> np.ndarray:
        """[n] `HEAD` of some places."""
        return self._heads.rows[places]

    def keys(self, places: np.ndarray) -> Keys:
        """Whose rows stand at some places."""
        heads = self._heads.rows[places]
        return Keys(heads["field"], heads["kind"], heads["word"], heads["hash"])

    def find(self, keys: Keys) -> np.ndarray:
        """[n] i64 the places of keys' rows, -1 of those that are not here."""
        if not len(self._index):
            return np.full(len(keys.hash), -1, np.int64)
        return self._index.find(keys.hash, lambda place, which: self.keys(place).equal(keys.take(which)))

    def leave(self, heads: np.ndarray) -> np.ndarray:
        """[n] i64 places for rows that leave now, whose `heads` [n] lack only when; their bytes follow by `write`."""
        taken = self._free[: len(heads)]
        self._free = self._free[len(taken) :]
        more = len(heads) - len(taken)
        places = np.concatenate([taken, self.count + np.arange(more)])
        self.count += more
        self._heads.reserve(self.count)
        self._rows.reserve(self.count)
        heads["left"], heads["back"] = self.era, NEVER
        self._heads.rows[places] = heads
        self._index.add(heads["hash"], places)
        return places

    def write(self, places: np.ndarray, data: np.ndarray) -> None:
        """Puts rows [n, bytes] u8 at their places."""
        self._rows.rows[places] = np.ascontiguousarray(data).view(self._rows.rows.dtype)[:, 0]

    def read(self, places: np.ndarray) -> np.ndarray:
        """[n, bytes] u8 the rows at some places."""
        found = self._rows.rows[places]
        return np.asarray(found).view(np.uint8).reshape(len(places), self._rows.rows.dtype.itemsize)

    def back(self, places: np.ndarray) -> None:
        """Rows have come back, and are no longer here."""
        self._index.remove(self._heads.rows["hash"][places], places)
        self._heads.rows["back"][places] = self.era
        self._returned.setdefault(self.era, []).append(places)

    def flush(self) -> None:
        """Returns when all is on the disk; a checkpoint of this era may follow."""
        self._heads.flush()
        self._rows.flush()

    def saved(self) -> None:
        """The checkpoint of this era is kept, and the next era begins."""
        self.era += 1
        self._release()

    def _release(self) -> None:
        """Places that no checkpoint needs are free."""
        for era in [era for era in self._returned if era <= self.era - 1 - KEPT]:
            self._free = np.concatenate([self._free, *self._returned.pop(era)])
