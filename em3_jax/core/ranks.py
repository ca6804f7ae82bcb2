"""Ranks of scores, and what pairs they win: what AUC is made of. Ties count half, whatever a sort did with them."""

import numpy as np


def auc_by_group(
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


def midranks(x: np.ndarray) -> np.ndarray:
    """Returns the rank of each entry from 1, the mean rank for ties: [N] f64."""
    _, run, run_rows = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(run_rows) - (run_rows - 1) / 2)[run]
