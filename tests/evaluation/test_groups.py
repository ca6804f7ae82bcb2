"""Metrics within groups: NDCG and MRR by plain loops and scikit-learn, GAUC by any field, what is left out, and errors."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from em3_jax import metrics
from em3_jax.evaluation import groups, influence, ndcg
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.evaluation.groups import Asked, Groups
from tests.conftest import user_error

AT = (1, 3, 10)


def some_lists(seed: int, levels: int, amounts: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(gains, scores of so many levels, groups of 1 to 9 rows, mixed)."""
    random = np.random.default_rng(seed)
    group = np.repeat(random.permutation(60), random.integers(1, 10, 60))
    gain = random.gamma(1.0, 50.0, len(group)) if amounts else (random.random(len(group)) < 0.3).astype(float)
    order = random.permutation(len(group))
    return gain[order], random.integers(0, levels, len(group)).astype(np.float32), group[order]


def kept(gains, group):
    return [own for one in np.unique(group) if len(set(gains[own := np.flatnonzero(group == one)])) > 1]


@pytest.mark.parametrize("levels, amounts", [(3, False), (1000, False), (4, True)])
def test_ndcg_is_scikit_learns_of_each_group(levels, amounts):
    gains, scores, group = some_lists(levels, levels, amounts)
    found = ndcg.of_groups(gains, scores, group, AT)
    lists = kept(gains, group)
    assert found.used.sum() == len(lists) < len(found.first_row) == 60
    for k in AT:
        expected = [sklearn_metrics.ndcg_score([gains[own]], [scores[own]], k=k) for own in lists]
        assert found.mean(f"ndcg@{k}") == pytest.approx(np.mean(expected), rel=1e-12)


def test_the_reciprocal_rank_is_its_mean_over_all_orders_of_ties():
    gains, scores, group = some_lists(1, 3)
    keep = np.isin(group, [one for one in np.unique(group) if (group == one).sum() <= 6])  # 720 orders each
    gains, scores, group = gains[keep], scores[keep], group[keep]
    expected = []
    for own in kept(gains, group):
        ranks = []
        for order in map(list, itertools.permutations(own)):
            if (np.diff(scores[order]) <= 0).all():
                ranks.append(1 / (1 + np.flatnonzero(gains[order])[0]))
        expected.append(np.mean(ranks))
    assert len(expected) > 10
    assert ndcg.of_groups(gains, scores, group, AT).mean("mrr") == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_long_run_of_ties_and_nothing_at_all():
    gains = np.zeros(100_000)
    gains[:40] = 1
    found = ndcg.of_groups(gains, np.zeros(len(gains)), np.zeros(len(gains)), (10,))
    chance, expected = 1.0, 0.0  # that no hit is above place j
    for j in range(len(gains) - 39):
        expected += chance * 40 / (len(gains) - j) / (j + 1)
        chance *= 1 - 40 / (len(gains) - j)
    assert found.mean("mrr") == pytest.approx(expected, rel=1e-8)
    assert found.mean("ndcg@10") == pytest.approx(40 / len(gains), rel=1e-9)
    assert np.isnan(found.influence("ndcg@10", len(gains))).all(), "of one list the error is not known, and not 0"
    nothing = ndcg.of_groups(np.zeros(0), np.zeros(0), np.zeros(0), (5,))
    assert math.isnan(nothing.mean("ndcg@5")) and math.isnan(nothing.mean("mrr"))
    of_one = ndcg.of_groups(np.ones(3), np.arange(3.0), np.zeros(3), (5,))
    assert math.isnan(of_one.mean("mrr")) and np.isnan(of_one.influence("mrr", 3)).all()


def test_the_influence_of_a_user_is_what_leaving_it_out_changes():
    gains, scores, group = some_lists(2, 4)
    whole = ndcg.of_groups(gains, scores, group, (3,))
    for metric in ("ndcg@3", "mrr"):
        moved = np.bincount(group, whole.influence(metric, len(gains)))
        assert moved.sum() == pytest.approx(0, abs=1e-12)
        without = [
            whole.mean(metric) - ndcg.of_groups(gains[k], scores[k], group[k], (3,)).mean(metric)
            for k in (group != one for one in range(60))
        ]
        assert np.corrcoef(moved, without)[0, 1] > 0.999


