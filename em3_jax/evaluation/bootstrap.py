"""Intervals of a run's metrics by drawing its users again (Efron 1979): what `influence` says to first order, without it.

A sample draws as many users as there are, with replacement: one that is drawn twice counts twice with all of its rows, and
one that is not drawn counts not at all (Field and Welsh 2007). Where whole items are held out, it is items that are drawn. An
interval is from the 2.5 % to the 97.5 % quantile of a metric over the samples. The same seed draws the same users, so two runs
on the same rows are measured on the same samples, and their difference is one of pairs.

No row is copied: users' numbers are weights of rows. Metrics that are functions of sums are those of the users' sums times
their numbers, and for AUCs the rows are sorted once. Letters: G users (or items), R samples, B of them at once, m rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy

from em3_jax import metrics
from em3_jax.core import npy, terminal
from em3_jax.core.errors import UserError
from em3_jax.evaluation.groups import BY
from em3_jax.evaluation.influence import LEVEL
from em3_jax.evaluation.labels import Head

AT_ONCE = 1 << 22  # weights of users that are held at once
LEAST = 100


class Samples(NamedTuple):
    """A run's metrics on bootstrap samples.

    Attributes:
      seed: of the draws.
      clusters: [G] rows of the users' (items') table that were drawn from, ascending.
      values: (slice, metric) -> [R] f64, NaN where a sample leaves it undefined.
    """

    seed: int
    clusters: np.ndarray
    values: dict[tuple[str, str], np.ndarray]

    def paired(self, other: "Samples") -> bool:
        """Whether both are of the same draws."""
        same = self.seed == other.seed and np.array_equal(self.clusters, other.clusters)
        return same and {len(one) for one in self.values.values()} == {len(one) for one in other.values.values()}

    def save(self, path: Path) -> None:
        """Writes a .npz file."""
        arrays = {f"{part}/{metric}": values for (part, metric), values in self.values.items()}
        # The stub takes any name for that of its own flag; here each has a slash in it.
        np.savez_compressed(path, seed=self.seed, clusters=self.clusters, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """What `save` wrote.

        Raises:
          OSError, ValueError, KeyError: the file is missing or damaged.
        """
        stored = npy.archive(path)
        parts = {name: name.rpartition("/") for name in stored if "/" in name}
        values = {(group, metric): stored[name] for name, (group, _, metric) in parts.items()}
        return cls(int(stored["seed"]), stored["clusters"], values)


def check(samples: int, seed: int) -> None:
    """Refuses numbers of samples and seeds that are none."""
    if samples < LEAST:
        raise UserError(f"--bootstrap {samples}: an interval needs {LEAST} samples or more; 1000 is usual")
    if seed < 0:
        raise UserError(f"--seed {seed}: give 0 or more")


def sampled(heads: Sequence[Head], of_row: np.ndarray, kind: str, samples: int, seed: int) -> Samples:
    """The metrics of each label on samples of users (or items).

    Args:
      heads: of a split.
      of_row: [n] the user (item) of each row of the split.
      kind: "user" or "item"; an item is a part of many lists, so of items there is no NDCG.
      samples: R.
      seed: of the draws.
    """
    clusters, index = np.unique(of_row, return_inverse=True)
    measures = [
        (head.slice_name, _Measure(head, index[head.there], len(clusters), lists=kind == "user")) for head in heads
    ]
    parts: dict[tuple[str, str], list[np.ndarray]] = {}
    for weights in _drawn(len(clusters), samples, seed):
        for slice_name, measure in measures:
            for metric, values in measure(weights).items():
                parts.setdefault((slice_name, metric), []).append(values)
    return Samples(seed, clusters.astype(np.int64), {name: np.concatenate(part) for name, part in parts.items()})


def interval(values: np.ndarray) -> dict[str, float]:
    """{"low", "high", "se", "undefined"} of a metric, or a difference of two, on samples [R].

    "undefined" is the share of the samples in which it is: with more than a tenth of them there is no interval, NaN.
    """
    defined = values[~np.isnan(values)]
    undefined = 1 - len(defined) / max(len(values), 1)
    if undefined > 0.1 or len(defined) < 2:
        return {"low": np.nan, "high": np.nan, "se": np.nan, "undefined": undefined}
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high), "se": float(defined.std(ddof=1)), "undefined": undefined}


def p_value(values: np.ndarray) -> float:
    """Two-sided p of a difference on samples [R]: twice the share of them on the rarer side of 0."""
    defined = values[~np.isnan(values)]
    if not len(defined) or not np.any(defined):
        return np.nan
    tails = (1 + np.sum(defined <= 0)) / (1 + len(defined)), (1 + np.sum(defined >= 0)) / (1 + len(defined))
    return float(min(1.0, 2 * min(tails)))


def report(found: Samples, kind: str, values: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """What `eval.py` stores: {"samples", "seed", "clusters", "number", "intervals": {slice: {metric: interval}}}.

    Args:
      kind: "user" or "item", what was drawn.
      values: slice -> metric -> value on the rows as they are.
    """
    slices = dict.fromkeys(slice_name for slice_name, _ in found.values)
    intervals = {
        name: {
            metric: {"value": value, **interval(found.values[name, metric])}
            for metric, value in values[name].items()
            if (name, metric) in found.values
        }
        for name in slices
    }
    drawn = len(next(iter(found.values.values())))
    return {
        "samples": drawn,
        "seed": found.seed,
        "clusters": kind,
        "number": len(found.clusters),
        "intervals": intervals,
    }


def table(facts: Mapping[str, Any], values: Mapping[str, Mapping[str, float]]) -> str:
    """What `report` gives as text, the standard error by influence beside that of the samples.

    Args:
      values: slice -> metric -> value, with "<metric>_se" where it is known.
    """
    drawn = f"{facts['samples']:,} samples of the {facts['number']:,} {facts['clusters']}s"
    rows = []
    for slice_name, of in facts["intervals"].items():
        for place, (metric, one) in enumerate(of.items()):
            error = values[slice_name].get(f"{metric}_se", np.nan)
            numbers = [f"{one[name]:.4f}" for name in ("value", "low", "high", "se")]
            shown = f"{error:.4f}" if np.isfinite(error) else ""
            rows.append(["" if place else slice_name, metric, *numbers, shown])
    header = ["", "", "value", "from", "to", "error", "by influence"]
    return f"95 % intervals over {drawn}, seed {facts['seed']}\n{terminal.table(header, rows, names=2)}"


def _drawn(number: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """[B, G] f64 how often each of G is drawn, in blocks; the blocks' size changes nothing."""
    random, block = np.random.default_rng(seed), max(AT_ONCE // max(number, 1), 1)
    for first in range(0, samples, block):
        count = min(block, samples - first)
        draws = [np.bincount(random.integers(0, number, number), minlength=number) for _ in range(count)]
        yield np.stack(draws).astype(np.float64)


class _Measure:
    """The metrics of a label, to be taken with weights of users.

    Args:
      head: the label.
      cluster: [m] the user of each row, from 0 to G - 1.
      number: G.
      lists: whether to take NDCG and MRR, where they were asked for. A group counts as often as the user of its first row.
    """

    def __init__(self, head: Head, cluster: np.ndarray, number: int, *, lists: bool):
        self._is_amount = head.is_amount
        self._sorted: dict[str, _Sorted] = {}
        self._means: dict[str, str] = {}  # metric that is a ratio of two sums -> the one below
        columns = _of_amount(head.values, head.scores) if head.is_amount else _of_clicks(head)
        by = {"auc": np.zeros(len(cluster), np.int8), "gauc": head.groups.own}
        by |= {BY + field: group for field, group in head.groups.by.items()}
        is_clicked = head.values
        if head.is_amount:
            by = {"auc": by["auc"]} if head.levels else {}
            is_clicked = head.upper if head.levels else is_clicked
        for metric, values in by.items():
            group = np.unique(np.asarray(values), return_inverse=True)[1]
            if _within(group, cluster):  # its AUC is always the same, and counts as often as its user
                columns |= _of_groups(metric, is_clicked, head.scores, group)
                self._means[metric] = f"{metric} rows"
            else:
                self._sorted[metric] = _Sorted(is_clicked, head.scores, group, cluster)
        found = head.groups.lists(head.values, head.scores, head.is_amount) if lists else None
        if found is not None:
            self._means |= dict.fromkeys(found.values, "lists")
            for metric, values in [*found.values.items(), ("lists", found.used)]:
                columns[metric] = np.zeros(len(cluster))
                columns[metric][found.first_row] = np.nan_to_num(values)
        self._names = tuple(columns)
        sums = [np.bincount(cluster, column, minlength=number) for column in columns.values()]
        self._sums = np.stack(sums, axis=1)  # [G, names]

    def __call__(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Metric -> [B] of weights [B, G]."""
        of = dict(zip(self._names, (weights @ self._sums).T, strict=True))
        result = {metric: np.array([one.gauc(w) for w in weights]) for metric, one in self._sorted.items()}
        with np.errstate(divide="ignore", invalid="ignore"):  # what is undefined in a sample is NaN there
            mean = {name: values / of["n"] for name, values in of.items()}
            if self._is_amount:
                variance = mean["square"] - mean["value"] ** 2
                result |= {"rmse": np.sqrt(mean["off"]), "mae": mean["absolute"], "rmsle": np.sqrt(mean["log"])}
                result["r2"] = 1 - mean["off"] / np.where(variance > 0, variance, np.nan)
            else:
                rate = mean["value"]
                entropy = scipy.special.entr(rate) + scipy.special.entr(1 - rate)
                result["logloss"] = mean["loss"]
                result["normalized_entropy"] = mean["loss"] / np.where(entropy > 0, entropy, np.nan)
            result["calibration"] = of["predicted"] / np.where(of["value"] > 0, of["value"], np.nan)
            result |= {metric: of[metric] / of[below] for metric, below in self._means.items()}
        return {metric: np.where(np.isfinite(values), values, np.nan) for metric, values in result.items()}


def _of_clicks(head: Head) -> dict[str, np.ndarray]:
    """Name -> [m] whose weighted sums the metrics of a label of 0 and 1 are made of."""
    values = head.values.astype(np.float64)
    loss = metrics.losses_of_rows(values, head.of_rows)
    return {"n": np.ones(len(values)), "value": values, "loss": loss, "predicted": head.probability}


def _of_groups(metric: str, labels: np.ndarray, scores: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """{metric: [m], "<metric> rows": [m]}, whose sums have GAUC as their ratio, where a group's rows are one user's."""
    share = metrics.placements(labels, scores, group)  # of a positive, of the negatives below it
    rows, positives = np.bincount(group), np.bincount(group, labels)
    used = ~np.isnan(share)
    each = np.where(used & (labels == 1), np.nan_to_num(share), 0.0)
    return {metric: each * (rows / np.maximum(positives, 1))[group], f"{metric} rows": used.astype(np.float64)}


def _of_amount(values: np.ndarray, expected: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> [m] whose weighted sums the metrics of an amount are made of."""
    values, expected = values.astype(np.float64), expected.astype(np.float64)
    off = expected - values
    return {
        "n": np.ones(len(values)),
        "value": values,
        "square": values**2,
        "off": off**2,
        "absolute": np.abs(off),
        "log": (np.log1p(expected) - np.log1p(values)) ** 2,
        "predicted": expected,
    }


class _Sorted:
    """Rows in the order of their groups and scores: GAUC with any weights of users, without sorting again.

    Args:
      labels, scores: [m], as of `metrics.gauc`.
      group: [m] from 0 up; the AUC is that of one group.
      cluster: [m] the user of each row.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, group: np.ndarray, cluster: np.ndarray):
        positives = np.bincount(group, labels)
        both = (positives > 0) & (positives < np.bincount(group))
        rows = np.flatnonzero(both[group])  # of one class a group says nothing, whatever the weights
        place = np.unique(scores[rows], return_inverse=True)[1]
        place += np.unique(group[rows], return_inverse=True)[1] * (int(place.max(initial=0)) + 1)
        order = np.argsort(place, kind="stable")
        rows, place = rows[order], place[order]
        is_positive = labels[rows] == 1
        self._positives, self._negatives = cluster[rows[is_positive]], cluster[rows[~is_positive]]
        # Of each positive the number of negatives before it, of earlier groups too: without, and with, those tied with it.
        below = place[~is_positive]
        self._without = np.searchsorted(below, place[is_positive], side="left")
        self._with = np.searchsorted(below, place[is_positive], side="right")
        of_positives, of_negatives = group[rows[is_positive]], group[rows[~is_positive]]
        self._first_positive, self._first_negative = _firsts(of_positives), _firsts(of_negatives)

    def gauc(self, weights: np.ndarray) -> float:
        """GAUC with weights [G] of users; NaN where no group has both classes left."""
        if not len(self._positives):
            return np.nan
        weight, negatives = weights[self._positives], np.concatenate([[0.0], np.cumsum(weights[self._negatives])])
        won = weight * (negatives[self._without] + negatives[self._with]) / 2
        before = negatives[self._first_negative]
        p, n = np.add.reduceat(weight, self._first_positive), np.diff(before, append=negatives[-1])
        won = np.add.reduceat(won, self._first_positive) - p * before
        used = p * n > 0
        total = (p + n)[used]
        return float(np.sum(won[used] / (p * n)[used] * total) / total.sum()) if len(total) else np.nan


def _firsts(group: np.ndarray) -> np.ndarray:
    """First places of runs of equal groups [m]."""
    return np.flatnonzero(np.diff(group, prepend=-1) != 0)


def _within(group: np.ndarray, cluster: np.ndarray) -> bool:
    """Whether all rows [m] of a group are of one user."""
    of_group = np.zeros(int(group.max(initial=0)) + 1, np.intp)
    of_group[group] = cluster
    return bool((of_group[group] == cluster).all())
