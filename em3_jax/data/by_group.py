"""An order of training rows in which those of a group, a session say, stand together, so that a batch holds them.

Each epoch has the groups in an order of its own, and a group's rows in that of time. Batches are cut
from it at one size, none of which is filled up: of a batch, the first and the last group may be cut.

Letter: n rows.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from em3_jax.core import rng

BY_GROUP = "by_group"


@dataclasses.dataclass(frozen=True, eq=False)
class GroupOrder:
    """The order of rows whose groups are known; it takes 4 bytes a row, and 8 more for each of two epochs.

    Attributes:
      group: [n] i32 of each row.
    """

    group: np.ndarray

    def __call__(self, index: np.ndarray, *key: Any) -> np.ndarray:
        """[*] i64 which rows stand at the places `index` [*] i64 of the order that `key` draws, see `rng.numpy_key`."""
        return self._order(key)[index]

    @functools.cached_property
    def _order(self) -> Any:
        """Key -> [n] i64; two are kept, as batches ahead may be of the next epoch."""
        return functools.lru_cache(maxsize=2)(self._drawn)

    def _drawn(self, key: tuple) -> np.ndarray:
        # Two groups that draw the same number are told apart by their own.
        return np.lexsort((self.group, rng.uniform_hash(rng.numpy_key(*key), self.group)))
