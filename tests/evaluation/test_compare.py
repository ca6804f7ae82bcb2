"""Runs side by side: paired by seed however they are listed, refused where they are no pairs, with intervals by user."""

import itertools
import json
import math

import numpy as np
import pytest

from em3_jax import metrics
from em3_jax.core import terminal
from em3_jax.evaluation import compare, influence
from em3_jax.evaluation.influence import ByCluster
from tests.conftest import user_error

USERS, ROWS = 50, 600
SLICES = ("all", "cold items")


def _scores(seed: int, skill: float):
    """(labels, users, whether the item is cold, scores) of a model on the one test set there is."""
    data, own = np.random.default_rng(0), np.random.default_rng([seed, int(skill * 100)])
    users, cold, truth = data.integers(0, USERS, ROWS), data.random(ROWS) < 0.3, data.normal(size=ROWS)
    labels = (data.random(ROWS) < 1 / (1 + np.exp(-2 * truth))).astype(int)
    return labels, users, cold, skill * truth + own.normal(size=ROWS) + data.normal(size=USERS)[users]


def _write(folder, seed: int, skill: float, users_too: bool = True, **config):
    """What `eval.py` leaves of a run."""
    labels, users, cold, scores = _scores(seed, skill)
    by_user, slices = ByCluster.of(users), {}
    for name, keep in (("all", np.ones(ROWS, bool)), ("cold items", cold), ("new users", np.zeros(ROWS, bool))):
        part = labels[keep], scores[keep], users[keep]
        slices[name] = {
            "n": int(keep.sum()),
            "auc": metrics.auc(*part[:2]),
            "gauc": metrics.gauc(*part).value,
            "bayes_auc": 0.9,
        }
        by_user.add(name, "auc", influence.auc_influence(*part[:2]), part[2])
        by_user.add(name, "gauc", influence.gauc_influence(*part), part[2])
    folder.mkdir()
    report = {
        "config": {"seed": seed, "task": "ranking", "data": {"label": config.pop("label", "click")}},
        "data_hash": "of the data",
        "slices": slices,
        **config,
    }
    (folder / "eval_test.json").write_text(json.dumps(report))
    if users_too:
        by_user.save(folder / "eval_test_users.npz")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{(model, seed): folder} of two models over three seeds."""
    root = tmp_path_factory.mktemp("runs")
    skills = {"base": 0.9, "better": 1.1}
    return {(m, s): _write(root / f"{m}-{s}", s, skill) for m, skill in skills.items() for s in range(3)}


def _load(runs, name, seeds):
    return compare.load(f"{name}=" + ",".join(str(runs[name, seed]) for seed in seeds), "test")


def test_runs_are_paired_by_seed_however_they_are_listed(runs):
    base = _load(runs, "base", (0, 1, 2))
    expected = compare.compare([base, _load(runs, "better", (0, 1, 2))], "auc")
    for order in itertools.permutations((0, 1, 2)):
        np.testing.assert_equal(compare.compare([base, _load(runs, "better", order)], "auc"), expected)
    values = [[r["slices"]["all"]["auc"] for r in m.reports] for m in (_load(runs, "better", (2, 0, 1)), base)]
    assert expected["all"]["better"]["p"] == metrics.paired_t_test(*values).p


def test_p_and_intervals_are_there_for_every_model_slice_and_metric(runs):
    models = [_load(runs, "base", (0,)), _load(runs, "better", (0,))]
    models.append(models[1]._replace(name="again"))
    for metric, slice_name in itertools.product(("auc", "gauc"), SLICES):
        rows = compare.compare(models, metric)[slice_name]
        for name in ("better", "again"):
            found = rows[name]
            assert found["low"] < found["difference"] < found["high"] and 0 < found["p"] < 1
            assert found["p"] == found["p_rows"] and math.isnan(found["p_seeds"])
            assert (found["p"] < 0.05) == (not found["low"] < 0 < found["high"])
        assert 0 < rows["base"]["se"] and "p" not in rows["base"]


def test_the_interval_is_that_of_users_drawn_again(runs):
    """With three seeds: of the mean difference of the AUC, users drawn with replacement, all seeds on the same draw."""
    rows = compare.compare([_load(runs, name, (0, 1, 2)) for name in ("base", "better")], "auc")["all"]["better"]
    scored = [[_scores(seed, skill) for seed in range(3)] for skill in (0.9, 1.1)]
    labels, users = scored[0][0][:2]
    of_user = [np.flatnonzero(users == user) for user in range(USERS)]
    draw, differences = np.random.default_rng(1), []
    for _ in range(300):
        kept = np.concatenate([of_user[user] for user in draw.integers(0, USERS, USERS)])
        means = [np.mean([metrics.auc(labels[kept], run[3][kept]) for run in model]) for model in scored]
        differences.append(means[1] - means[0])
    half = (rows["high"] - rows["low"]) / 2
    assert half / 2.01 == pytest.approx(np.std(differences), rel=0.17)  # 2.01: t with 49 degrees of freedom


def test_what_cannot_be_paired_is_refused(runs, tmp_path):
    base, better = _load(runs, "base", (0, 1)), _load(runs, "better", (0, 2))
    assert "better has seeds 0, 2, base 0, 1" in user_error(compare.compare, [base, better], "auc")
    assert "base has seeds" in user_error(compare.compare, [better, _load(runs, "base", (0,))], "auc")
    twice = f"m={runs['base', 1]},{runs['base', 1]}"
    assert "have the same seed 1" in user_error(compare.load, twice, "test")
    other = compare.load(f"o={_write(tmp_path / 'o', 0, 1.0, label='conversion')}", "test")
    assert "different labels (click, conversion)" in user_error(compare.compare, [base, other], "auc")
    other = compare.load(f"o={_write(tmp_path / 'd', 0, 1.0, data_hash='other')}", "test")
    assert "different datasets" in user_error(compare.compare, [base, other], "auc")
    (tmp_path / "o" / "eval_test.json").write_text("{")
    assert "not what `eval.py` writes" in user_error(compare.load, f"o={tmp_path / 'o'}", "test")
    (tmp_path / "d" / "eval_test_users.npz").write_bytes(b"no")
    assert "cannot be read" in user_error(compare.load, f"d={tmp_path / 'd'}", "test")


def test_what_is_named_and_where_the_numbers_go(runs, tmp_path, monkeypatch):
    assert _load(runs, "base", (0,)).seeds == compare.load(f"b={runs['base', 0]},", "test").seeds == [0]
    missing = user_error(compare.load, f"b={tmp_path / 'rns'}", "test")
    assert missing == f"{tmp_path / 'rns'}: no such folder; give the --workdir of a run that was evaluated"
    assert "eval_valid.json: file missing; run `em3 eval" in user_error(compare.load, f"{runs['base', 0]}", "valid")
    assert "'b=': names no run" in user_error(compare.load, "b=", "test")
    numbers = tmp_path / "nowhere" / "numbers.json"
    monkeypatch.setattr(
        "sys.argv", ["compare", *(f"{m}={runs[m, 0]}" for m in ("base", "better")), "--json", str(numbers)]
    )
    assert f"{numbers}: cannot be written (No such file" in user_error(compare.main)


def test_single_runs_of_different_seeds_have_the_same_rows(runs):
    rows = compare.compare([_load(runs, "base", (0,)), _load(runs, "better", (2,))], "auc")
    assert 0 < rows["all"]["better"]["p"] < 1


def test_the_table_shows_each_model_and_says_what_p_is(runs, tmp_path):
    models = [_load(runs, name, (0, 1, 2)) for name in ("base", "better")]
    text = compare.table(models, compare.compare(models, "auc"), "auc", "test")
    assert text.count("better") == 2 and "new users" not in text and "t-test over 3 seeds" in text
    lines = text.splitlines()
    closed = next(k for k, line in enumerate(lines) if line.endswith(" closed"))  # of "gap closed", broken
    assert lines[closed - 1].endswith(" gap") and "Bayes" in text
    assert max(map(len, text.splitlines())) <= terminal.WIDTH
    old = [m._replace(moved_by=None) for m in models]
    rows = compare.compare(old, "auc")
    assert math.isnan(rows["all"]["better"]["low"]) and rows["all"]["better"]["p"] > 0, "seeds need no rows"
    assert "run eval.py on them again" in compare.table(old, rows, "auc", "test")
    bare = compare.load(f"b={_write(tmp_path / 'b', 0, 1.0, users_too=False)}", "test")
    assert bare.moved_by is None
