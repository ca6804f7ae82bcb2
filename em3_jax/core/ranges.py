"""Numbers as categories: ranges between edges, the last one without an end; what is missing is a value of its own."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.order_statistics import at_ranks

MISSING = "missing"
"""The word of numbers that are not there, where training has such rows."""
_AT_ONCE = 1 << 23
"""So many numbers are sorted in memory."""


class Ranges(NamedTuple):
    """Where numbers are cut: [-inf, edges[0]), [edges[0], edges[1]), ..., [edges[-1], inf).

    Attributes:
      edges: [k] ascending; () = one range of all.
      missing: whether training has rows without a number.
    """

    edges: tuple[float, ...]
    missing: bool

    @classmethod
    def fitted(cls, values: np.ndarray, bins: int, counts: np.ndarray | None = None) -> "Ranges":
        """Ranges of about as many of the values [m] each (NaN = missing), `bins` of them at most.

        So few different values as there may be ranges have one each.

        Args:
          counts: [m] i64, how often each value is there; None = once.

        Raises:
          ValueError: no value is there.
        """
        if counts is None:
            there = np.sort(values[~np.isnan(values)]) + 0.0  # one zero
            edges = _edges(np.unique(there), len(there), there.__getitem__, bins)
            return cls(edges, len(there) < len(values))
        values, counts = values[counts > 0], counts[counts > 0]
        order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN are the last
        there, ends = values[order] + 0.0, np.cumsum(counts[order])
        count = int(ends[-1]) if len(ends) else 0
        edges = _edges(np.unique(there), count, lambda ranks: there[np.searchsorted(ends, ranks, side="right")], bins)
        return cls(edges, count < int(counts.sum()))

    @classmethod
    def fitted_in_parts(cls, parts: Callable[[], Iterator[np.ndarray]], bins: int) -> "Ranges":
        """As `fitted`, of values that come some at a time, and are more than memory holds.

        Args:
          parts: gives all of them, [m] each, from the first on, each time it is called.
        """
        rows, count, least, few = 0, 0, np.inf, np.zeros(0)

        def present() -> Iterator[np.ndarray]:
            for values in parts():
                yield values[~np.isnan(values)] + 0.0

        for values in parts():
            there = values[~np.isnan(values)] + 0.0
            rows, count = rows + len(values), count + len(there)
            least = min(least, there.min(initial=np.inf))
            if len(few) <= bins:
                few = np.unique(np.concatenate([few, there]))[: bins + 1]
        if count <= _AT_ONCE:
            return cls(cls.fitted(np.concatenate([np.zeros(0), *present()]), bins).edges, count < rows)
        few[0] = least
        return cls(_edges(few, count, lambda ranks: at_ranks(present, ranks), bins), count < rows)

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


def _edges(distinct: np.ndarray, count: int, at: Callable[[np.ndarray], np.ndarray], bins: int) -> tuple[float, ...]:
    """Where so many numbers are cut.

    Args:
      distinct: different ones in ascending order: all, or the least and some more where they are more than `bins`.
      at: ranks -> the numbers there, in ascending order.
    """
    if not count:
        raise ValueError("there is no number")
    edges = distinct[1:]
    if len(distinct) > bins:
        edges = np.unique(at(np.arange(1, bins) * count // bins))
        edges = edges[edges > distinct[0]]  # nothing is below the least
    return tuple(edges.tolist())
