"""Ranking metrics and paired tests: what a table of results may say. Host side, numpy, float64.

The contract of every function here:
- Inputs are one-dimensional, one entry per row (an impression). Labels are 0 or 1.
- The order of the rows does not matter, nor does how they were cut into batches.
- Tied scores are ties: a pair with equal scores counts half, whatever the sort did with it.
- A metric that is undefined (no row, one class only, one pair only) is NaN, never 0.5.
- Wrong input (a NaN score, a label that is not 0 or 1, lengths that differ) raises `ValueError`.
"""

from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from em3_jax.core.ranks import auc_by_group, midranks

KS = (5, 10, 20, 50)
"""Lengths of the lists that full ranking measures."""
OF_LISTS = tuple(f"{name}@{k}" for name in ("recall", "ndcg", "precision", "map") for k in KS)
OF_CLICKS = {"auc": 1, "gauc": 1, "qauc": 1, "logloss": -1}
OF_CONTENT = {"contrast_loss": -1, "contrast_accuracy": 1, "category_loss": -1, "category_accuracy": 1}
OF_AMOUNTS = {"rmse": -1, "mae": -1, "rmsle": -1, "r2": 1}
OF_GROUPS = ("ndcg", "mrr")
"""Of rows within their groups; NDCG is that of a length, ndcg@7."""
METRIC_SIGNS = OF_CLICKS | OF_CONTENT | dict.fromkeys(OF_LISTS, 1)
"""What may choose the best step, and whether more is better (1) or less (-1)."""


def sign(metric: str) -> int:
    """Whether more of a metric is better (1) or less (-1); that of a further label is called <label>_<metric>.

    >>> from em3_jax import metrics
    >>> metrics.sign("auc"), metrics.sign("logloss"), metrics.sign("buy_auc"), metrics.sign("recall@20")
    (1, -1, 1, 1)
    """
    if metric in METRIC_SIGNS:
        return METRIC_SIGNS[metric]
    own = metric.rpartition("_")[2].partition("@")[0]
    return 1 if own in OF_GROUPS or "gauc_by_" in metric else (METRIC_SIGNS | OF_AMOUNTS)[own]


class Gauc(NamedTuple):
    """Grouped AUC and how much of the data it speaks for.

    Attributes:
      value: mean of the groups' AUC, weighted by impressions; NaN if no group has both classes.
      groups_used: number of groups with both classes.
      groups_left_out: number of groups with one class only, whose AUC is undefined.
      rows_used: number of rows in the groups used.

    >>> from em3_jax import metrics
    >>> found = metrics.gauc([1, 0, 0], [2.0, 1.0, 5.0], groups=["ann", "ann", "bob"])
    >>> found.value, found.groups_used, found.groups_left_out
    (1.0, 1, 1)
    """

    value: float
    groups_used: int
    groups_left_out: int
    rows_used: int


