"""What more data would do: a gain's learning curve over shares of the training rows, and where two curves meet.

A gain in AUC is taken to move by the same amount with each doubling of the rows, less with each one
more: curves of learners flatten. The interval has the rows that were tested on, the same for all
points of the curve, the seeds, each point's own, and half of the extrapolated change, because a
straight line is a guess.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

DAMPING = 0.7  # of the change by a doubling, for each doubling beyond the data
GUESS = 0.5  # standard deviation of the extrapolated change, in shares of it
MOST_TIMES = 64  # a crossing further away is not named


class Point(NamedTuple):
    """A gain at a share of the rows.

    Attributes:
      share: of the training rows.
      value: the gain.
      drawn: [B] the replicates, with the rows' part and the seeds' part.
    """

    share: float
    value: float
    drawn: np.ndarray


class Forecast(NamedTuple):
    """A gain that has not been seen.

    Attributes:
      times: the data, in those there are.
      value, low, high: of the gain, 95 %.
      by_doubling: what the gain moves by with a doubling of the rows.
    """

    times: float
    value: float
    low: float
    high: float
    by_doubling: float


def forecast(curve: Sequence[Point], times: float) -> Forecast:
    """The gain at `times` the rows of the last point; at least two points."""
    line = _line(curve)
    value, slope = line @ [point.value for point in curve], _slope(curve) @ [point.value for point in curve]
    drawn = np.stack([point.drawn for point in curve])  # [P, B]
    change = _ahead(times)
    replicates = line @ drawn + change * (_slope(curve) @ drawn)
    guess = np.random.default_rng(3).standard_normal(replicates.shape)
    replicates = replicates + GUESS * abs(change * slope) * guess
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Forecast(times, float(value + change * slope), float(low), float(high), float(slope))


def crossing(model: Sequence[Point], other: Sequence[Point]) -> float | None:
    """How many times the rows `model` needs to pass `other`, which is above it at the last point; None if it is not seen to."""
    gap = float(_line(other) @ [p.value for p in other] - _line(model) @ [p.value for p in model])
    faster = float(_slope(model) @ [p.value for p in model] - _slope(other) @ [p.value for p in other])
    if gap <= 0 or faster <= 0:
        return None
    steps = np.arange(1, int(np.log2(MOST_TIMES)) * 100 + 1) / 100
    reached = np.flatnonzero([_ahead(2.0**step) * faster >= gap for step in steps])
    return float(2.0 ** steps[reached[0]]) if len(reached) else None


def _ahead(times: float) -> float:
    """Doublings to `times`, each counting less than the one before."""
    doublings = np.log2(times)
    return float(DAMPING * (1 - DAMPING**doublings) / (1 - DAMPING))


def _line(curve: Sequence[Point]) -> np.ndarray:
    """[P] weights of the points in the value of the fitted line at the last one."""
    x = _doublings(curve)
    return 1 / len(x) + (x[-1] - x.mean()) * _slope(curve)


def _slope(curve: Sequence[Point]) -> np.ndarray:
    """[P] weights of the points in the slope of the fitted line."""
    x = _doublings(curve)
    return (x - x.mean()) / np.sum((x - x.mean()) ** 2)


def _doublings(curve: Sequence[Point]) -> np.ndarray:
    return np.log2([point.share for point in curve])
