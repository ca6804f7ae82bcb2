"""Bootstrap over users: each sample against rows that are really copied, intervals against those by influence, determinism."""

import math

import numpy as np
import pytest

from em3_jax.evaluation import bootstrap, influence
from em3_jax.evaluation.bootstrap import Samples
from em3_jax.evaluation.groups import Groups
from em3_jax.evaluation.labels import Head
from tests.conftest import user_error

USERS, SEED = 300, 5


def some_rows(rows: int = 4000, levels: int = 0) -> tuple[Head, Head, np.ndarray]:
    """(clicks, an amount that some rows have, users); scores are wrong about a user in all its rows, and tied at `levels`."""
    random = np.random.default_rng(1)
    user = np.sort(random.integers(0, USERS, rows)) * 3  # ids with gaps
    item, likes, believed = random.normal(size=rows), random.normal(size=USERS), random.normal(size=USERS)
    clicked = (random.random(rows) < 1 / (1 + np.exp(-item - likes[user // 3]))).astype(np.uint8)
    scores = (item + 0.7 * believed[user // 3]).astype(np.float32)
    scores = np.round(scores * levels).astype(np.float32) if levels else scores
    groups = Groups(user * 2 + random.integers(0, 2, rows), {"hour": random.integers(0, 5, rows)}, (3, 10))
    there = random.random(rows) < 0.6
    seconds = random.gamma(2.0, 5.0 + np.exp(likes[user // 3])).astype(np.float32)[there]
    expected = (5.0 + np.exp(0.5 * believed[user // 3])).astype(np.float32)[there]
    first = Head("click", "all", np.ones(rows, bool), clicked, scores, groups)
    return first, Head("dwell", "label dwell", there, seconds, expected, groups.part(there), True), user


def copied(head: Head, user: np.ndarray, drawn: np.ndarray) -> Head:
    """The rows of the users drawn, each as often as it was, a copy's groups apart from those of others."""
    places = [np.flatnonzero(user == one) for one in drawn]
    rows = np.concatenate(places)
    copy = np.repeat(np.arange(len(drawn)), [len(one) for one in places])
    own = copy * 10**6 + head.groups.own[rows]
    by = {field: values[rows] for field, values in head.groups.by.items()}
    return head._replace(values=head.values[rows], scores=head.scores[rows], groups=Groups(own, by, head.groups.at))


@pytest.mark.parametrize("levels", [0, 2])
def test_a_sample_is_the_rows_of_its_users_copied(levels):
    click, dwell, user = some_rows(1500, levels)
    found = bootstrap.sampled([click, dwell], user, "user", 100, SEED)
    random, clusters = np.random.default_rng(SEED), np.unique(user)
    np.testing.assert_array_equal(found.clusters, clusters)
    for sample in range(3):
        drawn = clusters[random.integers(0, len(clusters), len(clusters))]
        for head in (click, dwell):
            expected = copied(head, user[head.there], drawn).measured()
            own = {metric: values for (name, metric), values in found.values.items() if name == head.slice_name}
            assert own.keys() == {
                name
                for name in expected
                if name not in ("n", "rate", "mean") and "groups" not in name and "_rows" not in name
            }
            for metric, values in own.items():
                assert values[sample] == pytest.approx(expected[metric], rel=1e-9), (metric, sample)


def test_errors_and_intervals_are_those_by_influence():
    click, dwell, user = some_rows()
    found = bootstrap.sampled([click, dwell], user, "user", 1000, 0)
    for head in (click, dwell):
        moved = influence.ByCluster.of(user)
        for metric, values in head.influences().items():
            moved.add("all", metric, values, user[head.there])
        measured = head.measured()
        assert len(moved.moved) >= 4
        for _, metric in moved.moved:
            expected = moved.error("all", metric, measured[metric])
            of = bootstrap.interval(found.values[head.slice_name, metric])
            # The error of a standard deviation of 1,000 samples is 2.2 %; that of a quantile about 5 % of one error.
            assert of["se"] == pytest.approx(expected.error, rel=0.1), metric
            assert abs(of["low"] - expected.low) < 0.3 * expected.error, metric
            assert abs(of["high"] - expected.high) < 0.3 * expected.error and of["undefined"] == 0


def test_draws_are_a_function_of_the_seed_however_many_at_once(monkeypatch):
    click, _, user = some_rows(800)
    first = bootstrap.sampled([click], user, "user", 100, 3)
    monkeypatch.setattr(bootstrap, "AT_ONCE", 7 * USERS)
    again, other = (bootstrap.sampled([click], user, "user", 100, seed) for seed in (3, 4))
    for name, values in first.values.items():
        np.testing.assert_allclose(again.values[name], values, rtol=1e-12)
        assert not np.array_equal(other.values[name], values)
    assert first.paired(again) and not first.paired(other)
    by_item = bootstrap.sampled([click], user, "item", 100, 3)
    assert ("all", "auc") in by_item.values and ("all", "ndcg@3") not in by_item.values


def test_what_is_undefined_in_some_samples(tmp_path):
    user = np.arange(12)
    values = np.array([1] + [0] * 11, np.uint8)  # a third of the samples have no click
    head = Head("click", "all", np.ones(12, bool), values, np.arange(12, dtype=np.float32), Groups(user))
    found = bootstrap.sampled([head], user, "user", 400, 0)
    undefined = np.isnan(found.values["all", "auc"]).mean()
    assert undefined == pytest.approx((11 / 12) ** 12, abs=0.1)
    of = bootstrap.interval(found.values["all", "auc"])
    assert math.isnan(of["low"]) and of["undefined"] == pytest.approx(undefined)
    assert np.isnan(found.values["all", "gauc"]).all() and math.isnan(
        bootstrap.interval(found.values["all", "gauc"])["se"]
    )
    assert np.isfinite(found.values["all", "logloss"]).all()
    found.save(tmp_path / "samples.npz")
    loaded = Samples.load(tmp_path / "samples.npz")
    assert loaded.paired(found) and loaded.values.keys() == found.values.keys()
    np.testing.assert_array_equal(loaded.values["all", "auc"], found.values["all", "auc"])


def test_p_of_a_difference_and_mistakes():
    random = np.random.default_rng(0)
    assert (
        bootstrap.p_value(random.normal(3.0, 1.0, 1000)) < 0.01 < 0.5 < bootstrap.p_value(random.normal(0.0, 1.0, 1000))
    )
    assert math.isnan(bootstrap.p_value(np.zeros(100))), "two equal models"
    assert "100 samples or more" in user_error(bootstrap.check, 10, 0) and "--seed -1" in user_error(
        bootstrap.check, 100, -1
    )