class PairedTTest(NamedTuple):
    """Two-sided paired t-test.

    Attributes:
      mean_difference: mean of `a - b`.
      sd: sample standard deviation of `a - b` (n - 1 in the denominator); NaN if n < 2.
      t: mean_difference / (sd / sqrt(n)); NaN if `sd` is NaN or zero.
      p: probability of a |t| this large with n - 1 degrees of freedom if both had the same mean; NaN with `t`.
      n: number of pairs.

    >>> from em3_jax import metrics
    >>> found = metrics.paired_t_test([0.72, 0.74], [0.70, 0.71])
    >>> round(found.mean_difference, 3), round(found.p, 3), found.n
    (0.025, 0.126, 2)
    """

    mean_difference: float
    sd: float
    t: float
    p: float
    n: int


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Returns the area under the ROC curve: P(score of a positive > score of a negative) + P(equal) / 2.

    Args:
      labels: [N], 0 or 1.
      scores: [N], any monotone score: logits and probabilities give the same AUC.
      weights: [N], >= 0; a row of weight w counts as w rows, a row of weight 0 as none. None: all ones.

    Returns:
      The exact AUC, in O(N log N); NaN if one of the classes has no row.

    >>> from em3_jax import metrics
    >>> metrics.auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])  # of four pairs three are won, and one is tied
    0.875
    >>> metrics.auc([1, 1], [0.3, 0.9])  # no negative, no AUC
    nan
    """
    labels, scores, weights = _rows(labels, scores, weights)
    values, _, _ = auc_by_group(labels, scores, np.zeros(labels.shape, np.int8), weights)
    return float(values[0]) if values.size else np.nan


def gauc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None) -> Gauc:
    """Returns the AUC inside each group (a user, a query), averaged with the groups' impressions as weights.

    GAUC = sum_g n_g AUC_g / sum_g n_g, over the groups g that have both classes; n_g is the sum of the group's weights
    (its number of rows without `weights`). Also known as QAUC.

    Args:
      labels: [N], 0 or 1.
      scores: [N]; only compared inside a group.
      groups: [N], ids of any sortable dtype, in any order.
      weights: [N], >= 0, as in `auc`. None: all ones.

    Returns:
      The value, and the counts of what it rests on. Rows of weight 0 count nowhere.

    >>> from em3_jax import metrics
    >>> labels, scores, user = [1, 0, 1, 0], [0.9, 0.8, 0.2, 0.1], ["ann", "ann", "bob", "bob"]
    >>> metrics.gauc(labels, scores, user).value, metrics.auc(labels, scores)
    (1.0, 0.75)
    """
    ids = np.asarray(groups)
    if ids.shape != np.shape(labels):
        raise ValueError(f"groups has shape {ids.shape}, labels {np.shape(labels)}")
    if weights is not None:
        ids = ids[np.asarray(weights) != 0]
    labels, scores, weights = _rows(labels, scores, weights)
    values, impressions, rows = auc_by_group(labels, scores, ids, weights)
    used = ~np.isnan(values)
    value = np.average(values[used], weights=impressions[used]) if used.any() else np.nan
    return Gauc(float(value), int(used.sum()), int((~used).sum()), int(rows[used].sum()))


def logloss(labels: ArrayLike, logits: ArrayLike) -> float:
    """Returns the mean negative log-likelihood in nats, eq. (1) of the EM3 paper, from logits.

    -log sigmoid(x) = softplus(-x) for a positive, -log(1 - sigmoid(x)) = softplus(x) for a negative: no probability is
    ever rounded to 0 or 1, so nothing needs clipping.

    Args:
      labels: [N], 0 or 1.
      logits: [N], before the sigmoid.

    Returns:
      The mean over the rows; NaN without rows.

    >>> from em3_jax import metrics
    >>> round(metrics.logloss([1, 0], [0.0, 0.0]), 4)  # log 2: a model that knows nothing
    0.6931
    """
    return _mean(losses_of_rows(labels, logits))


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Returns mean prediction / mean label: 1 is calibrated, above 1 predicts too many positives.

    Args:
      labels: [N], 0 or 1.
      probabilities: [N], in [0, 1].

    Returns:
      The ratio; NaN without a positive.

    >>> from em3_jax import metrics
    >>> metrics.calibration([1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5])  # twice as many clicks as there were
    2.0
    """
    labels, probabilities = _probability_rows(labels, probabilities)
    observed = labels.sum()
    return float(probabilities.sum() / observed) if observed else np.nan


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 20) -> float:
    """Returns the mean over equal-mass bins of |mean prediction - mean label|.

    Rows are sorted by prediction and cut into `bins` runs of equal length (up to one row). Where a cut falls inside a
    run of equal predictions, each side gets the mean label of that run, so that row order cannot change the result.

    Args:
      labels: [N], 0 or 1.
      probabilities: [N], in [0, 1].
      bins: number of bins; with fewer rows than bins, each row is a bin.

    Returns:
      The error in [0, 1], bins weighted by their rows; NaN without rows.

    >>> from em3_jax import metrics
    >>> metrics.expected_calibration_error([1, 0, 1, 0], [0.5, 0.5, 0.75, 0.75], bins=2)
    0.125
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    labels, probabilities = _probability_rows(labels, probabilities)
    if not labels.size:
        return np.nan
    distinct, run, run_rows = np.unique(probabilities, return_inverse=True, return_counts=True)
    gap = np.repeat(distinct - np.bincount(run, labels) / run_rows, run_rows)  # [N], sorted by prediction
    bins = min(bins, gap.size)
    starts = np.arange(bins) * gap.size // bins
    return float(np.abs(np.add.reduceat(gap, starts)).sum() / gap.size)


def normalized_entropy(labels: ArrayLike, logits: ArrayLike) -> float:
    """Returns the log-loss in those of the mean click rate alone (He et al. 2014, section 3): below 1 says more than it.

    Args:
      labels: [N], 0 or 1.
      logits: [N], before the sigmoid.

    Returns:
      The ratio; NaN without both classes.

    >>> from em3_jax import metrics
    >>> round(metrics.normalized_entropy([1, 0, 1, 0], [2.0, -2.0, 2.0, -2.0]), 3)
    0.183
    """
    labels, logits, _ = _rows(labels, logits, None)
    rate = _mean(labels)
    if not 0 < rate < 1:
        return np.nan
    return logloss(labels, logits) / float(scipy.special.entr(rate) + scipy.special.entr(1 - rate))


def calibration_line(labels: ArrayLike, logits: ArrayLike, less: ArrayLike | None = None) -> tuple[float, float]:
    """Returns (slope, intercept) of the logistic regression of the label on the logit; 1 and 0 of a calibrated model.

    By Newton's steps, halved where one does not raise the likelihood.

    Args:
      labels: [N], 0 or 1.
      logits: [N], finite.
      less: [N], what the rows' logits are lower by than the line says; None = nothing.

    Returns:
      NaN where there is one class alone or one logit alone, or the classes do not overlap.

    >>> from em3_jax import metrics
    >>> logits = [-1.0] * 4 + [1.0] * 4  # they promise 27 % and 73 % of clicks; 25 % and 75 % come
    >>> [round(value, 2) for value in metrics.calibration_line([1, 0, 0, 0, 1, 1, 1, 0], logits)]
    [1.1, 0.0]
    """
    labels, logits, _ = _rows(labels, logits, None)
    if not labels.size or labels.min() == labels.max() or logits.min() == logits.max():
        return np.nan, np.nan
    x, below = np.stack([logits, np.ones_like(logits)], axis=1), 0.0 if less is None else np.asarray(less, np.float64)
    line = np.array([1.0, 0.0])
    loss = logloss(labels, x @ line - below)
    for _ in range(100):
        p = scipy.special.expit(x @ line - below)
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-12 * np.eye(2)
        step = np.linalg.solve(curvature, x.T @ (labels - p))
        for _ in range(40):
            if (after := logloss(labels, x @ (line + step) - below)) <= loss:
                break
            step = step / 2
        else:
            break
        line, moved, loss = line + step, np.abs(step).max(), after
        if moved < 1e-10:
            break
    return (float(line[0]), float(line[1])) if np.abs(line).max() < 1e6 and loss > 1e-9 else (np.nan, np.nan)


def paired_t_test(a: ArrayLike, b: ArrayLike) -> PairedTTest:
    """Returns the two-sided paired t-test of a metric of two models over the same seeds (or folds).

    Args:
      a: [n], the metric of the first model, one entry per seed.
      b: [n], of the second model, in the same order.

    Returns:
      Mean difference, its standard deviation, t, p and n. Differences that do not vary at all (up to rounding) give
      t = p = NaN: no spread means that the runs were not independent, not that the result is certain.

    >>> from em3_jax import metrics
    >>> em3, id_only = [0.783, 0.785, 0.784], [0.711, 0.694, 0.706]  # AUC of three seeds
    >>> round(metrics.paired_t_test(em3, id_only).p, 4)
    0.0048
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"a and b must be one-dimensional and of one length, got {a.shape} and {b.shape}")
    n = a.size
    if n < 2:
        return PairedTTest(_mean(a - b), np.nan, np.nan, np.nan, n)
    difference = a - b
    mean, sd = difference.mean(), difference.std(ddof=1)
    rounding = 4 * np.finfo(np.float64).eps * max(np.abs(a).max(), np.abs(b).max())
    t = mean / (sd / np.sqrt(n)) if sd > rounding else np.nan
    return PairedTTest(float(mean), float(sd), float(t), float(2 * scipy.special.stdtr(n - 1, -np.abs(t))), n)


