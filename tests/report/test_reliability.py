"""Reliability diagrams: tenths by a plain loop, how often an interval holds the truth, the picture and the page."""

import re

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from em3_jax.evaluation import reliability
from em3_jax.evaluation.groups import Groups
from em3_jax.evaluation.labels import Head
from em3_jax.report import reliability as drawing
from em3_jax.report import reliability_page
from em3_jax.report.panels import COLORS


def expit(x):
    return 1 / (1 + np.exp(-x))


def test_tenths_are_those_of_a_plain_loop():
    random = np.random.default_rng(0)
    predicted = random.random(1003)
    values = (random.random(1003) < predicted).astype(np.uint8)
    found = reliability.tenths(values, predicted, np.arange(1003))
    order = np.argsort(predicted)
    assert sum(one["rows"] for one in found) == 1003 and {one["rows"] for one in found} == {100, 101}
    start = 0
    for one in found:
        rows = order[start : start + one["rows"]]
        start += one["rows"]
        assert one["predicted"] == pytest.approx(predicted[rows].mean()) and one["observed"] == values[rows].mean()
        expected = stats.binomtest(int(values[rows].sum()), len(rows)).proportion_ci(method="wilson")
        assert (one["low"], one["high"]) == pytest.approx(tuple(expected), abs=2e-3)


def test_rows_of_equal_predictions_stay_together_in_any_order():
    random = np.random.default_rng(1)
    predicted = np.round(random.random(500) ** 3, 1)
    values = (random.random(500) < predicted).astype(np.uint8)
    found = reliability.tenths(values, predicted, np.arange(500))
    mixed = random.permutation(500)
    assert found == reliability.tenths(values[mixed], predicted[mixed], mixed)
    starts = np.cumsum([one["rows"] for one in found])[:-1]
    ordered = np.sort(predicted)
    assert 3 < len(found) < 10 and (ordered[starts] > ordered[starts - 1]).all()
    (alone,) = reliability.tenths(values, np.full(500, 0.3), np.arange(500))
    assert alone["rows"] == 500 and alone["predicted"] == pytest.approx(0.3)


@pytest.mark.parametrize("is_amount", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says_though_users_have_tastes(is_amount):
    inside = {"users": 0, "rows": 0}
    for seed in range(300):
        random = np.random.default_rng(seed)
        user = random.integers(0, 60, 600)
        own = random.beta(2, 6, 60)[user]
        values = random.gamma(2.0, own) if is_amount else (random.random(600) < own).astype(np.uint8)
        truth = 0.5 if is_amount else 0.25
        for name, cluster in (("users", user), ("rows", np.arange(600))):
            (one,) = reliability.tenths(values, np.full(600, 0.2), cluster, is_amount)
            inside[name] += one["low"] < truth < one["high"]
    assert 0.9 <= inside["users"] / 300 <= 0.985 and inside["rows"] / 300 < 0.87


def test_what_was_never_observed_has_an_upper_end_and_one_user_of_an_amount_no_interval():
    one = reliability.tenths(np.zeros(50, np.uint8), np.full(50, 0.1), np.arange(50))[0]
    assert one["low"] == 0 and 0.05 < one["high"] < 0.1
    one = reliability.tenths(np.arange(5.0), np.full(5, 2.0), np.zeros(5, int), is_amount=True)[0]
    assert one["observed"] == 2 and np.isnan(one["low"])


@pytest.fixture(scope="module")
def facts() -> dict:
    """Of a rare label, skewed and calibrated; of an amount; of one whose name is markup, and that nobody has."""
    random, rows = np.random.default_rng(0), 4000
    user, x = random.integers(0, 100, rows), (1.5 * random.normal(size=rows) - 3).astype(np.float32)
    bought = (random.random(rows) < expit(0.5 * x - 0.5)).astype(np.uint8)
    seconds = random.gamma(1.0, 1 + np.exp(x)).astype(np.float32)
    every, groups = np.ones(rows, bool), Groups(user)
    heads = [
        Head("buy", "all", every, bought, x, groups),
        Head("dwell", "label dwell", every, seconds, (1 + np.exp(x)).astype(np.float32), groups, True),
        Head("<b>$x$", "label <b>$x$", every, np.zeros(rows, np.uint8), x, groups),
        Head("none", "label none", np.zeros(rows, bool), bought[:0], x[:0], Groups(user[:0])),
    ]
    return reliability.of_heads(heads, {"buy": expit(0.5 * x.astype(np.float64) - 0.5)}, user)


def test_what_is_known_of_each_label(facts):
    assert list(facts) == ["all", "label dwell", "label <b>$x$"], "a label without rows has no diagram"
    buy = facts["all"]
    assert buy["log"] and len(buy["before"]) == len(buy["after"]) == 10 and not facts["label dwell"]["after"]
    off = {name: sum(abs(one["predicted"] - one["observed"]) for one in buy[name]) for name in ("before", "after")}
    assert off["after"] < off["before"] / 2
    assert sum(buy["histogram"]["rows"]) == 4000
    assert sum(buy["histogram"]["positives"]) == round(buy["mean"] * 4000)


def test_the_picture_has_both_series_and_the_same_bytes_again(facts, tmp_path):
    drawing.draw(facts, "a run", tmp_path / "a.png")
    drawing.draw(facts, "a run", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    for color in COLORS[:2]:
        wanted = np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)]) / 255
        assert (np.abs(picture - wanted).max(axis=-1) < 0.01).sum() > 50
    assert picture.shape[1] > 1500 and 0.7 < picture.mean() < 0.995


def test_the_page_tells_each_tenth_and_runs_nothing(facts):
    text = reliability_page.page(facts, "a <run>")
    assert text.count("<svg") == 3 and text.count("class=mark") == sum(
        len(one["before"] + one["after"]) for one in facts.values()
    )
    assert "<script" not in text and "<b>" not in text and "&lt;b&gt;$x$" in text and "a &lt;run&gt;" in text
    for one in facts["all"]["after"]:
        assert (
            f"predicted {one['predicted']:.4g}, observed {one['observed']:.4g} ({one['low']:.4g} to {one['high']:.4g})"
            in text
        )
    assert "nan" not in text.lower() and "ratio undefined" in text
    heights = [float(value) for value in re.findall(r"height=(-?[\d.]+)", text)]
    assert min(heights) >= 0 and max(heights) == reliability_page.STRIP
