"""Runs of several folds as one: each item is in the test split of one of them, and their scores are pooled.

A fold of few items measures little. The folds' models are different ones, so a pooled AUC also asks that
their scores are on one scale; the mean of the folds' own AUCs does not, and is another number. Users are in
several folds, and a user's row that one fold tests has trained the others: a fold's model scores a user low who
disliked what it saw, which is what the other folds test. So GAUC compares rows of one user within a fold alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax import metrics
from em3_jax.core import npy, paths
from em3_jax.core.errors import UserError
from em3_jax.data.format import CLICK, Dataset, open_dataset
from em3_jax.evaluation import influence
from em3_jax.evaluation.influence import ByCluster


class Rows(NamedTuple):
    """Rows of a test split, or of several: `label` 0/1, `logit` f32, rows of their `user` and `item`, `fold`; each [n]."""

    label: np.ndarray
    logit: np.ndarray
    user: np.ndarray
    item: np.ndarray
    fold: np.ndarray


def measure(rows: Rows, by: str) -> tuple[dict[str, Any], ByCluster]:
    """({metric: value} with "n", how each user or item moves them): GAUC is by user, within a fold.

    Args:
      rows: of all folds.
      by: "user" or "item".
    """
    group = rows.fold * (rows.user.max(initial=0) + 1) + rows.user
    label, logit, probability = rows.label, rows.logit, 1 / (1 + np.exp(-rows.logit.astype(np.float64)))
    values = {
        "n": len(label),
        "auc": metrics.auc(label, logit),
        "gauc": metrics.gauc(label, logit, group).value,
        "logloss": metrics.logloss(label, logit),
        "calibration": metrics.calibration(label, probability),
    }
    of_row = rows.user if by == "user" else rows.item
    moved = ByCluster.of(of_row)
    moved.add("all", "auc", influence.auc_influence(label, logit), of_row)
    moved.add("all", "gauc", influence.gauc_influence(label, logit, group), of_row)
    moved.add("all", "logloss", influence.logloss_influence(label, logit), of_row)
    moved.add("all", "calibration", influence.calibration_influence(label, probability), of_row)
    return values, moved


def pooled(folders: Sequence[Path], reports: Sequence[dict], split: str, by: str) -> tuple[dict[str, Any], ByCluster]:
    """(the report of all folds as one, how each user or item moves it).

    Args:
      folders: of the runs of one seed, each on another fold.
      reports: what `eval.py` wrote of each.
      split: which was evaluated.
      by: "user" or "item".

    Raises:
      UserError: they are not ranked, of different seeds or of different items and users, or a row is
        in two of them.
    """
    first = reports[0]
    if len({report["config"]["seed"] for report in reports}) > 1:
        raise UserError(f"{folders[0]} and the folds joined with it have different seeds; join those of one seed")
    if any("rmse" in report["slices"]["all"] or report["config"]["data"].get("log_q") for report in reports):
        raise UserError(
            f"{folders[0]} and the folds joined with it: those of an amount, or with config.data.log_q, are not pooled"
        )
    datasets = [open_dataset(paths.local(report["config"]["data"]["root"])) for report in reports]
    runs = enumerate(zip(folders, reports, datasets, strict=True))
    parts = [_rows(*one, split, number) for number, one in runs]
    check_catalogue(folders, datasets)
    rows = Rows(*map(np.concatenate, zip(*parts, strict=True)))
    check_apart(folders, [part.item for part in parts])
    values, moved = measure(rows, by)
    hashes = "+".join(report["data_hash"] for report in reports)
    return first | {"data_hash": hashes, "clusters": by, "slices": {"all": values}}, moved


def check_catalogue(places: Sequence[Path], datasets: Sequence[Dataset]) -> None:
    """Refuses folds whose items or users are not the same; `places`: what to name of each."""
    for place, dataset in zip(places, datasets, strict=True):
        users = [one.user_table.column("id") for one in (dataset, datasets[0])]
        if dataset.meta["item_hash"] != datasets[0].meta["item_hash"] or users[0] != users[1]:
            raise UserError(
                f"{place}: its items or users are not those of {places[0]}; join the folds of one set of tables"
            )


def check_apart(places: Sequence[Path], items: Sequence[np.ndarray]) -> None:
    """Refuses folds that test an item twice.

    Args:
      places: what to name of each fold.
      items: of each [n] the items of its test rows.
    """
    held = [set(np.unique(one).tolist()) for one in items]
    if len(set.union(*held)) < sum(map(len, held)):
        raise UserError(f"{places[0]} and the folds joined with it test some items twice; join different folds")


def _rows(folder: Path, report: dict, dataset: Dataset, split: str, number: int) -> Rows:
    """The rows of one fold, of that number."""
    if dataset.meta["data_hash"] != report["data_hash"]:
        raise UserError(f"{dataset.root}: not the data that {folder} was evaluated on; prepare it again as it was")
    path, label = folder / f"eval_{split}_logits.npy", report["config"]["data"].get("label") or CLICK
    if not path.exists():
        raise UserError(f"{path}: file missing; folds are pooled of runs that rank, evaluated by `em3 eval`")
    rows = np.asarray(dataset.split_rows(split, label))
    column = {name: np.asarray(dataset.interactions[name])[rows].astype(np.int64) for name in ("user", "item")}
    return Rows(dataset.label(label)[rows], npy.load(path), **column, fold=np.full(len(rows), number, np.int64))
