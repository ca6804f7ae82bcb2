"""Paired differences of rungs on a split: a bootstrap over users, the spread of seeds, slices by showings.

Letters: K seeds, n rows of the split, G clusters (users, or items where whole items are held out), B replicates.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from em3_jax import metrics
from em3_jax.core import npy
from em3_jax.data.format import CLICK, Dataset
from em3_jax.evaluation import influence

REPLICATES = 2_000
MOST_CLUSTERS = 5_000  # more are put together at random, which leaves the variance as it is
SHOWINGS = (
    ("never shown", 0, 0),
    ("1 to 4", 1, 4),
    ("5 to 19", 5, 19),
    ("20 to 99", 20, 99),
    ("100 and more", 100, None),
)
"""Slices by how often training shows the candidate: (name, least, most)."""


class Gain(NamedTuple):
    """A difference of two rungs in a metric.

    Attributes:
      value: the mean over the seeds.
      low, high: of its 95 % interval, over users and seeds.
      p: two-sided.
      n: rows.
    """

    value: float
    low: float
    high: float
    p: float
    n: int

    @property
    def is_there(self) -> bool:
        """Whether the interval leaves no doubt of a gain."""
        return self.low > 0


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a split, and how differences on them are drawn again.

    Attributes:
      label: [n] 0/1; group: [n] what GAUC is by.
      cluster: [n] numbers from 0 to G - 1 of what belongs together.
      by: "user" or "item".
      showings: [n] how often training shows the candidate.
      new_user: [n] whether training has no row of the user.
      seed: of the bootstrap.
    """

    label: np.ndarray
    group: np.ndarray
    cluster: np.ndarray
    by: str
    showings: np.ndarray
    new_user: np.ndarray
    seed: int = 0

    @classmethod
    def of(cls, dataset: Dataset, split: str, label: str = CLICK) -> "Rows":
        """The rows of a dataset's split that have the label."""
        rows = np.asarray(dataset.split_rows(split, label))
        item, user = (np.asarray(dataset.interactions[name][rows]) for name in ("item", "user"))
        by = dataset.meta.get("held_out", "user")
        by = by if by in influence.KINDS else "user"
        _, cluster = np.unique(item if by == "item" else user, return_inverse=True)
        if (count := int(cluster.max(initial=0)) + 1) > MOST_CLUSTERS:
            cluster = np.random.default_rng(0).integers(0, MOST_CLUSTERS, count)[cluster]
        return cls(
            label=np.asarray(dataset.label(label)[rows]).astype(np.int64),
            group=np.asarray(dataset.group[rows]),
            cluster=cluster,
            by=by,
            showings=dataset.counts["item"][item] + dataset.counts["item_history"][item],
            new_user=dataset.counts["user"][user] == 0,
        )

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """[B, G] f32: how often each replicate draws each cluster, less 1."""
        count = int(self.cluster.max(initial=0)) + 1
        random = np.random.default_rng([self.seed, 1])
        drawn = np.stack([np.bincount(random.integers(0, count, count), minlength=count) for _ in range(REPLICATES)])
        return drawn.astype(np.float32) - 1

    def slices(self) -> dict[str, np.ndarray]:
        """Name -> [n] bool."""
        result = {"all": np.ones(len(self.label), bool)}
        for name, least, most in SHOWINGS:
            result[f"items {name}" if not least else f"items shown {name}"] = (self.showings >= least) & (
                self.showings <= (np.inf if most is None else most)
            )
        return result | {"new users": self.new_user}

    def value(self, logits: np.ndarray, metric: str, keep: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[K] the metric of the scores [K, n] on the rows `keep`; NaN where it is undefined."""
        label = self.label[keep]
        if metric == "gauc":
            return np.array([metrics.gauc(label, one[keep], self.group[keep]).value for one in logits])
        of = metrics.auc if metric == "auc" else metrics.logloss
        return np.array([of(label, one[keep]) for one in logits])

    def moved(self, logits: np.ndarray, metric: str, keep: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[G] influence of the clusters on the mean of the metric over the seeds."""
        label, total = self.label[keep], np.zeros(int(self.cluster.max(initial=0)) + 1)
        for one in logits:
            if metric == "gauc":
                rows = influence.gauc_influence(label, one[keep], self.group[keep])
            else:
                of = influence.auc_influence if metric == "auc" else influence.logloss_influence
                rows = of(label, one[keep])
            total += np.bincount(self.cluster[keep], rows, minlength=len(total)) / len(logits)
        return total

    def replicates(
        self, model: np.ndarray, base: np.ndarray, metric: str, keep: np.ndarray | slice = slice(None)
    ) -> np.ndarray:
        """[B] what the rows add to the difference of the scores [K, n] of two rungs."""
        difference = self.moved(model, metric, keep) - self.moved(base, metric, keep)
        return self.weights @ difference.astype(np.float32)

    def gain(
        self, model: np.ndarray, base: np.ndarray, metric: str, spread: "Spread", keep: np.ndarray | slice = slice(None)
    ) -> Gain:
        """The difference of two rungs' scores [K, n]; for logloss, that of `base` less `model`'s."""
        sign = metrics.sign(metric)
        n = len(self.label[keep])
        value = float(sign * (self.value(model, metric, keep).mean() - self.value(base, metric, keep).mean()))
        if not np.isfinite(value):
            return Gain(value, np.nan, np.nan, np.nan, n)
        drawn = value + sign * self.replicates(model, base, metric, keep)
        drawn = drawn + spread.draw(self.seed, len(model), len(base))
        low, high = np.quantile(drawn, [0.025, 0.975])
        tail = (1 + np.sum(drawn <= 0)) / (1 + len(drawn)), (1 + np.sum(drawn >= 0)) / (1 + len(drawn))
        return Gain(value, float(low), float(high), float(min(1.0, 2 * min(tail))), n)


class Spread(NamedTuple):
    """How far a difference of two rungs moves from seed to seed.

    Attributes:
      sd: standard deviation of a difference of one seed.
      freedom: degrees of freedom behind it.
    """

    sd: float
    freedom: int

    def draw(self, seed: int, seeds: int, of_base: int) -> np.ndarray:
        """[B] what the seeds add to a difference of means over so many of the one and of the other."""
        drawn = np.random.default_rng([seed, 2, seeds, of_base]).standard_t(max(self.freedom, 1), REPLICATES)
        return self.sd * np.sqrt((1 / seeds + 1 / of_base) / 2) * drawn


def spread(values: Sequence[np.ndarray]) -> Spread:
    """Of a difference of two rungs, whose seeds have nothing in common.

    Args:
      values: a metric of each rung, [K] over its seeds; the variance is pooled over the rungs.
    """
    several = [one for one in values if len(one) > 1]
    freedom = sum(len(one) - 1 for one in several)
    if not freedom:
        return Spread(0.0, 0)
    variance = sum(float(np.sum((one - one.mean()) ** 2)) for one in several) / freedom
    return Spread(float(np.sqrt(2 * variance)), freedom)


def scores(folders: Sequence[Path], split: str) -> np.ndarray:
    """[K, n] f32 logits that evaluated runs have left in their folders."""
    return np.stack([npy.load(folder / f"eval_{split}_logits.npy") for folder in folders])


def holm(p: dict[str, float]) -> dict[str, float]:
    """p of several looks at one baseline, corrected (Holm 1979)."""
    order, worst, result = sorted(p, key=lambda name: p[name]), 0.0, {}
    for place, name in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - place) * p[name]))
        result[name] = worst
    return result
