"""Gains with their errors: the bootstrap against the formula, seeds, slices, and how often they are right."""

import numpy as np
import pytest

from em3_jax import metrics
from em3_jax.evaluation import influence
from em3_jax.verdict import measure
from em3_jax.verdict.measure import Gain, Rows, Spread, holm, spread

NONE = Spread(0.0, 0)


def world(seed: int, users: int = 150, per_user: int = 12, effect: float = 0.0):
    """(rows, scores of a baseline [1, n], of a model [1, n]) where the model knows `effect` more."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), per_user)
    known, hidden = random.standard_normal((2, len(user)))
    bias = random.standard_normal(users)[user]  # rows of a user belong together
    label = (random.random(len(user)) < 1 / (1 + np.exp(-(known + bias + effect * hidden)))).astype(np.int64)
    rows = Rows(label, user, user, "user", random.integers(0, 200, len(user)), np.zeros(len(user), bool), seed)
    noise = lambda: 0.5 * random.standard_normal(len(user))  # noqa: E731
    return rows, (known + noise())[None], (known + effect * hidden + noise())[None]


@pytest.mark.parametrize("metric", ["auc", "gauc", "logloss"])
def test_the_bootstrap_agrees_with_the_formula(metric):
    rows, base, model = world(1, effect=1.0)
    gain = rows.gain(model, base, metric, NONE)
    sign = metrics.METRIC_SIGNS[metric]
    value = sign * (rows.value(model, metric)[0] - rows.value(base, metric)[0])
    moved = rows.moved(model, metric) - rows.moved(base, metric)
    error = influence.error_of(value, moved)
    assert gain.value == pytest.approx(value)
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * error.error, rel=0.08)
    assert gain.is_there and gain.p < 0.01


def test_the_bootstrap_of_a_loss_is_that_of_its_rows():
    """Against drawing users again and measuring anew, without any influence."""
    rows, base, model = world(2, users=60, effect=0.3)
    drawn = rows.replicates(model, base, "logloss")
    losses = [metrics.losses_of_rows(rows.label, one[0]) for one in (model, base)]
    by_user = np.bincount(rows.cluster, losses[0] - losses[1])  # users of one size
    random = np.random.default_rng(5)
    naive = [by_user[random.integers(0, 60, 60)].mean() / 12 for _ in range(4000)]
    assert np.std(drawn) == pytest.approx(np.std(naive), rel=0.1)


def test_seeds_widen_the_interval_by_their_spread():
    rows, base, model = world(3, effect=0.5)
    alone = rows.gain(model, base, "auc", NONE)
    values = [np.array([0.70, 0.72, 0.71]), np.array([0.80, 0.80, 0.83]), np.array([0.5])]
    moved = spread(values)
    variance = (np.var(values[0], ddof=1) + np.var(values[1], ddof=1)) / 2
    assert moved.sd == pytest.approx(np.sqrt(2 * variance)) and moved.freedom == 4
    wide = rows.gain(model, base, "auc", moved)
    assert wide.value == alone.value and wide.high - wide.low > 2 * (alone.high - alone.low)
    three = rows.gain(np.repeat(model, 3, 0), np.repeat(base, 3, 0), "auc", moved)
    assert three.high - three.low < wide.high - wide.low


def test_no_gain_is_seen_where_there_is_none_and_a_gain_where_there_is_one():
    """120 worlds: false alarms at most as often as the interval says, and the truth is within it."""
    found = [rows.gain(model, base, "auc", NONE) for rows, base, model in (world(seed) for seed in range(120))]
    assert sum(gain.is_there for gain in found) <= 8, "2.5 % of 120 are 3"
    assert sum(gain.low <= 0 <= gain.high for gain in found) >= 105, "95 % of 120 are 114"
    seen = [rows.gain(m, b, "auc", NONE).is_there for rows, b, m in (world(s, effect=0.7) for s in range(40))]
    assert sum(seen) >= 36


def test_slices_are_by_showings_and_each_row_is_in_one():
    rows, *_ = world(4)
    found = rows.slices()
    of_items = [keep for name, keep in found.items() if name.startswith("items")]
    assert (np.sum(of_items, axis=0) == 1).all()
    np.testing.assert_array_equal(found["items shown 5 to 19"], (rows.showings >= 5) & (rows.showings <= 19))
    np.testing.assert_array_equal(found["items never shown"], rows.showings == 0)


def test_a_slice_of_one_class_has_no_gain():
    rows, base, model = world(5)
    gain = rows.gain(model, base, "auc", NONE, rows.label == 1)
    assert np.isnan(gain.value) and not gain.is_there


def test_many_looks_are_corrected_for():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5})


def test_rows_of_a_dataset(planted):
    rows = Rows.of(planted, "test")
    interactions, test = planted.interactions, np.asarray(planted.split_rows("test"))
    np.testing.assert_array_equal(rows.label, interactions["label"][test])
    counts = planted.counts["item"] + planted.counts["item_history"]
    np.testing.assert_array_equal(rows.showings, counts[interactions["item"][test]])
    assert rows.by == "user" and len(np.unique(rows.cluster)) == len(np.unique(interactions["user"][test]))
    assert rows.new_user.any() and not Rows.of(planted, "valid").new_user.all()


def test_clusters_beyond_a_bound_are_put_together(planted, monkeypatch):
    every = Rows.of(planted, "test")
    base = np.random.default_rng(0).standard_normal((1, len(every.label)))
    model = base + every.label
    monkeypatch.setattr(measure, "MOST_CLUSTERS", 50)
    few = Rows.of(planted, "test")
    assert few.cluster.max() < 50 <= every.cluster.max()
    one, other = every.gain(model, base, "auc", NONE), few.gain(model, base, "auc", NONE)
    assert isinstance(one, Gain) and other.value == one.value
    assert other.high - other.low == pytest.approx(one.high - one.low, rel=0.5)
