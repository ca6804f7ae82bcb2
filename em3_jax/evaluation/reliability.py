"""Predictions against what was observed, by tenths of the rows: what a reliability diagram draws. Letters: m rows, 10 tenths.

Rows of one user (or item) belong together here too: the variance of a tenth's mean is that of sums by user. The interval of a
rate is Wilson's (1927) for the number of independent rows that have this variance (Kish's design effect, 1965), so it stays
within 0 and 1, and is one where nothing was clicked; that of an amount is the mean and t times its error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from em3_jax.evaluation.calibration import DECILES
from em3_jax.evaluation.influence import LEVEL
from em3_jax.evaluation.labels import Head

BINS = 40
"""Of the histogram of predictions."""
SKEWED = 8.0
"""Times the lowest tenth from which the highest one, of predictions and of what was observed, makes the axes logarithmic."""


def of_heads(heads: Sequence[Head], calibrated: Mapping[str, np.ndarray], of_row: np.ndarray) -> dict[str, Any]:
    """Slice -> what `of_head` gives.

    Args:
      heads: the labels of a split of n rows.
      calibrated: label -> [n] calibrated probabilities; {} where the run has no calibration.
      of_row: [n] the user (item) of each row.
    """
    result = {}
    for head in heads:
        after = calibrated[head.label][head.there] if head.label in calibrated else None
        if len(head.values):
            result[head.slice_name] = of_head(head, after, of_row[head.there])
    return result


def of_head(head: Head, calibrated: np.ndarray | None, cluster: np.ndarray) -> dict[str, Any]:
    """A label's tenths, as plain values.

    Args:
      calibrated: [m] probabilities; None without a calibration.
      cluster: [m] the user (item) of each row.

    Returns:
      {"label", "amount": whether it is one, "rows", "mean", "log": whether axes should be, "before": [`tenths`], "after": the
      same with the calibration, or [], "histogram": {"edges" [bins + 1], "rows" [bins], "positives" [bins]} of predictions}.
    """
    before = np.asarray(head.scores, np.float64) if head.is_amount else head.probability
    shown = before if calibrated is None else calibrated
    own = tenths(head.values, before, cluster, head.is_amount)
    after = [] if calibrated is None else tenths(head.values, calibrated, cluster)
    of = {name: [one[name] for one in own + after] for name in ("predicted", "observed")}
    log = min(of["predicted"]) > 0 and all(max(means) > SKEWED * min(means) for means in of.values())
    return {
        "label": head.label,
        "amount": head.is_amount,
        "rows": len(head.values),
        "mean": float(head.values.mean()),
        "log": log,
        "before": own,
        "after": after,
        "histogram": _histogram(head.values, shown, log),
    }


def tenths(
    values: np.ndarray, predicted: np.ndarray, cluster: np.ndarray, is_amount: bool = False
) -> list[dict[str, float]]:
    """Of each tenth of the rows by prediction: {"rows", "predicted", "observed", "low", "high"}, means and a 95 % interval.

    Rows of equal predictions stay together, so with many of them there are fewer tenths, and of other sizes.

    Args:
      values: [m] 0/1, or an amount.
      predicted: [m].
      cluster: [m] whose rows count as one.
      is_amount: see `values`.
    """
    order = np.argsort(predicted, kind="stable")
    sorted_values = predicted[order]
    cuts = np.arange(1, DECILES) * len(order) // DECILES
    # A cut within a run of equal predictions goes to the run's end.
    cuts = np.searchsorted(sorted_values, sorted_values[np.maximum(cuts - 1, 0)], side="right")
    result = []
    for rows in np.split(order, np.unique(cuts[cuts < len(order)])):
        if len(rows):
            observed = values[rows].astype(np.float64)
            low, high = _interval(observed, cluster[rows], is_amount)
            means = {"predicted": float(predicted[rows].mean()), "observed": float(observed.mean())}
            result.append({"rows": len(rows), **means, "low": low, "high": high})
    return result


def _interval(values: np.ndarray, cluster: np.ndarray, is_amount: bool) -> tuple[float, float]:
    """The 95 % interval of a mean, rows of one cluster counting as one; (NaN, NaN) of an amount of one cluster."""
    number, mean = len(values), values.mean()
    _, index = np.unique(cluster, return_inverse=True)
    clusters = int(index.max()) + 1
    sums = np.bincount(index, values - mean)
    variance = clusters / max(clusters - 1, 1) * float(np.sum(sums**2)) / number**2
    if is_amount:
        half = float(scipy.special.stdtrit(clusters - 1, (1 + LEVEL) / 2)) * variance**0.5 if clusters > 1 else np.nan
        return float(mean - half), float(mean + half)
    independent = min(number, mean * (1 - mean) / variance) if variance > 0 else number
    z2 = float(scipy.special.ndtri((1 + LEVEL) / 2)) ** 2
    middle = (mean + z2 / (2 * independent)) / (1 + z2 / independent)
    half = np.sqrt(z2 * (mean * (1 - mean) / independent + z2 / (4 * independent**2))) / (1 + z2 / independent)
    return max(float(middle - half), 0.0), min(float(middle + half), 1.0)


def _histogram(values: np.ndarray, predicted: np.ndarray, log: bool) -> dict[str, list[float]]:
    """Rows, and those with a value above 0, by prediction, between the predictions of the lowest and the highest 0.5 %."""
    low, high = np.quantile(predicted, [0.005, 0.995])
    if high <= low:
        low, high = low * 0.9, high * 1.1 or 1.0
    edges = np.geomspace(max(low, high * 1e-6), high, BINS + 1) if log else np.linspace(low, high, BINS + 1)
    within = np.clip(predicted, edges[0], edges[-1])
    rows, hits = np.histogram(within, edges)[0], np.histogram(within[values > 0], edges)[0]
    return {"edges": edges.tolist(), "rows": rows.tolist(), "positives": hits.tolist()}
