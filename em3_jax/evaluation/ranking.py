"""Honest evaluation of a ranking model on a split: AUC, GAUC, logloss, calibration, overall and by slice."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from em3_jax import metrics
from em3_jax.core.labels import Labels
from em3_jax.data.format import CLICK, Dataset, FeatureSet
from em3_jax.data.pipeline import EvaluationSource, batches
from em3_jax.evaluation import columns, groups, influence, labels
from em3_jax.evaluation import retrieval as retrieval_evaluation

QUERY = "query"  # the context field whose values group the rows of QAUC, where a dataset has it


def predict(source: EvaluationSource, predict_batch: Callable, place: Callable | None = None) -> np.ndarray:
    """[n] f32 logits of a split, in its row order.

    Args:
      source: the split's batches.
      predict_batch: batch -> logits [B] on the device.
      place: moves batches to the devices, see `pipeline.batches`.
    """
    # Dispatched ahead and fetched at the end, but in turn where devices are simulated: they share threads, and
    # programs in flight that each wait for all devices can keep each other waiting for ever.
    in_turn = jax.default_backend() == "cpu" and jax.device_count() > 1
    results = []
    for batch in batches(source, place=place):
        result = predict_batch(batch)
        results.append(jax.block_until_ready(result) if in_turn else result)
    return np.concatenate(jax.device_get(results))[: len(source.rows)]


def slices(
    dataset: Dataset, rows: np.ndarray, features: Sequence[FeatureSet], popular_share: float
) -> dict[str, np.ndarray]:
    """Slice name -> [n] bool over interaction rows `rows` [n].

    Cold items occur in no training row, neither as candidate nor in a history; items in no history may have been shown, as
    drawn negatives are; popular ones are the `popular_share` most often shown; new users have no training row.
    """
    item, user = dataset.interactions["item"][rows], dataset.interactions["user"][rows]
    shown = dataset.counts["item"]
    cold = (shown + dataset.counts["item_history"])[item] == 0
    threshold = np.sort(shown)[-max(int(popular_share * np.count_nonzero(shown)), 1)]
    result = {
        "all": np.ones(len(rows), bool),
        "cold items": cold,
        "items in no history": (dataset.counts["item_history"] == 0)[item],
        "warm items": ~cold,
        "popular items": shown[item] >= max(threshold, 1),
        "new users": dataset.counts["user"][user] == 0,
    }
    for feature_set in features:
        has_content = np.asarray(feature_set.mask.any(axis=1))
        result[f"items without {feature_set.name}"] = ~has_content[item]
    return result


@dataclasses.dataclass(frozen=True)
class Scored:
    """Rows of a split with the logits that a model gives them.

    Attributes:
      dataset: whose rows they are.
      rows: [n] interaction rows.
      logits: [n] f32.
      features: sets of content features; the items without one are a slice.
      popular_share: see `slices`.
      label_name: which of the dataset's labels.
      asked: what to measure within groups, too.
      what: the run's labels; says whether the first one is an amount.
      log_kept: [n] what the rows' logits are lower by, as negatives were drawn; None = nothing. Log-loss and calibration
        are of the rows as they are, what orders items is not lowered.
    """

    dataset: Dataset
    rows: np.ndarray
    logits: np.ndarray
    features: Sequence[FeatureSet]
    popular_share: float
    label_name: str = CLICK
    asked: groups.Asked = groups.NOTHING
    what: Labels = labels.NO_LABELS
    log_kept: np.ndarray | None = None

    @property
    def of_rows(self) -> np.ndarray:
        """[n] logits of the rows as they were drawn."""
        return self.logits if self.log_kept is None else self.logits - self.log_kept

    @property
    def label(self) -> np.ndarray:
        """[n] 0/1."""
        return self.dataset.label(self.label_name)[self.rows]

    @property
    def groups(self) -> groups.Groups:
        """What GAUC is by, the dataset's groups or else the users, and what was asked for besides."""
        return groups.Groups.of(self.dataset, self.rows, self.asked)

    @property
    def probability(self) -> np.ndarray:
        """[n] f64 of a click."""
        return 1.0 / (1.0 + np.exp(-self.of_rows.astype(np.float64)))

    def column(self, name: str) -> np.ndarray | None:
        """[n] of a column of the interactions; None where the dataset has it not."""
        columns = self.dataset.interactions
        return columns[name][self.rows] if name in columns else None

    def slices(self) -> dict[str, np.ndarray]:
        """Name -> [n] bool, see `slices`."""
        return slices(self.dataset, self.rows, self.features, self.popular_share)

    def amounts(self) -> dict[str, labels.Head]:
        """Slice -> the first label on its rows, where that is an amount."""
        values, own = self.label, self.groups
        return {
            name: labels.first_head(name, keep, values[keep], self.logits[keep], own.part(keep), self.what)
            for name, keep in self.slices().items()
        }


