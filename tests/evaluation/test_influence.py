"""Errors of test rows: against the direct formulas, the bootstrap over users, and how often the truth is inside."""

import math

import numpy as np
import pytest
from scipy import stats

from em3_jax import metrics
from em3_jax.evaluation import influence
from em3_jax.evaluation.influence import ByCluster

METRICS = {  # (value, influence) of labels, scores, users
    "auc": (
        lambda labels, scores, users: metrics.auc(labels, scores),
        lambda labels, scores, users: influence.auc_influence(labels, scores),
    ),
    "gauc": (
        lambda labels, scores, users: metrics.gauc(labels, scores, users).value,
        lambda labels, scores, users: influence.gauc_influence(labels, scores, users),
    ),
    "logloss": (
        lambda labels, scores, users: metrics.logloss(labels, scores),
        lambda labels, scores, users: influence.logloss_influence(labels, scores),
    ),
    "calibration": (
        lambda labels, scores, users: metrics.calibration(labels, _sigmoid(scores)),
        lambda labels, scores, users: influence.calibration_influence(labels, _sigmoid(scores)),
    ),
}


def _sigmoid(scores):
    return 1 / (1 + np.exp(-scores))


def _rows(seed: int, users: int = 80, rows: int = 2000, taste: float = 1.0):
    """(labels, scores of a model that is wrong about a user in all its rows, users)."""
    draw = np.random.default_rng(seed)
    user = draw.integers(0, users, rows)
    item, likes, believed = draw.normal(size=rows), draw.normal(size=users), draw.normal(size=users)
    labels = (draw.random(rows) < _sigmoid(item + taste * likes[user])).astype(int)
    return labels, item + taste * believed[user], user


def _error(name, labels, scores, users):
    value, moved = METRICS[name]
    by_user = ByCluster.of(users)
    by_user.add("all", name, moved(labels, scores, users), users)
    return by_user.error("all", name, value(labels, scores, users))


@pytest.mark.parametrize("name", METRICS)
def test_influence_sums_to_zero_and_is_the_change_by_a_row(name):
    labels, scores, users = _rows(0, rows=400)
    value, moved = METRICS[name]
    found = moved(labels, scores, users)
    assert found.sum() == pytest.approx(0, abs=1e-12)
    # A user counted twice moves the metric by about the sum of its influence.
    for user in range(10):
        own = users == user
        again = [np.concatenate([x, x[own]]) for x in (labels, scores, users)]
        change = value(*again) - value(labels, scores, users)
        assert change == pytest.approx(found[own].sum(), abs=0.1 * abs(found[own].sum()) + 2e-3)


@pytest.mark.parametrize("name", METRICS)
def test_error_is_that_of_a_bootstrap_over_users(name):
    labels, scores, users = _rows(1)
    value, draw = METRICS[name][0], np.random.default_rng(2)
    of_user = [np.flatnonzero(users == user) for user in range(users.max() + 1)]
    values = []
    for _ in range(300):
        chosen = draw.integers(0, len(of_user), len(of_user))
        rows = np.concatenate([of_user[user] for user in chosen])
        copies = np.repeat(np.arange(len(chosen)), [len(of_user[user]) for user in chosen])
        values.append(value(labels[rows], scores[rows], copies))
    # The relative error of a standard deviation from 300 draws is about 4 %; four times that.
    assert _error(name, labels, scores, users).error == pytest.approx(np.std(values), rel=0.17)


def test_rows_of_a_user_belong_together():
    labels, scores, users = _rows(3, users=40, taste=2.0)
    together = _error("auc", labels, scores, users)
    apart = _error("auc", labels, scores, np.arange(len(labels)))
    assert together.clusters == 40 and apart.clusters == len(labels)
    assert together.error > 1.5 * apart.error, "which takes 2,000 rows for 2,000 witnesses"


def test_the_interval_holds_the_truth_as_often_as_it_says():
    truth = np.mean([metrics.auc(*_rows(1000 + seed, users=2000, rows=20000)[:2]) for seed in range(20)])
    inside = [e.low < truth < e.high for e in (_error("auc", *_rows(seed, users=60)) for seed in range(200))]
    assert 0.90 <= np.mean(inside) <= 0.985  # 95 %, within three standard errors of 200 draws


def _direct_delong(labels, a, b) -> float:
    """Returns the standard error from the m x n matrix of comparisons, as in the paper of 1988."""
    difference = 0.0
    for scores, sign in ((a, 1), (b, -1)):
        gap = scores[labels == 1][:, None] - scores[labels == 0][None, :]
        difference = difference + sign * ((gap > 0) + 0.5 * (gap == 0))
    positives, negatives = difference.shape
    return math.sqrt(difference.mean(axis=1).var() / positives + difference.mean(axis=0).var() / negatives)


@pytest.mark.parametrize("levels", [None, 3])
def test_with_a_user_a_row_the_difference_of_two_aucs_is_tested_as_delong_has_it(levels):
    labels, a, _ = _rows(4, rows=300)
    a = a if levels is None else np.round(a * levels)
    b = a + np.round(np.random.default_rng(5).normal(size=300))
    moved = influence.auc_influence(labels, a) - influence.auc_influence(labels, b)
    found = influence.error_of(metrics.auc(labels, a) - metrics.auc(labels, b), moved)
    error = _direct_delong(labels, a, b) * math.sqrt(300 / 299)
    assert found.error == pytest.approx(error, rel=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.value) / error, 299), rel=1e-7)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 299) * error, rel=1e-7)


def test_nothing_is_said_of_what_is_undefined():
    labels, scores, users = np.ones(4, int), np.arange(4.0), np.array([0, 0, 1, 1])
    for name in ("auc", "gauc"):
        found = _error(name, labels, scores, users)
        assert found.clusters == 0 and math.isnan(found.error) and math.isnan(found.p)
    same = influence.error_of(0.0, np.zeros(10))
    assert same.error == 0 and math.isnan(same.p), "two equal models"
    assert math.isnan(influence.error_of(0.1, np.zeros(1)).error), "one user"


def test_what_is_saved_is_what_is_loaded(tmp_path):
    by_user = ByCluster.of(np.array([7, 3, 7, 9]))
    by_user.add("cold items", "ndcg@20", np.array([0.25, -0.25]), np.array([7, 3]))
    by_user.save(tmp_path / "users.npz")
    loaded = ByCluster.load(tmp_path / "users.npz")
    np.testing.assert_array_equal(loaded.clusters, [3, 7, 9])
    np.testing.assert_array_equal(loaded.moved["cold items", "ndcg@20"], [-0.25, 0.25, np.nan])