def test_gauc_is_by_any_field_of_the_dataset(tiny):
    data, rows = tiny.dataset, np.asarray(tiny.dataset.split_rows("test"))
    logits = np.random.default_rng(0).normal(size=len(rows)).astype(np.float32)
    values_of = {
        "user": tiny.rows["user"][rows], "item": tiny.rows["item"][rows], "hour": tiny.rows["context_hour"][rows],
        "age": tiny.users["age"][tiny.rows["user"][rows]], "category": tiny.items["category"][tiny.rows["item"][rows]],
    }  # fmt: skip
    scored = ranking_evaluation.Scored(data, rows, logits, [], 0.1, asked=Asked((3,), tuple(values_of)))
    report = ranking_evaluation.evaluate(scored)
    moved = ranking_evaluation.errors(scored)
    plain = ranking_evaluation.evaluate(ranking_evaluation.Scored(data, rows, logits, [], 0.1))
    label, found = tiny.rows["label"][rows], report["all"]
    assert {name: found[name] for name in plain["all"]} == pytest.approx(plain["all"], nan_ok=True)
    for field, values in values_of.items():
        of = [label[values == one] for one in np.unique(values)]
        whole = [
            (metrics.auc(label[own], logits[own]), own.sum()) for own in (values == one for one in np.unique(values))
        ]
        value, weight = np.array([one for one in whole if not math.isnan(one[0])]).T
        assert found[f"gauc_by_{field}"] == pytest.approx(np.average(value, weights=weight))
        assert found[f"gauc_by_{field}_groups_left_out"] == sum(len(set(one)) == 1 for one in of)
        assert found[f"gauc_by_{field}_groups"] == len(value)
        expected = influence.gauc_influence(label, logits, values)
        np.testing.assert_allclose(
            moved["user"].moved["all", f"gauc_by_{field}"],
            np.bincount(values_of["user"], expected)[np.unique(values_of["user"])],
        )
    assert ("all", "ndcg@3") in moved["user"].moved and ("all", "ndcg@3") not in moved["item"].moved
    lines = ranking_evaluation.table(report).splitlines()
    headers = [line for line in lines if line.startswith("slice ")]  # of each part of the table
    assert found["gauc_by_user"] == found["gauc"] and any("gauc_by_hour" in line for line in headers)
    cold = ranking_evaluation.slices(data, rows, [], 0.1)["cold items"]
    lists = ndcg.of_groups(label[cold], logits[cold], values_of["user"][cold], (3,))
    assert report["cold items"]["ndcg@3"] == pytest.approx(lists.mean("ndcg@3"))
    counted = groups.counts({"all": found}).splitlines()[1]
    assert f"{found['ndcg_groups']} (less {found['ndcg_groups_left_out']})" in counted


def test_amounts_are_gains_and_have_no_mrr():
    gains, scores, group = some_lists(3, 50, amounts=True)
    found = Groups(group, {"x": group}, (3,)).measured(gains, scores, is_amount=True)
    lists = kept(gains, group)
    expected = [sklearn_metrics.ndcg_score([gains[own]], [scores[own]], k=3) for own in lists]
    assert found == {
        "ndcg@3": pytest.approx(np.mean(expected)),
        "ndcg_groups": len(lists),
        "ndcg_groups_left_out": 60 - len(lists),
    }


def test_fields_that_rows_cannot_be_grouped_by(tiny):
    data, check = tiny.dataset, groups.check
    assert "no such field; did you mean 'hour'?" in user_error(check, data, Asked((), ("hours",)))
    assert "several values" in user_error(check, data, Asked((), ("tags",)), "--group-by")
    assert "no such field" in user_error(check, data, Asked((), ("rating",)))
    assert "no groups of its own" in user_error(check, data, Asked((), ("group",)))
    assert "named twice" in user_error(check, data, Asked((), ("age", "age")))
    sessions = np.arange(len(data.interactions["user"]), dtype=np.int32) // 5
    grouped = dataclasses.replace(data, interactions={**data.interactions, "group": sessions})
    np.testing.assert_array_equal(groups.of_rows(grouped, np.array([7, 3]), "group"), [1, 0])


def test_signs_of_metrics_that_may_choose_the_step():
    up = ("ndcg@7", "buy_ndcg@7", "mrr", "buy_mrr", "gauc_by_age_group", "buy_gauc_by_hour", "ndcg@10", "recall@20")
    assert all(metrics.sign(name) == 1 for name in up) and metrics.sign("dwell_rmse") == metrics.sign("logloss") == -1