def evaluate(scored: Scored) -> dict[str, dict[str, float]]:
    """Slice -> metric -> value. Undefined metrics are NaN; every slice has its n.

    GAUC is by `Dataset.group`, the users where the dataset has no groups; `gauc_users` counts them.
    """
    if scored.what.first:
        return {name: head.measured() for name, head in scored.amounts().items()}
    logits, label, grouped, probability = scored.logits, scored.label, scored.groups, scored.probability
    group, of_rows = grouped.own, scored.of_rows
    query = scored.column(f"context_{QUERY}")
    planted = scored.column("probability") if scored.label_name == CLICK else None
    result: dict[str, dict[str, float]] = {}
    for name, keep in scored.slices().items():
        gauc = metrics.gauc(label[keep], logits[keep], group[keep])
        result[name] = {
            "n": int(keep.sum()),
            "click_rate": float(label[keep].mean()) if keep.any() else float("nan"),
            "auc": metrics.auc(label[keep], logits[keep]),
            "gauc": gauc.value,
            "gauc_users": gauc.groups_used,
            "gauc_users_left_out": gauc.groups_left_out,
            "logloss": metrics.logloss(label[keep], of_rows[keep]),
            "normalized_entropy": metrics.normalized_entropy(label[keep], of_rows[keep]),
            "calibration": metrics.calibration(label[keep], probability[keep]),
            "calibration_error": metrics.expected_calibration_error(label[keep], probability[keep]),
        }
        if query is not None:
            qauc = metrics.gauc(label[keep], logits[keep], query[keep])
            result[name] |= {
                "qauc": qauc.value,
                "qauc_queries": qauc.groups_used,
                "qauc_queries_left_out": qauc.groups_left_out,
            }
        if planted is not None:
            result[name]["bayes_auc"] = metrics.auc(label[keep], planted[keep])
            result[name]["bayes_gauc"] = metrics.gauc(label[keep], planted[keep], group[keep]).value
        if scored.asked != groups.NOTHING:
            result[name] |= grouped.part(keep).measured(label[keep], logits[keep])
    return result


def errors(scored: Scored) -> dict[str, influence.ByCluster]:
    """How each "user" and each "item" moves the metrics of `evaluate`."""
    of_row = {kind: np.asarray(scored.dataset.interactions[kind][scored.rows]) for kind in influence.KINDS}
    result = {kind: influence.ByCluster.of(clusters) for kind, clusters in of_row.items()}
    if scored.what.first:
        for name, head in scored.amounts().items():
            for (metric, values), (kind, one) in itertools.product(head.influences().items(), result.items()):
                if groups.is_of(kind, metric):
                    one.add(name, metric, values, of_row[kind][head.there])
        return result
    logits, label, grouped, probability = scored.logits, scored.label, scored.groups, scored.probability
    group, of_rows = grouped.own, scored.of_rows
    query = scored.column(f"context_{QUERY}")
    for name, keep in scored.slices().items():
        moved = {
            "auc": influence.auc_influence(label[keep], logits[keep]),
            "gauc": influence.gauc_influence(label[keep], logits[keep], group[keep]),
            "logloss": influence.logloss_influence(label[keep], of_rows[keep]),
            "calibration": influence.calibration_influence(label[keep], probability[keep]),
        }
        if query is not None:
            moved["qauc"] = influence.gauc_influence(label[keep], logits[keep], query[keep])
        if scored.asked != groups.NOTHING:
            moved |= grouped.part(keep).influences(label[keep], logits[keep])
        for (metric, values), (kind, one) in itertools.product(moved.items(), result.items()):
            if groups.is_of(kind, metric):
                one.add(name, metric, values, of_row[kind][keep])
    return result


def headline(
    dataset: Dataset, asked: groups.Asked = groups.NOTHING, what: Labels = labels.NO_LABELS
) -> tuple[str, ...]:
    """The metrics of the first label to show while training, one of which chooses the best step."""
    if what.first:
        return labels.headline_of_amount(bool(what.first_levels), asked)
    has_queries = f"context_{QUERY}" in dataset.interactions
    return ("auc", "gauc", *(["qauc"] if has_queries else []), *asked.headline(), "logloss")


def table(report: dict[str, dict[str, float]]) -> str:
    """The report as text, one line a slice."""
    names = ["n", "click_rate", "auc", "gauc", "logloss", "calibration"]
    if "rmse" in report["all"]:
        of_levels = "auc" in report["all"]
        names = groups.shown(list(report.values()), labels.OF_LEVELS if of_levels else labels.OF_AMOUNT)
    elif "auc" not in report["all"]:
        names = ["n", "positives", *retrieval_evaluation.HEADLINE, "precision@20", "map@20"]
    else:
        names = groups.shown(list(report.values()), names)
    if "qauc" in report["all"]:
        names.insert(4, "qauc")
    if any("bayes_auc" in values for values in report.values()):
        names.append("bayes_auc")
    lines = [columns.table("slice", names, report)]
    if left_out := report["all"].get("users_left_out"):
        lines.append(f"left out: {left_out:,} users without a training interaction")
    return "\n".join(lines)
