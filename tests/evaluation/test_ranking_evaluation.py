"""evaluation.ranking: slices and metrics by plain loops; a report does not depend on how the rows were cut into batches."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from configs import base
from em3_jax.core import terminal
from em3_jax.data.pipeline import evaluation_source
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.training import experiment
from tests.tiny import HISTORY_ONLY_ITEM

POPULAR = 0.1


@pytest.fixture(scope="module")
def features(planted):
    return [planted.features(name) for name in ("image", "text")]


@pytest.fixture(scope="module")
def rows(planted):
    return np.asarray(planted.split_rows("test"))


@pytest.fixture(scope="module")
def logits(planted, rows):
    """The truth, blurred; with ties."""
    noise = np.random.default_rng(0).normal(0, 0.5, len(rows))
    p = planted.interactions["probability"][rows].astype(np.float64)
    return np.round(np.log(p / (1 - p)) + noise, 1).astype(np.float32)


@pytest.fixture(scope="module")
def report(planted, rows, logits, features):
    return ranking_evaluation.evaluate(ranking_evaluation.Scored(planted, rows, logits, features, POPULAR))


# Slices.


def shown_in_training(dataset) -> tuple[dict, set, set]:
    """(item -> impressions, items of histories, users), by a loop over the training rows."""
    columns, impressions, in_history, users = dataset.interactions, {}, set(), set()
    for row in dataset.split_rows("train"):
        item = int(columns["item"][row])
        impressions[item] = impressions.get(item, 0) + 1
        users.add(int(columns["user"][row]))
        history = range(columns["history_start"][row], columns["history_end"][row])
        in_history |= {int(dataset.events["item"][event]) for event in history}
    return impressions, in_history, users


@pytest.mark.parametrize("data", ["planted", "tiny"])
def test_slices_are_those_of_a_plain_loop(planted, tiny, data):
    dataset = planted if data == "planted" else tiny.dataset
    features = [dataset.features(name) for name in ("image", "text")]
    rows = np.asarray(dataset.split_rows("test"))
    impressions, in_history, users = shown_in_training(dataset)
    by_impressions = sorted(impressions.values(), reverse=True)
    least = by_impressions[int(POPULAR * len(by_impressions)) - 1]
    expected = {name: [] for name in ranking_evaluation.slices(dataset, rows, features, POPULAR)}
    for row in rows:
        item, user = int(dataset.interactions["item"][row]), int(dataset.interactions["user"][row])
        cold = item not in impressions and item not in in_history
        expected["all"].append(True)
        expected["cold items"].append(cold)
        expected["warm items"].append(not cold)
        expected["items in no history"].append(item not in in_history)
        expected["popular items"].append(impressions.get(item, 0) >= least)
        expected["new users"].append(user not in users)
        for feature_set in features:
            expected[f"items without {feature_set.name}"].append(not any(feature_set.mask[item]))
    found = ranking_evaluation.slices(dataset, rows, features, POPULAR)
    assert len(found) == 8
    for name, keep in found.items():
        np.testing.assert_array_equal(keep, expected[name], err_msg=name)
        assert 0 < keep.sum() and (name == "all" or keep.sum() < len(rows)), f"slice '{name}' tests nothing"


def test_an_item_that_training_shows_in_histories_alone_is_warm(tiny):
    rows = np.flatnonzero(tiny.rows["item"] == HISTORY_ONLY_ITEM)
    assert len(rows) and (tiny.rows["split"][rows] > 0).all()
    assert ranking_evaluation.slices(tiny.dataset, rows, [], POPULAR)["warm items"].all()


@pytest.mark.parametrize("share", [1e-9, 0.5, 1.0])
def test_popular_items_are_the_given_share_of_the_items_shown(planted, features, share):
    every_row = np.arange(len(planted.interactions["item"]))
    popular = ranking_evaluation.slices(planted, every_row, features, share)["popular items"]
    items, shown = np.unique(planted.interactions["item"][popular]), planted.counts["item"]
    others = np.setdiff1d(np.unique(planted.interactions["item"]), items)
    assert shown[items].min() > shown[others].max(initial=0)
    wanted = max(int(share * np.count_nonzero(shown)), 1)
    ties = np.sum(shown == shown[items].min())
    assert wanted <= len(items) < wanted + ties


# Metrics.


def naive_gauc(label, logit, user) -> tuple[float, int, int]:
    """(value, users used, users left out): each user's AUC, weighted by impressions."""
    total, weight, left_out = 0.0, 0, 0
    for u in np.unique(user):
        own = user == u
        if len(set(label[own])) < 2:
            left_out += 1
            continue
        total += own.sum() * sklearn_metrics.roc_auc_score(label[own], logit[own])
        weight += own.sum()
    return total / weight if weight else math.nan, len(np.unique(user)) - left_out, left_out


def test_each_slice_has_the_metrics_of_its_rows(planted, rows, logits, features, report):
    columns = planted.interactions
    for name, keep in ranking_evaluation.slices(planted, rows, features, POPULAR).items():
        found, own = report[name], rows[keep]
        label, user, logit = columns["label"][own], columns["user"][own], logits[keep].astype(np.float64)
        probability = 1 / (1 + np.exp(-logit))
        gauc, used, left_out = naive_gauc(label, logit, user)
        expected = {
            "n": len(own),
            "click_rate": np.mean(label),
            "auc": sklearn_metrics.roc_auc_score(label, logit),
            "gauc": gauc,
            "gauc_users": used,
            "gauc_users_left_out": left_out,
            "logloss": sklearn_metrics.log_loss(label, probability),
            "calibration": probability.sum() / label.sum(),
            "bayes_auc": sklearn_metrics.roc_auc_score(label, columns["probability"][own]),
            "bayes_gauc": naive_gauc(label, columns["probability"][own], user)[0],
        }
        for metric, value in expected.items():
            assert found[metric] == pytest.approx(value, rel=1e-6, nan_ok=True), (name, metric)


