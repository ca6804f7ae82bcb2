"""Numbers that a model reads as values: which, in which way, and what their training rows said of them.

Letter: m numbers.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

RANGES, STANDARDISED, LOG, PIECEWISE, PERIODIC = "ranges", "standardised", "log", "piecewise", "periodic"
KINDS = (RANGES, STANDARDISED, LOG, PIECEWISE, PERIODIC)
"""How a model may read a number: as the id of its range, or as a value, see `models.numbers`."""
MOST = 1e30
"""Of values, which are kept in 32 bits; so their differences fit, too."""


def as_values(numbers: Any) -> np.ndarray:
    """[m] f32 of numbers [m], NaN = missing; larger ones than `MOST` are as large as that."""
    return np.clip(np.asarray(numbers, np.float64), -MOST, MOST).astype(np.float32)


def symmetric_log(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|): as x near 0, as the logarithm far from it, of numbers of either sign."""
    return np.sign(values) * np.log1p(np.abs(values))


def _rounded(mean: float, std: float) -> tuple[float, float]:
    """(mean, spread), the spread in seven digits, the mean to as many places; where all are one, that as 32 bits hold it, 1.

    The spread is at least some steps of numbers of that size in 32 bits: below, what is standardised is their rounding.
    """
    if not std > 1e-12 * abs(mean):
        return float(np.float32(mean)), 1.0
    std = max(std, 2.0**-20 * abs(mean))
    places = 6 - int(np.floor(np.log10(std)))
    return round(float(mean), places), float(f"{std:.7g}")


class Fit(NamedTuple):
    """What training rows say of a number.

    Attributes:
      mean, std: of the number; std is 1 where all are one.
      log_mean, log_std: the same of its `symmetric_log`.
      low, high: the least and the largest.
    """

    mean: float
    std: float
    log_mean: float
    log_std: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: np.ndarray, counts: np.ndarray | None = None) -> "Fit":
        """Of numbers [m], NaN = missing, some of which there are; of each as 32 bits hold it.

        Args:
          counts: [m] i64, how often each is there; None = once.
        """
        return cls.of_parts([(numbers, counts)])

    @classmethod
    def of_parts(cls, parts: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> "Fit":
        """As `of`, of numbers and counts that come some at a time.

        In seven digits, so that it does not depend on their order, in which sums differ.
        """
        total, moments = 0, np.zeros((2, 2))  # mean, and sum of squares about it, of values and of their logarithms
        low, high = np.inf, -np.inf
        for numbers, counts in parts:
            values = as_values(numbers)
            there = ~np.isnan(values) if counts is None else ~np.isnan(values) & (counts > 0)
            values = values[there].astype(np.float64)
            if not len(values):
                continue
            weight = np.ones(len(values)) if counts is None else counts[there].astype(np.float64)
            low, high, count = min(low, values.min()), max(high, values.max()), weight.sum()
            for moment, of in zip(moments, (values, symmetric_log(values)), strict=True):
                mean = np.average(of, weights=weight)
                apart = mean - moment[0]
                moment[1] += np.sum(weight * (of - mean) ** 2) + apart**2 * total * count / (total + count)
                moment[0] += apart * count / (total + count)
            total += count
        rounded = [_rounded(mean, float(np.sqrt(squares / total))) for mean, squares in moments]
        return cls(*rounded[0], *rounded[1], float(low), float(high))

    def to_json(self) -> dict[str, float]:
        """As plain values; `from_json` reads them."""
        return self._asdict()

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Fit | None":
        """What `to_json` gives; None where the facts were kept before there was such."""
        return cls(*(float(facts[name]) for name in cls._fields)) if "mean" in facts else None


@dataclasses.dataclass(frozen=True)
class Number:
    """A number that a model reads as a value.

    Attributes:
      name: of its column.
      kind: one of `KINDS`, but ranges.
      fit: of the training rows.
      edges: where its ranges are cut, ascending.
      missing: whether training has rows without it.
    """

    name: str
    kind: str
    fit: Fit
    edges: tuple[float, ...]
    missing: bool

    @property
    def column(self) -> str:
        """Of its values in a dataset."""
        return value_column(self.name)


def value_column(name: str) -> str:
    """Name of a number -> that of the column of its values in a dataset."""
    return f"number_{name}"


@dataclasses.dataclass(frozen=True)
class Numbers:
    """The numbers that a model reads as values, by what they describe; see `fields.Fields`."""

    user: tuple[Number, ...] = ()
    item: tuple[Number, ...] = ()
    context: tuple[Number, ...] = ()
    event: tuple[Number, ...] = ()

    def groups(self) -> Iterator[tuple[str, tuple[Number, ...]]]:
        """(group, its numbers) of the groups that have some."""
        for field in dataclasses.fields(self):
            if found := getattr(self, field.name):
                yield field.name, found


NO_NUMBERS = Numbers()
