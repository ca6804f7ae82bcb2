"""Numbers as categories: ranges between edges, the last one without an end; what is missing is a value of its own."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN

MISSING = "missing"
"""The word of numbers that are not there, where training has such rows."""


class Ranges(NamedTuple):
    """Where numbers are cut: [-inf, edges[0]), [edges[0], edges[1]), ..., [edges[-1], inf).

    Attributes:
      edges: [k] ascending; () = one range of all.
      missing: whether training has rows without a number.
    """

    edges: tuple[float, ...]
    missing: bool

    @classmethod
    def fitted(cls, values: np.ndarray, bins: int) -> "Ranges":
        """Ranges of about as many of the values [m] each (NaN = missing), `bins` of them at most.

        So few different values as there may be ranges have one each.
        """
        there = np.sort(values[~np.isnan(values)])
        distinct = np.unique(there)
        if len(distinct) <= bins:
            edges = distinct[1:]
        else:
            places = np.arange(1, bins) * len(there) // bins
            edges = np.unique(there[places])
            edges = edges[edges > there[0]]  # nothing is below the least
        return cls(tuple(edges.tolist()), bool(len(there) < len(values)))

    def words(self) -> list[str]:
        """What the ids `FIRST_KNOWN`, ... stand for."""
        shown = _shown(self.edges)
        middle = [f"{low} to {high}" for low, high in itertools.pairwise(shown)]
        ranges = [f"below {shown[0]}", *middle, f"{shown[-1]} and more"] if shown else ["any"]
        return ranges + [MISSING] * self.missing

    def ids(self, values: Sequence | np.ndarray) -> np.ndarray:
        """[m] i32 ids of numbers [m], NaN = missing."""
        values = np.asarray(values, np.float64)
        ids = FIRST_KNOWN + np.searchsorted(np.asarray(self.edges), values, side="right")
        without = FIRST_KNOWN + len(self.edges) + 1 if self.missing else UNKNOWN
        return np.where(np.isnan(values), without, ids).astype(np.int32)

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` reads them."""
        return {"edges": list(self.edges), "missing": self.missing}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Ranges":
        """What `to_json` gives."""
        return cls(tuple(float(edge) for edge in facts["edges"]), bool(facts["missing"]))


def _shown(edges: Sequence[float]) -> list[str]:
    """The edges in as few digits as tell them apart."""
    for digits in range(4, 18):
        shown = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(shown)) == len(edges):
            return shown
    return [repr(edge) for edge in edges]