def test_the_planted_probability_beats_what_is_blurred(report):
    assert report["all"]["bayes_auc"] > report["all"]["auc"] > 0.5


def test_an_undefined_metric_is_nan_and_its_slice_keeps_its_n(planted, rows, features):
    positive = rows[planted.interactions["label"][rows] == 1]
    found = ranking_evaluation.evaluate(
        ranking_evaluation.Scored(planted, positive, np.zeros(len(positive), np.float32), features, POPULAR)
    )["all"]
    assert found["n"] == len(positive) and found["gauc_users"] == 0 and found["gauc_users_left_out"] > 0
    assert all(math.isnan(found[name]) for name in ("auc", "gauc", "bayes_auc", "bayes_gauc"))
    assert found["logloss"] == pytest.approx(math.log(2)) and found["calibration"] == pytest.approx(0.5)


def test_an_empty_slice_is_nan_with_n_zero(planted, features):
    rows = np.asarray(planted.split_rows("train"))[:100]  # training has neither cold items nor new users
    found = ranking_evaluation.evaluate(
        ranking_evaluation.Scored(planted, rows, np.zeros(100, np.float32), features, POPULAR)
    )
    for name in ("cold items", "new users"):
        assert found[name]["n"] == 0
        assert all(math.isnan(found[name][m]) for m in ("click_rate", "auc", "gauc", "logloss", "calibration"))


def test_the_table_has_a_line_per_slice_and_the_bayes_value(report):
    above, *lines = ranking_evaluation.table(report).splitlines()  # the header is broken, to be 80 wide
    assert [line.split("  ")[0] for line in lines] == ["slice", *report]
    assert above.split() == ["click_", "bayes_"] and lines[0].split()[-1] == "auc"
    assert f"{report['all']['auc']:.4f}" in lines[1] and max(map(len, (above, *lines))) <= terminal.WIDTH
    plain = {name: {k: v for k, v in values.items() if "bayes" not in k} for name, values in report.items()}
    assert "bayes" not in ranking_evaluation.table(plain)


# Independence of the batch size.


def test_a_report_does_not_depend_on_the_evaluation_batch_size(planted, rows, features):
    settings = base.ranking()
    settings.data.root, settings.data.features = str(planted.root), ("image", "text")
    settings.data.history_length, settings.data.batch_size = 10, 64
    parts = experiment.build(settings.to_dict())
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(parts.program.init)  # filled here: compiling the initialisers takes longer than all else
    state = jax.tree.map(lambda leaf: random.normal(0, 0.15, leaf.shape).astype(leaf.dtype), shapes)
    reports, scores = [], []
    for batch_size in (64, 100, 1024):
        source = evaluation_source(parts.work.source.builder, "test", batch_size)
        scores.append(ranking_evaluation.predict(source, lambda batch: parts.program.predict(state, batch)))
        reports.append(
            ranking_evaluation.evaluate(ranking_evaluation.Scored(planted, rows, scores[-1], features, POPULAR))
        )
        assert scores[-1].shape == rows.shape
    for other, score in zip(reports[1:], scores[1:], strict=True):
        np.testing.assert_allclose(score, scores[0], rtol=1e-5, atol=1e-5)
        for name, values in reports[0].items():
            assert other[name] == pytest.approx(values, rel=1e-6, abs=1e-6, nan_ok=True), name
    assert np.std(scores[0]) > 0.1


@pytest.mark.parametrize("kind,grouped", [("user", False), ("user", True), ("item", False)])
def test_errors_are_those_of_the_metrics_of_the_report(planted, kind, grouped):
    """A user, or an item, left out of the test rows moves each metric by about as much as is kept of it."""
    sessions = {"group": planted.interactions["item"] % 7} if grouped else {}
    data = dataclasses.replace(planted, interactions=planted.interactions | sessions)
    rows = np.asarray(data.split_rows("test"))
    logits = np.random.default_rng(0).normal(size=len(rows)).astype(np.float32)
    moved_by = ranking_evaluation.errors(ranking_evaluation.Scored(data, rows, logits, [], POPULAR))[kind]
    whole = ranking_evaluation.evaluate(ranking_evaluation.Scored(data, rows, logits, [], POPULAR))["all"]
    of_row = data.interactions[kind][rows]
    np.testing.assert_array_equal(moved_by.clusters, np.unique(of_row))
    for metric in ("auc", "gauc", "logloss", "calibration"):
        moved = moved_by.moved["all", metric]
        without = []
        for one in moved_by.clusters:
            kept = of_row != one
            rest = ranking_evaluation.evaluate(ranking_evaluation.Scored(data, rows[kept], logits[kept], [], POPULAR))[
                "all"
            ]
            without.append(whole[metric] - rest[metric])
        # An item's row is much of its user's AUC, so leaving it out is no small step there.
        least = 0.9 if (kind, metric) == ("item", "gauc") else 0.99
        assert np.corrcoef(without, moved)[0, 1] > least, metric
