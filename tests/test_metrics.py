"""metrics: against scikit-learn, plain loops and formulas; undefined is NaN, row order and padding do not matter."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats
from sklearn import metrics as sklearn_metrics

from em3_jax import metrics


def _data(rows: int, seed: int = 0, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels and scores that know something of them; `levels` rounds the scores, so that many are equal."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    scores = labels + 1.5 * generator.normal(size=rows)
    return labels, scores if levels is None else np.round(scores * levels / 6)


def _pairwise_auc(labels, scores, weights) -> float:
    """Returns the AUC from its definition, a loop over all pairs of a positive and a negative."""
    won = total = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
            total += pair
    return won / total if total else math.nan


@pytest.mark.parametrize("levels", [None, 20, 3, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_matches_scikit_learn(levels, weighted):
    labels, scores = _data(3000, levels=levels)
    weights = np.random.default_rng(1).gamma(1.0, size=3000) if weighted else None
    expected = sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert metrics.auc(labels, scores, weights) == pytest.approx(expected, rel=1e-12)


def test_auc_counts_ties_half():
    # Pairs (positive, negative): 2 > 1 won, 2 = 2 half, 1 = 1 half, 1 < 2 lost.
    assert metrics.auc([1, 1, 0, 0], [2.0, 1.0, 1.0, 2.0]) == (1 + 0.5 + 0.5 + 0) / 4
    assert metrics.auc([1, 0, 0, 1], [7.0] * 4) == 0.5
    assert metrics.auc([1, 0], [np.inf, -np.inf]) == 1.0


def test_auc_weight_is_repetition_and_zero_weight_is_absence():
    labels, scores = _data(60, levels=10)
    weights = np.random.default_rng(2).integers(0, 4, 60)
    repeated = metrics.auc(np.repeat(labels, weights), np.repeat(scores, weights))
    assert metrics.auc(labels, scores, weights) == repeated
    scores[weights == 0] = np.nan  # padding may hold anything
    assert metrics.auc(labels, scores, weights) == repeated


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1]])
def test_metrics_without_both_classes_are_nan(labels):
    scores = np.linspace(0.1, 0.9, len(labels))
    assert math.isnan(metrics.auc(labels, scores))
    result = metrics.gauc(labels, scores, np.zeros(len(labels), int))
    assert math.isnan(result.value)
    assert result[1:] == (0, min(len(labels), 1), 0)
    assert np.isnan(metrics.placements(labels, scores, np.zeros(len(labels), int))).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("as_text", [False, True])
def test_gauc_matches_a_plain_loop(weighted, as_text):
    labels, scores = _data(600, levels=12)
    generator = np.random.default_rng(3)
    groups = np.minimum(generator.geometric(0.02, 600), 90)  # sizes from 1 to about 15
    weights = generator.gamma(1.0, size=600) * (generator.random(600) < 0.8) if weighted else np.ones(600)

    total = mass = 0.0
    used, left_out, rows = 0, 0, 0
    for group in np.unique(groups[weights > 0]):
        member = (groups == group) & (weights > 0)
        value = _pairwise_auc(labels[member], scores[member], weights[member])
        if math.isnan(value):
            left_out += 1
            continue
        used, rows = used + 1, rows + int(member.sum())
        total, mass = total + value * weights[member].sum(), mass + weights[member].sum()
    assert used > 10 and left_out > 10

    names = np.char.add("user ", groups.astype(str)) if as_text else groups
    result = metrics.gauc(labels, scores, names, weights if weighted else None)
    assert result == metrics.Gauc(pytest.approx(total / mass, rel=1e-12), used, left_out, rows)


def test_gauc_ignores_the_level_of_a_group_where_auc_does_not():
    # Each user's positive is on top, but one user's scores are all higher: inside the users the order is perfect.
    labels, scores, users = [1, 0, 1, 0], [0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1]
    assert metrics.gauc(labels, scores, users).value == 1.0
    assert metrics.auc(labels, scores) == 3 / 4


def test_gauc_of_one_group_is_auc():
    labels, scores = _data(500, levels=20)
    assert metrics.gauc(labels, scores, np.full(500, 7)) == (metrics.auc(labels, scores), 1, 0, 500)


def test_gauc_handles_a_million_rows_and_many_groups():
    labels, scores = _data(1_000_000)
    groups = np.arange(1_000_000) // 2
    result = metrics.gauc(labels, scores, groups)
    first, second = labels.reshape(-1, 2).T
    mixed = first != second  # a pair with both classes is either right or wrong
    won = (scores.reshape(-1, 2)[:, 0] > scores.reshape(-1, 2)[:, 1]) == (first > second)
    assert result == (pytest.approx(won[mixed].mean()), mixed.sum(), (~mixed).sum(), 2 * mixed.sum())


def test_row_order_does_not_matter():
    labels, scores = _data(400, levels=15)
    probabilities = special.expit(scores)
    groups = np.arange(400) % 30
    order = np.random.default_rng(4).permutation(400)
    labels_, scores_, probabilities_ = labels[order], scores[order], probabilities[order]
    assert metrics.auc(labels_, scores_) == metrics.auc(labels, scores)
    assert metrics.gauc(labels_, scores_, groups[order]) == metrics.gauc(labels, scores, groups)
    # Few distinct predictions and many bins: every cut falls inside a run of ties.
    expected = metrics.expected_calibration_error(labels, probabilities, bins=50)
    assert metrics.expected_calibration_error(labels_, probabilities_, bins=50) == pytest.approx(expected, rel=1e-12)


def test_logloss_matches_scikit_learn():
    labels, logits = _data(1000)
    expected = sklearn_metrics.log_loss(labels, special.expit(logits))
    assert metrics.logloss(labels, logits) == pytest.approx(expected, rel=1e-12)


def test_logloss_is_exact_where_the_sigmoid_rounds_to_0_or_1():
    assert metrics.logloss([1], [-800.0]) == 800.0
    assert metrics.logloss([0], [800.0]) == 800.0
    assert metrics.logloss([1], [50.0]) == pytest.approx(math.exp(-50), rel=1e-12)
    assert metrics.logloss([0, 1], [0.0, 0.0]) == pytest.approx(math.log(2))
    assert math.isnan(metrics.logloss([], []))


def test_calibration_is_predicted_over_observed():
    assert metrics.calibration([1, 0, 0, 0], [0.5, 0.2, 0.2, 0.1]) == pytest.approx((0.5 + 0.2 + 0.2 + 0.1) / 1)
    assert math.isnan(metrics.calibration([0, 0], [0.1, 0.2]))
    assert math.isnan(metrics.calibration([], []))


def test_expected_calibration_error_matches_a_loop_over_bins():
    labels, logits = _data(1003)
    probabilities = special.expit(2 * logits)
    order = np.argsort(probabilities)
    for bins in (1, 7, 20):
        edges = [k * 1003 // bins for k in range(bins + 1)]
        cut = [order[start:stop] for start, stop in itertools.pairwise(edges)]
        expected = sum(abs(probabilities[rows].sum() - labels[rows].sum()) for rows in cut) / 1003
        assert metrics.expected_calibration_error(labels, probabilities, bins) == pytest.approx(expected, rel=1e-10)


def test_expected_calibration_error_of_a_constant_is_its_distance_from_the_rate():
    labels = [1] * 30 + [0] * 70
    assert metrics.expected_calibration_error(labels, [0.45] * 100) == pytest.approx(0.45 - 0.30)
    assert metrics.expected_calibration_error([1, 0], [0.9, 0.2], bins=20) == pytest.approx((0.1 + 0.2) / 2)
    assert math.isnan(metrics.expected_calibration_error([], []))


def test_paired_t_test_matches_scipy_and_the_formula():
    a = np.array([0.712, 0.709, 0.715, 0.711, 0.708])
    b = np.array([0.706, 0.707, 0.708, 0.709, 0.702])
    result = metrics.paired_t_test(a, b)
    expected = stats.ttest_rel(a, b)
    assert (result.t, result.p) == pytest.approx((expected.statistic, expected.pvalue))
    mean = sum(a - b) / 5
    sd = math.sqrt(sum((a - b - mean) ** 2) / 4)
    assert result == pytest.approx((mean, sd, mean / (sd / math.sqrt(5)), expected.pvalue, 5))
    assert metrics.paired_t_test(b, a).p == pytest.approx(result.p)


def test_paired_t_test_without_spread_is_undefined():
    one = metrics.paired_t_test([0.71], [0.70])
    assert one.n == 1 and one.mean_difference == pytest.approx(0.01)
    assert math.isnan(one.sd) and math.isnan(one.t) and math.isnan(one.p)
    # The same difference for each seed up to rounding: p would be 0 (or 1e-40) for a seed that was never used.
    same = metrics.paired_t_test([0.71, 0.72, 0.73], [0.70, 0.71, 0.72])
    assert same.mean_difference == pytest.approx(0.01)
    assert math.isnan(same.t) and math.isnan(same.p)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.auc([0, 1], [0.1, math.nan]), "1 of 2 scores are NaN"),
        (lambda: metrics.auc([0, 2], [0.1, 0.2]), "labels must be 0 or 1"),
        (lambda: metrics.auc([0, 1], [0.1]), "one length"),
        (lambda: metrics.auc([[0, 1]], [[0.1, 0.2]]), r"\[N\]"),
        (lambda: metrics.auc([0, 1], [0.1, 0.2], [1, -1]), "not negative"),
        (lambda: metrics.auc([0, 1], [0.1, 0.2], [1]), "weights has shape"),
        (lambda: metrics.gauc([0, 1], [0.1, 0.2], [1]), "groups has shape"),
        (lambda: metrics.calibration([0, 1], [-2.0, 3.0]), "logits"),
        (lambda: metrics.expected_calibration_error([0, 1], [0.1, 0.2], bins=0), "bins"),
        (lambda: metrics.paired_t_test([1.0, 2.0], [1.0]), "one length"),
    ],
)
def test_wrong_input_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_placements_are_the_shares_of_pairs_won_in_the_group():
    labels, scores = _data(120, levels=9)
    groups = np.random.default_rng(3).integers(0, 12, 120)
    groups[:3], labels[:3] = 12, 1  # a group of one class
    found = metrics.placements(labels, scores, groups)
    for row in range(120):
        others = (groups == groups[row]) & (labels != labels[row])
        gap = (scores[row] - scores[others]) * (1 if labels[row] else -1)
        expected = np.mean((gap > 0) + 0.5 * (gap == 0)) if others.any() else math.nan
        assert found[row] == pytest.approx(expected, nan_ok=True)
