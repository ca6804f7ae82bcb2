"""Where the row of each id is as of the last step, in the table or in the spill, and tables that have them all.

Batches are named ahead of the steps (`endless.Endless.named`), and what has to move for them moves when
their turn comes. What is published in between is of the steps: it follows the moves, not the names.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from em3_jax.core import mapped
from em3_jax.tables import swaps
from em3_jax.tables.residents import Moves
from em3_jax.tables.spill import Spill

NOWHERE = -1  # of ids that were never admitted
_AT_ONCE = 1 << 16  # rows that are read from the spill together


class Changes(NamedTuple):
    """What a batch changes in a table of fixed size.

    Attributes:
      moves: rows of the table and places of the spill.
      entered, rows: [n] i64 ids, as the dataset names them, and the rows that they have from now on.
      left, places: [m] i64 ids that have left, and where to.
    """

    moves: Moves
    entered: np.ndarray
    rows: np.ndarray
    left: np.ndarray
    places: np.ndarray


class Whereabouts:
    """Where the rows of a dataset's ids are.

    Args:
      rows: [n] i64 of the table, -1 of ids that are not there.
      places: [n] i64 of the spill, -1 of ids that are not there.
      spill: where rows go.
    """

    def __init__(self, rows: np.ndarray, places: np.ndarray, spill: Spill):
        self._spill = spill
        self._at = np.where(rows >= 0, rows, np.where(places >= 0, _in_spill(places), NOWHERE))
        self._whole: list[np.ndarray] = []
        self._left: list[np.ndarray] = []  # ids that have left since tables were made of all

    @property
    def is_somewhere(self) -> np.ndarray:
        """[n] bool, whether each id has a row, in the table or in the spill."""
        return self._at != NOWHERE

    def settle(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Ids [n] have these rows of the table."""
        self._at[ids] = rows

    def follow(self, changes: Changes) -> None:
        """Takes up what has just moved."""
        self._at[changes.left] = _in_spill(changes.places)
        self._at[changes.entered] = changes.rows
        self._left.append(changes.left)

    def spread(self, leaves: list[np.ndarray], make: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        """Arrays with the rows of all ids, at the cost of the table and of those that left since the last call.

        They are this object's own, and written again by the next call.

        Args:
          leaves: of the table as of the last step, all that a row of the spill has, in its order; those
            beyond the first ones may be left out.
          make: makes the arrays, of what ids without a row have and as long as is wanted, for the first call.
        """
        is_first = not self._whole
        if is_first:
            self._whole = make()
        here = np.flatnonzero(self._at >= 0)
        for whole, leaf in zip(self._whole, leaves, strict=True):
            whole[here] = leaf[self._at[here]]
        left = np.arange(len(self._at)) if is_first else np.unique(np.concatenate([here[:0], *self._left]))
        left, self._left = left[self._at[left] < NOWHERE], []
        rows = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        for part in mapped.parts(len(left), size=_AT_ONCE):
            ids = left[part]
            data = swaps.split(self._spill.read(_in_spill(self._at[ids])), rows)
            for whole, one in zip(self._whole, data, strict=True):
                whole[ids] = one
        return self._whole


def _in_spill(places: np.ndarray) -> np.ndarray:
    """A place of the spill as a number below `NOWHERE`, and back."""
    return NOWHERE - 1 - places
