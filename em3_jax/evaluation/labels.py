"""Further labels of a run, beside the first: their logits, and the metrics of each. Letter: n rows."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from em3_jax import metrics
from em3_jax.core import amounts
from em3_jax.core.labels import LOG_KEPT, Labels, given_click
from em3_jax.data.format import NOT_PART, Dataset, observed
from em3_jax.evaluation import columns, influence
from em3_jax.evaluation.groups import NOTHING, Asked, Groups, is_of
from em3_jax.evaluation.groups import shown as shown_columns

MEAN = "mean"
"""What stands for all labels in the name of a metric that chooses the step."""
OF_AMOUNT = ["n", "mean", "rmse", "mae", "rmsle", "r2", "calibration"]
OF_LEVELS = ["n", "mean", "rmse", "mae", "auc", "r2", "calibration"]
"""What a table shows; the AUC is that of the labels above the middle level."""
NO_LABELS = Labels()
Metrics = dict[str, float]


def values_of(dataset: Dataset, rows: np.ndarray, first: str, what: Labels) -> dict[str, np.ndarray]:
    """{further label: [n] its values, see `Dataset.label`}, by the names of `parted`.

    Args:
      rows: [n] of the interactions.
      first: the label that says what a click is.
    """
    values = {name: np.asarray(dataset.label(name)[rows]) for name in what.names}
    if not what.entire_space:
        return values
    (name,) = what.names
    clicked = np.asarray(dataset.label(first)[rows]) == 1
    return {name: np.where(clicked, values[name], 0), given_click(name): np.where(clicked, values[name], NOT_PART)}


class Further(NamedTuple):
    """The further labels of a split's rows, on the rows that have each.

    Attributes:
      what: the labels.
      values, logits: label -> [n].
      groups: of the rows, what GAUC is by and what was asked for besides.
    """

    what: Labels
    values: dict[str, np.ndarray]
    logits: Mapping[str, np.ndarray]
    groups: Groups

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        rows: np.ndarray,
        logits: Mapping[str, np.ndarray],
        first: str,
        what: Labels,
        asked: Asked = NOTHING,
    ) -> "Further":
        """Of the interaction rows [n]; `logits` as `parted` gives them, {} = there are none; `first` as in `values_of`."""
        what = what if logits else Labels()
        return cls(what, values_of(dataset, rows, first, what), logits, Groups.of(dataset, rows, asked))

    def report(self) -> dict[str, Metrics]:
        """Label -> metric -> value."""
        return {one.label: one.measured() for one in self.heads()}

    def heads(self) -> list["Head"]:
        """Each label on the rows that have it."""
        result = []
        for name, values in self.values.items():
            there, scores = observed(values), self.logits[name]
            is_amount = name in self.what.amounts
            own = amounts.expected(self.what.amounts[name], scores[there]) if is_amount else scores[there]
            of_rows = (there, values[there], own, self.groups.part(there))
            result.append(Head(name, slice_of(name), *of_rows, is_amount, self.what.levels.get(name, ())))
        return result

    def add_errors(self, moved_by: Mapping[str, influence.ByCluster], of_row: Mapping[str, np.ndarray]) -> None:
        """Adds how each user, and item, moves the metrics, as slices by the name of `slice_of`.

        Args:
          moved_by: "user" or "item" -> what is added to.
          of_row: the same -> [n] the user (item) of each row.
        """
        for one in self.heads():
            for (metric, values), (kind, moved) in itertools.product(one.influences().items(), moved_by.items()):
                if is_of(kind, metric):
                    moved.add(one.slice_name, metric, values, of_row[kind][one.there])


class Head(NamedTuple):
    """One label on the rows of a split that have it. Letter: m rows.

    Attributes:
      label: its name.
      slice_name: what it is called among slices.
      there: [n] bool: which of the split's rows have it.
      values: [m] 0/1, or an amount.
      scores: [m] logits; of an amount what is expected.
      groups: of the m rows.
      is_amount: whether it is one.
      levels: of an amount of ordered levels these, else ().
      log_kept: [m] what the rows' logits are lower by, see `ranking.Scored`; None = nothing.
    """

    label: str
    slice_name: str
    there: np.ndarray
    values: np.ndarray
    scores: np.ndarray
    groups: Groups
    is_amount: bool = False
    levels: tuple[float, ...] = ()
    log_kept: np.ndarray | None = None

    @property
    def of_rows(self) -> np.ndarray:
        """[m] logits of the rows as they were drawn."""
        return self.scores if self.log_kept is None else self.scores - self.log_kept

    @property
    def upper(self) -> np.ndarray:
        """[m] 0/1: above the middle level, of a label of ordered levels."""
        return (self.values > amounts.middle(self.levels)).astype(np.uint8)

    @property
    def probability(self) -> np.ndarray:
        """[m] f64, of a label that is no amount."""
        return 1.0 / (1.0 + np.exp(-self.of_rows.astype(np.float64)))

    def measured(self) -> Metrics:
        """Metric -> value."""
        values, scores, within = (
            self.values,
            self.scores,
            self.groups.measured(self.values, self.scores, self.is_amount),
        )
        if self.is_amount:
            of_levels = {"auc": metrics.auc(self.upper, scores)} if self.levels else {}
            return of_amount(values, scores) | of_levels | within
        return {
            "n": len(values),
            "rate": float(values.mean()) if len(values) else float("nan"),
            "auc": metrics.auc(values, scores),
            "gauc": metrics.gauc(values, scores, self.groups.own).value,
            "logloss": metrics.logloss(values, self.of_rows),
            "normalized_entropy": metrics.normalized_entropy(values, self.of_rows),
            "calibration": metrics.calibration(values, self.probability),
        } | within

    def influences(self) -> dict[str, np.ndarray]:
        """Metric -> [m] influence of the rows."""
        values, scores = self.values, self.scores
        within = self.groups.influences(values, scores, self.is_amount)
        if self.is_amount:
            off = scores - values.astype(np.float64)
            rmse = np.sqrt(np.mean(off**2)) if len(off) else 0.0
            of_rmse = influence.mean_influence(off**2) / (2 * rmse) if rmse else np.full(off.shape, np.nan)
            of_levels = {"auc": influence.auc_influence(self.upper, scores)} if self.levels else {}
            return {"mae": influence.mean_influence(np.abs(off)), "rmse": of_rmse} | of_levels | within
        return {
            "auc": influence.auc_influence(values, scores),
            "gauc": influence.gauc_influence(values, scores, self.groups.own),
            "logloss": influence.logloss_influence(values, self.of_rows),
            "calibration": influence.calibration_influence(values, self.probability),
        } | within


def first_head(
    label: str, there: np.ndarray, values: np.ndarray, logits: np.ndarray, groups: Groups, what: Labels
) -> Head:
    """The first label on some rows, as slice "all".

    Args:
      label: its name.
      there: [n] bool which of the split's rows.
      values, logits: [m] of these rows.
      groups: of them.
      what: says whether it is an amount.
    """
    scores = amounts.expected(what.first, logits) if what.first else logits
    return Head(label, "all", there, values, scores, groups, bool(what.first), what.first_levels)


def heads(
    dataset: Dataset,
    rows: np.ndarray,
    arrays: Mapping[str, np.ndarray],
    first: str,
    what: Labels,
    asked: Asked = NOTHING,
) -> list[Head]:
    """All labels of a split, the first of all rows and as slice "all".

    Args:
      rows: [n] of the split, that have the first label.
      arrays: "logits" and "logits_<label>" -> [n], as a report of a split has them.
      first, what: see `values_of`.
      asked: what to measure within groups, too.
    """
    values, own = np.asarray(dataset.label(first)[rows]), Groups.of(dataset, rows, asked)
    further = {name.removeprefix("logits_"): one for name, one in arrays.items() if name.startswith("logits_")}
    all_rows = first_head(first, np.ones(len(rows), bool), values, arrays["logits"], own, what)
    all_rows = all_rows._replace(log_kept=arrays.get(LOG_KEPT))
    return [all_rows, *Further.of(dataset, rows, further, first, what, asked).heads()]


def slice_of(label: str) -> str:
    """The name of a further label among slices."""
    return f"label {label}"


def by_slice(report: Mapping[str, Any]) -> dict[str, Metrics]:
    """{"all": metric -> value of the first label, "label <name>": that of a further one} of what `eval.py` writes."""
    return {"all": report["slices"]["all"], **{slice_of(name): of for name, of in report.get("labels", {}).items()}}


def of_amount(values: np.ndarray, predicted: np.ndarray) -> Metrics:
    """The metrics of an amount.

    `rmsle` is the root mean squared error of log(1 + y); `r2` the share of the variance that is
    predicted; `calibration` the sum of what is predicted in that of what was observed.

    Args:
      values, predicted: [n] from 0 up.
    """
    values, predicted = values.astype(np.float64), predicted.astype(np.float64)
    if not len(values):
        return {"n": 0} | dict.fromkeys(("mean", "rmse", "mae", "rmsle", "r2", "calibration"), float("nan"))
    off, variance, total = predicted - values, float(values.var()), float(values.sum())
    return {
        "n": len(values),
        "mean": float(values.mean()),
        "rmse": float(np.sqrt(np.mean(off**2))),
        "mae": float(np.mean(np.abs(off))),
        "rmsle": float(np.sqrt(np.mean((np.log1p(predicted) - np.log1p(values)) ** 2))),
        "r2": 1 - float(np.mean(off**2)) / variance if variance else float("nan"),
        "calibration": float(predicted.sum()) / total if total else float("nan"),
    }


def headline_of_amount(has_levels: bool, asked: Asked = NOTHING) -> tuple[str, ...]:
    """The metrics of an amount to show while training."""
    return ("rmse", *(["auc"] if has_levels else []), *(f"ndcg@{k}" for k in asked.at))


def headline(what: Labels, asked: Asked = NOTHING) -> tuple[str, ...]:
    """The metrics of further labels to show while training, each of which may choose the best step."""
    if not what.names:
        return ()
    named: tuple[str, ...] = ()
    for name in what.names:
        own = ("auc", *asked.headline())
        if name in what.amounts:
            own = headline_of_amount(name in what.levels, asked)
        named += tuple(f"{name}_{metric}" for metric in own)
    return (*named, f"{MEAN}_auc") if any(one.endswith("_auc") for one in named) else named


def to_choose_by(first: Metrics, labels: Mapping[str, Metrics]) -> Metrics:
    """{"<label>_<metric>": value} of further labels, and "mean_auc" of all labels that have an AUC.

    Args:
      first: the metrics of the first label.
    """
    if not labels:
        return {}
    result = {f"{name}_{metric}": value for name, of in labels.items() for metric, value in of.items() if metric != "n"}
    of_each = [of["auc"] for of in (first, *labels.values()) if "auc" in of]
    return result | ({f"{MEAN}_auc": float(np.mean(of_each))} if of_each else {})


def table(labels: dict[str, Metrics]) -> str:
    """The metrics of further labels as text, one line a label; amounts below, and those of levels."""
    parts = []
    kinds = (
        ("further label", False, ["n", "rate", "auc", "gauc", "logloss", "calibration"]),
        ("amount", False, OF_AMOUNT),
        ("ordered levels", True, OF_LEVELS),
    )
    for title, of_levels, names in kinds:
        shown = {
            label: of for label, of in labels.items() if names[2] in of and ({"auc", "rmse"} <= {*of}) == of_levels
        }
        names = shown_columns(list(shown.values()), names) if shown else names
        parts += [columns.table(title, names, shown)] if shown else []
    return "\n\n".join(parts)


def common(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """The further labels that all reports of `eval.py` have."""
    named = [report.get("labels", {}) for report in reports]
    return [name for name in named[0] if all(name in other for other in named)]
