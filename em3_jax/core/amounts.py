"""Labels that are amounts from 0 up, such as seconds watched: how a score stands for one. Letter: n rows."""

from typing import NamedTuple

import numpy as np

LOSSES = ("log", "squared", "tweedie")
POWER = 1.5
"""Of Tweedie's variance, mean ** POWER: between counts (1) and durations (2), with a share of exact zeros."""


class Amount(NamedTuple):
    """How an amount y is learnt from a score z = shift + scale x, of which x is what the model's head gives.

    Attributes:
      loss: "log": squared error of z from log(1 + y), so that what is expected is a typical amount;
        "squared": of z from y; "tweedie": the deviance of a compound Poisson of mean exp(z)
        (Jorgensen 1987), whose expectation is the mean, zeros and long tails included.
      shift, scale: of the training rows, so that x begins where it is to end; they do not train.
    """

    loss: str
    shift: float = 0.0
    scale: float = 1.0


def fitted(loss: str, values: np.ndarray) -> Amount:
    """The amount as it begins.

    Args:
      loss: one of `LOSSES`.
      values: [n] of training rows, from 0 up.
    """
    values = np.asarray(values, np.float64)
    if loss == "tweedie":
        return Amount(loss, float(np.log(max(values.mean(), 1e-6))), 1.0)
    target = np.log1p(values) if loss == "log" else values
    return Amount(loss, float(target.mean()), float(target.std()) or 1.0)


def expected(loss: str, scores: np.ndarray) -> np.ndarray:
    """[n] f64 amounts that scores z [n] stand for, from 0 up."""
    scores = np.asarray(scores, np.float64)
    if loss == "log":
        return np.maximum(np.expm1(np.minimum(scores, 700.0)), 0.0)
    return np.exp(np.minimum(scores, 700.0)) if loss == "tweedie" else np.maximum(scores, 0.0)
