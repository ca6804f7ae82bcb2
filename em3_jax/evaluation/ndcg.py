"""NDCG@K and the reciprocal rank of lists: each group's rows, ranked by score. Letters: N rows, G groups.

Groups count alike, whatever their number of rows. Rows of equal scores stand in every order alike: what is measured is the
expectation over their orders, so it does not depend on the order of the rows. A group whose rows all have one gain is no ranking
to be right or wrong about: it is left out, and counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy


class Lists(NamedTuple):
    """What is known of each list.

    Attributes:
      first_row: [G] the first of the group's rows, as they were given; groups ascend.
      values: "ndcg@K" or "mrr" -> [G] f64, NaN of groups that are left out.
    """

    first_row: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def used(self) -> np.ndarray:
        """[G] bool: the groups that are not left out."""
        return ~np.isnan(next(iter(self.values.values())))

    def mean(self, metric: str) -> float:
        """The mean over the groups; NaN where all are left out."""
        used = self.used
        return float(self.values[metric][used].mean()) if used.any() else float("nan")

    def influence(self, metric: str, rows: int) -> np.ndarray:
        """[N] influence on the mean, see `influence`: that of a group is at the first of its rows.

        So summed by user it is right where a group's rows are one user's; groups of several users count as independent.
        """
        used = self.used
        if np.count_nonzero(used) < 2:  # one list says nothing of how lists differ
            return np.full(rows, np.nan)
        own = self.values[metric][used]
        result = np.zeros(rows)
        result[self.first_row[used]] = (own - own.mean()) / len(own)
        return result


def of_groups(
    gains: np.ndarray, scores: np.ndarray, groups: np.ndarray, at: Sequence[int], *, reciprocal: bool = True
) -> Lists:
    """The lists of all groups.

    NDCG@K = sum_{r <= K} gain_r / log2(r + 1), in that of the best order (Jarvelin and Kekalainen 2002, with gains as they are
    and not 2^gain - 1, which would let a single long watch decide). The reciprocal rank is that of the first row with a gain.

    Args:
      gains: [N] from 0 up: 0/1, or an amount.
      scores: [N], without NaN.
      groups: [N] ids of any sortable dtype, in any order.
      at: the lengths K, each from 1 up.
      reciprocal: whether to find "mrr" too.
    """
    gains, scores = np.asarray(gains, np.float64), np.asarray(scores, np.float64)
    _, first_row, group = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    names = [*(f"ndcg@{k}" for k in at), *(["mrr"] if reciprocal else [])]
    if not gains.size:
        return Lists(first_row, dict.fromkeys(names, np.zeros(0)))
    order = _by_group(group, -scores)
    gain, best = gains[order], gains[_by_group(group, -gains)]
    new_group = np.diff(group[order]) != 0
    starts = _starts(new_group)
    place = np.arange(len(gain)) - np.repeat(starts, np.diff(starts, append=len(gain)))  # 0 = the top of its list
    runs = _starts(new_group | (np.diff(scores[order]) != 0))  # [R], of equal scores
    first_run, size = np.searchsorted(runs, starts), np.diff(runs, append=len(gain))
    mean_gain = np.add.reduceat(gain, runs) / size
    left_out = np.minimum.reduceat(gain, starts) == np.maximum.reduceat(gain, starts)
    values = {}
    for k in at:
        discount = np.where(place < k, 1 / np.log2(place + 2), 0.0)
        found = np.add.reduceat(mean_gain * np.add.reduceat(discount, runs), first_run)
        ideal = np.add.reduceat(best * discount, starts)
        values[f"ndcg@{k}"] = np.divide(found, ideal, out=np.full(len(starts), np.nan), where=~left_out)
    if reciprocal:
        hits = np.add.reduceat((gain > 0).astype(np.int64), runs)
        of_run = np.repeat(np.arange(len(starts)), np.diff(first_run, append=len(runs)))
        values["mrr"] = np.where(left_out, np.nan, _reciprocal(hits, size, place[runs], of_run, len(starts)))
    return Lists(first_row, values)


def _by_group(group: np.ndarray, key: np.ndarray) -> np.ndarray:
    """[N] the rows by group, then by the key, ascending."""
    order = np.argsort(key, kind="stable")
    return order[np.argsort(group[order], kind="stable")]


def _starts(changes: np.ndarray) -> np.ndarray:
    """First rows of runs, where `changes` [N - 1] says whether row i + 1 begins a new one."""
    return np.flatnonzero(np.concatenate([[True], changes]))


def _reciprocal(hits: np.ndarray, size: np.ndarray, above: np.ndarray, group: np.ndarray, number: int) -> np.ndarray:
    """[G] expected reciprocal rank of the first hit; NaN without one.

    Of a run of t rows with p hits the first is at its place j with probability C(t - j, p - 1) / C(t, p).

    Args:
      hits, size, above: [R] of the runs: rows with a gain, all rows, rows of the group above it.
      group: [R] from 0 to G - 1, ascending.
      number: G.
    """
    with_hit = np.flatnonzero(hits)
    groups, first = np.unique(group[with_hit], return_index=True)
    run = with_hit[first]
    p, t, s = hits[run], size[run], above[run]
    places = t - p + 1  # the first hit is at one of so many
    of = np.repeat(np.arange(len(run)), places)
    j = np.arange(len(of)) - np.repeat(np.cumsum(places) - places, places) + 1
    gammaln = scipy.special.gammaln
    log_choices = lambda n, k: gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)  # noqa: E731
    chance = np.exp(log_choices(t[of] - j, p[of] - 1) - log_choices(t, p)[of])
    result = np.full(number, np.nan)
    result[groups] = np.bincount(of, chance / (s[of] + j), minlength=len(run))
    return result
