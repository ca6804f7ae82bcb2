"""How sure a metric is of its test rows: what each row adds to it, and sums of that by user.

A metric of n rows is, to first order, its value on all rows there could be plus a sum over the rows of
their influence (Hampel 1974; for the AUC DeLong, DeLong and Clarke-Pearson 1988). Rows of one user
belong together: a user with a taste that the model misses misses many rows at once. So influences are
summed by user first (Obuchowski 1997 for the AUC), and the squares of these sums are the variance.
Where whole items are held out, it is the rows of one item that belong together, and sums are by item.

Every `*_influence` gives [N] f64 that sums to 0, NaN where its metric is undefined. Of two models on the
same rows, or of the mean over several seeds, the influence is the difference, or the mean, of theirs.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from em3_jax import metrics
from em3_jax.core import npy

LEVEL = 0.95
KINDS = ("user", "item")
"""What rows belong together by; `eval.py` keeps the sums of both."""


class Error(NamedTuple):
    """How sure a value is, of the rows it was measured on.

    Attributes:
      value: of a metric, or of a difference of two.
      error: its standard error, NaN with fewer than two clusters.
      low, high: interval that holds the true value in 95 % of such test sets (t, clusters - 1 degrees
        of freedom).
      p: two-sided, of a |value / error| this large if the true value were 0; NaN where error is 0.
      clusters: number of users (or of other clusters) behind it.
    """

    value: float
    error: float
    low: float
    high: float
    p: float
    clusters: int


def auc_influence(labels: ArrayLike, scores: ArrayLike) -> np.ndarray:
    """[N] influence of the rows on `metrics.auc`.

    A positive's is (share of negatives below it - AUC) / positives, a negative's (share of positives
    above it - AUC) / negatives.
    """
    return gauc_influence(labels, scores, np.zeros(np.shape(labels), np.int64))


def gauc_influence(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """[N] influence of the rows on `metrics.gauc`, wherever the users' rows lie in the groups.

    GAUC = sum_g n_g AUC_g / n, over the groups with both classes, of n rows: a row moves the AUC of its
    group (`auc_influence` within it, times n_g / n) and the group's weight, by (AUC_g - GAUC) / n. Rows
    of groups with one class alone have none.
    """
    label = np.asarray(labels, np.float64)
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    share = metrics.placements(label, scores, index)
    used = ~np.isnan(share)
    if not used.any():
        return np.full(label.shape, np.nan)
    index, share, label = index[used], share[used], label[used]
    rows = np.bincount(index)
    positives = np.bincount(index, label)
    of_positives = np.bincount(index, label * share)
    auc = np.divide(of_positives, positives, out=np.zeros(len(rows)), where=positives > 0)
    gauc = np.average(auc, weights=rows)
    of_class = np.where(label == 1, positives[index], (rows - positives)[index])
    within = (share - auc[index]) / of_class * rows[index]
    result = np.zeros(used.shape)
    result[used] = (within + auc[index] - gauc) / len(label)
    return result


def logloss_influence(labels: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """[N] influence of the rows on `metrics.logloss`, in nats."""
    losses = metrics.losses_of_rows(labels, logits)
    return (losses - losses.mean()) / max(len(losses), 1) if len(losses) else losses


def calibration_influence(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """[N] influence of the rows on `metrics.calibration`, the ratio of two sums."""
    labels, probabilities = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    observed = labels.sum()
    if not observed:
        return np.full(labels.shape, np.nan)
    return (probabilities - probabilities.sum() / observed * labels) / observed


def mean_influence(values: ArrayLike) -> np.ndarray:
    """[N] influence of each value on the mean of all."""
    array = np.asarray(values, np.float64)
    return (array - array.mean()) / len(array) if len(array) else array


@dataclasses.dataclass(frozen=True)
class ByCluster:
    """The influence of each user, or item, on the metrics of a run's slices: what `eval.py` keeps of the rows.

    Attributes:
      clusters: [G] i64, rows of the users' (items') table, ascending.
      moved: (slice, metric) -> [G] f64 sum of the influence of the cluster's rows, NaN where the slice
        has no row of it; slices in which the metric is undefined are left out.
    """

    clusters: np.ndarray
    moved: dict[tuple[str, str], np.ndarray]

    @classmethod
    def of(cls, of_row: np.ndarray) -> "ByCluster":
        """Of the users (items) of a split's rows [N], nothing measured yet."""
        return cls(np.unique(of_row).astype(np.int64), {})

    def add(self, slice_name: str, metric: str, influence: np.ndarray, of_row: np.ndarray) -> None:
        """Adds the metric of a slice: the influence [n] of its rows, and their users (items) [n]."""
        if not len(influence) or not np.isfinite(influence).all():
            return
        index = np.searchsorted(self.clusters, of_row)
        sums = np.bincount(index, influence, minlength=len(self.clusters))
        sums[np.bincount(index, minlength=len(self.clusters)) == 0] = np.nan
        self.moved[slice_name, metric] = sums

    def error(self, slice_name: str, metric: str, value: float) -> Error:
        """The error of a metric of a slice, whose value is `value`."""
        return error_of(value, self.moved.get((slice_name, metric), np.zeros(0)))

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        arrays = {f"{part}/{metric}": values for (part, metric), values in self.moved.items()}
        # The stub takes any name for that of its own flag; here each has a slash in it.
        np.savez_compressed(path, user=self.clusters, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "ByCluster":
        """What `save` wrote.

        Raises:
          OSError, ValueError, KeyError: the file is missing or damaged.
        """
        stored = npy.archive(path)
        user = stored.pop("user")
        parts = {name: name.rpartition("/") for name in stored}
        return cls(user, {(group, metric): stored[name] for name, (group, _, metric) in parts.items()})


def error_of(value: float, influence: np.ndarray) -> Error:
    """The error of `value`, rows of different users, or of different items, being independent.

    Args:
      value: a metric, or the difference of two models'.
      influence: [G] of the users (items) on it, NaN for those who have no part in it.
    """
    sums = influence[~np.isnan(influence)]
    number = len(sums)
    if number < 2 or not np.isfinite(value):
        return Error(float(value), np.nan, np.nan, np.nan, np.nan, number)
    error = float(np.sqrt(number / (number - 1) * np.sum(sums**2)))
    half = float(scipy.special.stdtrit(number - 1, (1 + LEVEL) / 2)) * error
    p = float(2 * scipy.special.stdtr(number - 1, -abs(value) / error)) if error > 0 else np.nan
    return Error(float(value), error, float(value) - half, float(value) + half, p, number)
