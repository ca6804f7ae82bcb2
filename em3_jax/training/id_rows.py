"""Tables of one kind whose ids come and go: who has their rows, and what a dataset calls these ids."""

from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import mapped
from em3_jax.data.format import Dataset
from em3_jax.tables import swaps
from em3_jax.tables.id_keys import Texts
from em3_jax.tables.residents import Moves, Residents
from em3_jax.tables.spill import Spill
from em3_jax.training.original_ids import OriginalIds
from em3_jax.training.whereabouts import Changes, Whereabouts

_AT_ONCE = 1 << 16  # ids that are sought together


class IdRows:
    """Tables of one kind, who has their rows, and what a dataset calls these ids.

    Args:
      folder: of the spill.
      capacity, admit_after, evict, where: see `Residents`.
      shapes, fresh: see `Swaps`.
      saved: what `state` gave; {} = the run begins.
      followed: whether it is asked where all rows are.

    Attributes:
      where: where they are as of the last step; None where that is not asked.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        shapes: Any,
        admit_after: int,
        evict: str,
        where: str,
        fresh: swaps.Fresh,
        saved: dict,
        followed: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        numbers = saved.get("spill", np.zeros(4, np.int64)).tolist()  # era, places, texts, rows
        self.texts = Texts(folder, numbers[2])
        self.spill = Spill(folder, swaps.row_bytes(shapes), *numbers[:2])
        self.residents = Residents(capacity, admit_after, evict, self.spill, where)
        self.swaps = swaps.Swaps(shapes, self.spill, fresh)
        if saved:
            self.residents.load(saved)
        self._virtual_of = np.full(capacity, -1, np.int64)
        self._row_of = np.zeros(0, np.int32)
        self._followed = followed
        self.where: Whereabouts | None = None

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for a checkpoint; returns when what has left is on the disk."""
        self.swaps.fetch()
        self.spill.flush()
        self.texts.flush()
        numbers = [self.spill.era, self.spill.count, self.texts.count, len(self.spill)]
        return self.residents.state() | {"spill": np.array(numbers, np.int64)}

    def begin(self, dataset: Dataset, count: int, first: int = 0) -> OriginalIds:
        """Begins with a dataset that names `count` ids, the first of them as its table row `first`; returns their keys."""
        self.names, self._first = OriginalIds(dataset, self.texts), first
        self._row_of = np.full(count, -1, np.int32)
        self._virtual_of[:] = -1
        self._know(np.zeros(1, np.int64), np.zeros(1, np.int64))  # padding
        if self._followed:
            self._look_for_all(count)
        return self.names

    def _look_for_all(self, count: int) -> None:
        rows, places = np.full(count, -1, np.int64), np.full(count, -1, np.int64)
        rows[0] = 0
        for part in mapped.parts(count - 1, size=_AT_ONCE):
            virtual = np.arange(1 + part.start, 1 + part.stop)
            keys, _ = self.names.keys(virtual + self._first)
            rows[virtual], places[virtual] = self.residents.find(keys), self.spill.find(keys)
        there = np.flatnonzero(rows >= 0)
        self._know(there, rows[there])
        self.where = Whereabouts(rows, places, self.spill)

    def settle(self, virtual: np.ndarray, rows: np.ndarray) -> None:
        """The dataset calls the ids of these rows so, for good."""
        self._know(virtual, rows)
        if self.where is not None:
            self.where.settle(virtual, rows)

    def _know(self, virtual: np.ndarray, rows: np.ndarray) -> None:
        self._row_of[virtual], self._virtual_of[rows] = rows, virtual

    def know_of(self, virtual: np.ndarray) -> np.ndarray:
        """[n] i64 the rows of what is known, -1 of what is not."""
        return self._row_of[virtual].astype(np.int64)

    def rows(
        self, virtual: np.ndarray, learn: bool, admits: np.ndarray | None = None
    ) -> tuple[np.ndarray, Changes | None]:
        """([n] i64 rows for the ids that a batch names, -1 of ids without; what has to move before it, if all were not there).

        Args:
          virtual: [n] i64 what the dataset calls them, distinct.
          learn, admits: see `Residents.call`.
        """
        own = self.residents
        own.begin()
        rows = self.know_of(virtual)
        is_absent = rows < 0
        own.touch(rows[~is_absent], learn)
        absent = virtual[is_absent]
        if not len(absent):
            return rows, None
        keys, kept = self.names.keys(absent + self._first)
        admits = None if admits is None else admits[is_absent]
        found, moves = own.call(keys, absent, learn, lambda which: kept.words(keys, which), admits)
        left, places = self._let_go(moves)
        entered = absent[found >= 0]
        self._know(entered, found[found >= 0])
        rows[is_absent] = found
        return rows, Changes(moves, entered, found[found >= 0], left, places)

    def _let_go(self, moves: Moves) -> tuple[np.ndarray, np.ndarray]:
        """(ids that leave, where to), of those that the dataset has."""
        left = self._virtual_of[moves.out]
        known = left >= 0
        self._row_of[left[known]] = -1
        self._virtual_of[moves.out] = -1
        return left[known], moves.out_place[known]

    def moved(self, tables: Any, changes: Changes) -> Any:
        """The tables, which are donated, with what a batch changes."""
        tables = self.swaps(tables, changes.moves)
        if self.where is not None:
            self.where.follow(changes)
        return tables
