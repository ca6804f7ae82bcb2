"""Folds pooled: one AUC of all test splits, how sure it is by item, and runs that are no folds of each other."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from em3_jax import metrics
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.table import table
from em3_jax.evaluation import compare
from tests.conftest import user_error

USERS, ITEMS, ROWS, FOLDS = 40, 150, 3_000, 5


@pytest.fixture(scope="module")
def log() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    item, user = random.integers(0, ITEMS, ROWS), random.integers(0, USERS, ROWS)
    truth = random.normal(size=ITEMS)[item] + random.normal(size=ROWS)
    return {"user": user, "item": item, "label": (truth > 0).astype(int), "time": np.arange(ROWS)}


@pytest.fixture(scope="module")
def data(log, tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("data")
    pa.csv.write_csv(pa.table(log), root / "log.csv")
    pa.csv.write_csv(pa.table({"item": range(ITEMS), "fold": np.arange(ITEMS) % FOLDS}), root / "items.csv")
    pa.csv.write_csv(pa.table({"user": range(USERS)}), root / "users.csv")
    paths = {name: root / f"{name}.csv" for name in ("items", "users")}
    folds = range(FOLDS)
    return [table(root / f"{k}", interactions=root / "log.csv", split=f"folds:fold:{k}", **paths).root for k in folds]


def score(log: dict[str, np.ndarray], skill: float, seed: int) -> np.ndarray:
    """[ROWS] f32: an item has an error of its own, which all of its rows share."""
    random = np.random.default_rng([seed, int(100 * skill)])
    scores = skill * log["label"] + random.normal(size=ITEMS)[log["item"]] + 0.3 * random.normal(size=ROWS)
    return scores.astype(np.float32)


def runs(root: Path, data: list[Path], log: dict, skill: float, seed: int = 0) -> list[Path]:
    """What `eval.py` leaves of a model's runs, one a fold."""
    scores, result = score(log, skill, seed), []
    for k, folder in enumerate(data):
        dataset, run = open_dataset(folder), root / f"{skill}-{seed}-{k}"
        run.mkdir(exist_ok=True)
        rows = np.asarray(dataset.split_rows("test"))
        np.save(run / "eval_test_logits.npy", scores[rows])
        label = np.asarray(dataset.interactions["label"])[rows]
        report = {
            "config": {"seed": seed, "task": "ranking", "data": {"label": "click", "root": str(folder)}},
            "data_hash": dataset.meta["data_hash"],
            "clusters": dataset.meta["held_out"],
            "slices": {"all": {"n": len(rows), "auc": metrics.auc(label, scores[rows])}},
        }
        (run / "eval_test.json").write_text(json.dumps(report))
        result.append(run)
    return result


def joined(name: str, folders: list[Path]) -> str:
    return f"{name}=" + "+".join(map(str, folders))


def test_all_rows_are_measured_as_one(tmp_path, data, log):
    model = compare.load(joined("one", runs(tmp_path, data, log, 1.0)), "test")
    assert model.by == "item" and model.reports[0]["slices"]["all"]["n"] == ROWS
    expected = metrics.auc(log["label"], score(log, 1.0, 0))
    assert model.values("all", "auc")[0] == pytest.approx(expected, abs=1e-12)
    within = log["item"] % FOLDS * USERS + log["user"]  # a user's rows in other folds have trained this one
    expected = metrics.gauc(log["label"], score(log, 1.0, 0), within).value
    assert model.values("all", "gauc")[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("by,other", [("item", "user"), ("user", "item")])
def test_the_error_is_that_of_a_bootstrap_over_items_or_users(tmp_path, data, log, by, other):
    scores = [score(log, skill, 0) for skill in (1.0, 1.3)]
    models = [compare.load(joined(f"m{skill}", runs(tmp_path, data, log, skill)), "test", by) for skill in (1.0, 1.3)]
    measured = compare.compare(models, "auc")["all"]["m1.3"]
    random, number = np.random.default_rng(0), {"item": ITEMS, "user": USERS}[by]
    rows_of = [np.flatnonzero(log[by] == k) for k in range(number)]
    values = []
    for _ in range(400):
        rows = np.concatenate([rows_of[k] for k in random.integers(0, number, number)])
        one, two = (metrics.auc(log["label"][rows], part[rows]) for part in scores)
        values.append(two - one)
    half = (measured["high"] - measured["low"]) / 2 / 1.98
    assert half == pytest.approx(np.std(values), rel=0.15)
    text = compare.table(models, compare.compare(models, "auc"), "auc", "test")
    assert f"those of one {by} counted as one" in text and f"those of one {other}" not in text


def test_seeds_are_paired_and_what_does_not_belong_together_is_refused(tmp_path, data, log):
    of = {(skill, seed): runs(tmp_path, data, log, skill, seed) for skill in (1.0, 1.3) for seed in (0, 1)}
    spec = {skill: ",".join("+".join(map(str, of[skill, seed])) for seed in (1, 0)) for skill in (1.0, 1.3)}
    models = [compare.load(f"m{skill}={spec[skill]}", "test") for skill in spec]
    row = compare.compare(models, "auc")["all"]["m1.3"]
    assert models[0].seeds == [0, 1] and 0 < row["p"] < 1 and row["low"] < row["difference"] < row["high"]
    mixed = joined("a", [*of[1.0, 0][:4], of[1.0, 1][4]])
    assert "have different seeds" in user_error(compare.load, mixed, "test")
    twice = joined("a", [*of[1.0, 0], of[1.3, 0][0]])
    assert "test some items twice" in user_error(compare.load, twice, "test")
    some = [compare.load(joined("a", of[1.0, 0][:4]), "test"), compare.load(joined("b", of[1.3, 0]), "test")]
    assert "different datasets" in user_error(compare.compare, some, "auc")
    kinds = [compare.load(joined("a", of[1.0, 0]), "test", by) for by in ("user", "item")]
    assert "choose one with --by" in user_error(compare.compare, kinds, "auc")
    (of[1.3, 0][2] / "eval_test_logits.npy").unlink()
    assert "eval_test_logits.npy: file missing" in user_error(compare.load, joined("a", of[1.3, 0]), "test")
