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
    """Whether more of a metric is better (1) or less (-1); that of a further label is called <label>_<metric>."""
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
    """
    labels, scores, weights = _rows(labels, scores, weights)
    values, _, _ = _auc_by_group(labels, scores, np.zeros(labels.shape, np.int8), weights)
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
    """
    ids = np.asarray(groups)
    if ids.shape != np.shape(labels):
        raise ValueError(f"groups has shape {ids.shape}, labels {np.shape(labels)}")
    if weights is not None:
        ids = ids[np.asarray(weights) != 0]
    labels, scores, weights = _rows(labels, scores, weights)
    values, impressions, rows = _auc_by_group(labels, scores, ids, weights)
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
    """
    return _mean(losses_of_rows(labels, logits))


def calibration(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Returns mean prediction / mean label: 1 is calibrated, above 1 predicts too many positives.

    Args:
      labels: [N], 0 or 1.
      probabilities: [N], in [0, 1].

    Returns:
      The ratio; NaN without a positive.
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
    """
    labels, scores, _ = _rows(labels, scores, None)
    groups = np.asarray(groups)
    order = np.unique(scores, return_inverse=True)[1]
    place = groups * (int(order.max(initial=0)) + 1) + order  # rows by group, then by score
    ranks, below = _midranks(place), np.empty(labels.shape)
    share = np.full(labels.shape, np.nan)
    count = np.bincount(groups)
    before = np.cumsum(count) - count  # rows of earlier groups
    for label in (0, 1):
        own = labels == label
        of_class = np.bincount(groups[own], minlength=len(count))
        before_in_class = np.cumsum(of_class) - of_class
        own_groups = groups[own]
        below[own] = ranks[own] - before[own_groups]
        below[own] -= _midranks(place[own]) - before_in_class[own_groups]
        others = (count - of_class)[own_groups]
        won = below[own] if label else others - below[own]
        share[own] = np.divide(won, others, out=np.full(len(others), np.nan), where=others > 0)
    return share


def losses_of_rows(labels: ArrayLike, logits: ArrayLike) -> np.ndarray:
    """Returns the negative log-likelihood of each row in nats, [N], whose mean is `logloss`."""
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


def _auc_by_group(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each group's AUC (NaN without both classes), weight and number of rows: three arrays [G].

    Sorts by (group, score), then sums over runs of equal score: the pairs that a run of positives wins are the
    negatives of its group strictly below it, plus half of those tied with it. Sums of counts are exact below 2**53.
    """
    order = np.argsort(scores)  # need not be stable, equal scores are one run; so faster than a lexsort
    order = order[np.argsort(groups[order], kind="stable")]
    labels, scores, groups = labels[order], scores[order], groups[order]
    weights = np.ones_like(labels) if weights is None else weights[order]
    group_changes = groups[1:] != groups[:-1]
    group_start = _run_starts(group_changes, labels.size)  # [G], first row of each group
    tie_start = _run_starts(group_changes | (scores[1:] != scores[:-1]), labels.size)  # [R], first row of each run
    first_tie = np.searchsorted(tie_start, group_start)  # [G], first run of each group

    positives = np.add.reduceat(weights * labels, tie_start)  # [R]
    negatives = np.add.reduceat(weights * (1 - labels), tie_start)
    group_positives = np.add.reduceat(positives, first_tie)  # [G]
    group_negatives = np.add.reduceat(negatives, first_tie)
    below = np.cumsum(negatives) - negatives  # [R], negatives in all earlier runs, those of earlier groups included
    below -= np.repeat(below[first_tie], np.diff(first_tie, append=tie_start.size))
    won = np.add.reduceat(positives * (below + negatives / 2), first_tie)

    pairs = group_positives * group_negatives
    values = np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)
    return values, group_positives + group_negatives, np.diff(group_start, append=labels.size)


def _run_starts(changes: np.ndarray, size: int) -> np.ndarray:
    """Returns the first row of each run, where `changes` ([size - 1] bool) says whether row i + 1 starts a new one."""
    return np.flatnonzero(np.concatenate([[True], changes]))[:size]  # [:0] where there is no row at all


def _midranks(x: np.ndarray) -> np.ndarray:
    """Returns the rank of each entry from 1, the mean rank for ties: [N] f64."""
    _, run, run_rows = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(run_rows) - (run_rows - 1) / 2)[run]


def _mean(x: np.ndarray) -> float:
    """Returns the mean, NaN (without numpy's warning) if there is nothing to average."""
    return float(x.mean()) if x.size else np.nan
