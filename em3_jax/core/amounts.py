"""Labels that are amounts from 0 up, such as seconds watched: how a score stands for one. Letter: n rows."""

from typing import NamedTuple

import numpy as np

LOSSES = ("log", "squared", "tweedie")
ORDINAL = "cumulative_link"
"""The loss of an amount that has a few ordered levels, such as stars; see `tasks.ordinal`."""
MOST_LEVELS = 64
POWER = 1.5
"""Of Tweedie's variance, mean ** POWER: between counts (1) and durations (2), with a share of exact zeros."""


class Amount(NamedTuple):
    """How an amount y is learnt from a score z = shift + scale x, of which x is what the model's head gives.

    Attributes:
      loss: "log": squared error of z from log(1 + y), so that what is expected is a typical amount;
        "squared": of z from y; "tweedie": the deviance of a compound Poisson of mean exp(z)
        (Jorgensen 1987), whose expectation is the mean, zeros and long tails included.
      shift, scale: of the training rows, so that x begins where it is to end; they do not train.
      levels: of `ORDINAL` the values that training rows have, ascending; of others ().
      thresholds: of `ORDINAL` log-odds of each level or less in training rows, one less than levels.
    """

    loss: str
    shift: float = 0.0
    scale: float = 1.0
    levels: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()


def fitted(loss: str, values: np.ndarray) -> Amount:
    """The amount as it begins.

    Args:
      loss: one of `LOSSES`, or `ORDINAL`.
      values: [n] of training rows, from 0 up.

    Raises:
      ValueError: `ORDINAL` of one level, or more than `MOST_LEVELS`.
    """
    values = np.asarray(values, np.float64)
    if loss == ORDINAL:
        levels, count = np.unique(values, return_counts=True)
        if not 1 < len(levels) <= MOST_LEVELS:
            raise ValueError(f"has {len(levels):,} levels in training rows, and may have 2 to {MOST_LEVELS}")
        share = (np.cumsum(count)[:-1] + 0.5) / (count.sum() + 1.0)
        return Amount(loss, 0.0, 1.0, tuple(levels.tolist()), tuple(np.log(share / (1 - share)).tolist()))
    if loss == "tweedie":
        return Amount(loss, float(np.log(max(values.mean(), 1e-6))), 1.0)
    target = np.log1p(values) if loss == "log" else values
    return Amount(loss, float(target.mean()), float(target.std()) or 1.0)


def expected(loss: str, scores: np.ndarray) -> np.ndarray:
    """[n] f64 amounts that scores z [n] stand for, from 0 up; of `ORDINAL` the score is the mean level."""
    scores = np.asarray(scores, np.float64)
    if loss == "log":
        return np.maximum(np.expm1(np.minimum(scores, 700.0)), 0.0)
    return np.exp(np.minimum(scores, 700.0)) if loss == "tweedie" else np.maximum(scores, 0.0)


def middle(levels: tuple[float, ...]) -> float:
    """Above which of the levels the upper half of them is; of an odd number the one in the middle."""
    return levels[(len(levels) - 1) // 2]