def placements(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """Returns of each row the share of its group's other class that it is on the right side of.

    For a positive the share of the negatives below it, for a negative the share of the positives above
    it; ties count half: [N], NaN where the group has one class alone. The mean over either class of a
    group is the group's AUC. A row's midrank among all rows less its midrank in its own class counts
    the rows of the other class below it (Sun and Xu 2014, eq. 5).

    Args:
      labels: [N], 0 or 1.
      scores: [N].
      groups: [N] ints from 0 to G - 1.

    >>> from em3_jax import metrics
    >>> metrics.placements([1, 0, 0], [0.7, 0.9, 0.1], [0, 0, 0]).tolist()  # above one of two negatives
    [0.5, 0.0, 1.0]
    """
    labels, scores, _ = _rows(labels, scores, None)
    groups = np.asarray(groups)
    order = np.unique(scores, return_inverse=True)[1]
    place = groups * (int(order.max(initial=0)) + 1) + order  # rows by group, then by score
    ranks, below = midranks(place), np.empty(labels.shape)
    share = np.full(labels.shape, np.nan)
    count = np.bincount(groups)
    before = np.cumsum(count) - count  # rows of earlier groups
    for label in (0, 1):
        own = labels == label
        of_class = np.bincount(groups[own], minlength=len(count))
        before_in_class = np.cumsum(of_class) - of_class
        own_groups = groups[own]
        below[own] = ranks[own] - before[own_groups]
        below[own] -= midranks(place[own]) - before_in_class[own_groups]
        others = (count - of_class)[own_groups]
        won = below[own] if label else others - below[own]
        share[own] = np.divide(won, others, out=np.full(len(others), np.nan), where=others > 0)
    return share


def losses_of_rows(labels: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """Returns the negative log-likelihood of each row in nats, [N], whose mean is `logloss`.

    >>> from em3_jax import metrics
    >>> metrics.losses_of_rows([1, 0], [0.0, 2.0]).round(3).tolist()
    [0.693, 2.127]
    """
    labels, logits, _ = _rows(labels, logits, None)
    return np.logaddexp(0.0, np.where(labels == 1, -logits, logits))


def _rows(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns labels, scores and weights ([N] f64; weights None stays None), checked, without rows of weight 0."""
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if labels.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"labels and scores must be [N] and of one length, got {labels.shape} and {scores.shape}")
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        if weights.shape != labels.shape:
            raise ValueError(f"weights has shape {weights.shape}, labels {labels.shape}")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("weights must be finite and not negative")
        kept = weights > 0  # padding rows may hold anything, so they go before the checks
        labels, scores, weights = labels[kept], scores[kept], weights[kept]
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {scores.size} scores are NaN")
    return labels, scores, weights


def _probability_rows(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and probabilities ([N] f64), checked: a logit handed in by mistake is an error."""
    labels, probabilities, _ = _rows(labels, probabilities, None)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]; were these logits?")
    return labels, probabilities


def _mean(x: np.ndarray) -> float:
    """Returns the mean, NaN (without numpy's warning) if there is nothing to average."""
    return float(x.mean()) if x.size else np.nan
