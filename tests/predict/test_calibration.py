"""Calibration: the fits against their definitions, what they leave as it is, and the run, store and service that keep one."""

import json

import numpy as np
import pytest
from scipy import special
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from em3_jax import evaluate as evaluation
from em3_jax import metrics
from em3_jax.core.calibration import NONE, Calibration
from em3_jax.data.format import open_dataset
from em3_jax.evaluation import calibration
from em3_jax.export import command as export
from em3_jax.serving.service import Service
from tests.conftest import user_error


def miscalibrated(rows: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(labels, logits) of a model whose true log-odds are slope * logit + intercept."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.standard_normal(rows)
    return (random.random(rows) < special.expit(slope * logits + intercept)).astype(np.int64), logits


def test_platt_is_a_logistic_regression():
    labels, logits = miscalibrated(4000, 0.5, -0.7)
    found = calibration.fitted(labels, logits, "platt")
    expected = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    x = np.linspace(-9, 9, 50)
    np.testing.assert_allclose(found.of_rows(x), expected.coef_[0, 0] * x + expected.intercept_[0], atol=1e-4)
    slope, intercept = metrics.calibration_line(labels, found.of_rows(logits))
    assert slope == pytest.approx(1, abs=1e-6) and intercept == pytest.approx(0, abs=1e-6)


def test_isotonic_follows_the_rates_of_blocks():
    labels, logits = miscalibrated(30_000, 0.4, 1.0, seed=1)
    found = calibration.fitted(labels, logits, "isotonic")
    expected = IsotonicRegression(out_of_bounds="clip").fit(special.expit(logits), labels)
    x = np.quantile(logits, np.linspace(0.02, 0.98, 40))
    np.testing.assert_allclose(special.expit(found.of_rows(x)), expected.predict(special.expit(x)), atol=0.03)
    assert len(found.logits) <= calibration.MOST_KNOTS


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_it_calibrates_rows_that_it_has_not_seen_and_keeps_their_order(method):
    found = calibration.fitted(*miscalibrated(100_000, 0.4, 1.0), method)
    labels, logits = miscalibrated(100_000, 0.4, 1.0, seed=7)
    before, after = calibration.measured(labels, logits), calibration.measured(labels, found.of_rows(logits))
    assert after["calibration_slope"] == pytest.approx(1, abs=0.05) and after["calibration"] == pytest.approx(
        1, abs=0.02
    )
    assert after["logloss"] < before["logloss"] - 0.05
    wide = np.sort(np.concatenate([logits, [-50.0, 50.0]]))
    assert (np.diff(found.of_rows(wide)) >= 0).all()
    assert metrics.auc(labels, found.of_rows(logits)) == pytest.approx(metrics.auc(labels, logits), abs=2e-4)


def test_probabilities_of_a_log_whose_negatives_were_sampled():
    """A tenth of the negatives is kept: what was fitted on these rows is right for the whole log."""
    labels, logits = miscalibrated(400_000, 1.0, -2.0, seed=3)
    random = np.random.default_rng(4)
    kept = (labels == 1) | (random.random(len(labels)) < 0.1)
    found = calibration.fitted(labels[kept], logits[kept], "platt", kept_negatives=0.1)
    slope, intercept = metrics.calibration_line(labels, found.of_log(logits))
    assert slope == pytest.approx(1, abs=0.02) and intercept == pytest.approx(0, abs=0.03)
    assert found.probability(logits).mean() == pytest.approx(labels.mean(), rel=0.02)


def test_ties_and_blocks_of_one_class_stay_finite():
    labels, logits = np.array([0, 0, 1, 1, 0, 1]), np.array([-1.0, -1.0, -1.0, 2.0, 2.0, 3.0])
    found = calibration.fitted(labels, logits, "isotonic")
    assert np.isfinite(found.calibrated).all() and np.isfinite(found.of_rows(np.array([-1e3, 1e3]))).all()


def test_json_and_back():
    found = calibration.fitted(*miscalibrated(500, 0.6, 0.1), "isotonic", 0.25)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found
    for broken in (
        {},
        found.to_json() | {"slope": "x"},
        found.to_json() | {"logits": [2.0, 1.0], "calibrated": [0.0, 1.0]},
    ):
        with pytest.raises(ValueError):
            Calibration.from_json(broken)
    x = np.array([-1.0, 0.0, 3.0])
    np.testing.assert_array_equal(NONE.of_log(x), x)


def test_what_cannot_be_fitted():
    labels, logits = miscalibrated(300, 1.0, 0.0)
    assert "one class of clicks alone" in user_error(calibration.fitted, np.zeros(300), logits, "platt")
    assert "do not rise" in user_error(calibration.fitted, labels, -3 * logits, "platt")
    assert "--kept-negatives 0" in user_error(calibration.fitted, labels, logits, "platt", 0.0)
    assert "platt or isotonic" in user_error(calibration.fitted, labels, logits, "spline")


def test_the_line_where_it_is_undefined():
    assert all(np.isnan(one) for one in metrics.calibration_line([1, 1], [0.0, 1.0]))
    assert all(np.isnan(one) for one in metrics.calibration_line([0, 0, 1, 1], [-2.0, -1.0, 1.0, 2.0]))
    assert np.isnan(metrics.normalized_entropy([1, 1], [0.0, 1.0]))
    assert metrics.normalized_entropy([0, 1, 1, 0], [0.0] * 4) == pytest.approx(1.0)


def test_a_run_keeps_it_and_the_service_gives_it(scored, tmp_path):
    report = evaluation.evaluate(scored, "test", calibrate="platt", kept_negatives=0.5)
    found, logits = report["calibration"], np.load(scored / "eval_test_logits.npy")
    kept = calibration.read(scored, report["step"]).first
    assert found["after"]["logloss"] <= found["before"]["logloss"] + 0.02 and len(found["deciles"]) == 10
    again = evaluation.evaluate(scored, "test")
    assert again["calibration"] == found, "it is kept, and what was fitted is the same"
    assert again["slices"]["all"]["auc"] == report["slices"]["all"]["auc"]

    export.export(scored, tmp_path / "store", export.Settings(platforms=("cpu",)))
    dataset = open_dataset(report["config"]["data"]["root"])
    row = np.asarray(dataset.split_rows("test"))[0]
    columns = dataset.interactions
    ids = [table.column("id").to_pylist() for table in (dataset.user_table, dataset.item_table)]
    start, end = columns["history_start"][row], columns["history_end"][row]
    past = [ids[1][k] for k in dataset.events["item"][start:end]]
    slot = dataset.meta["vocabularies"]["context"]["slot"][columns["context_slot"][row] - 2]
    with Service(tmp_path / "store") as service:
        scores = service.model.score(
            ids[0][columns["user"][row]], past, [ids[1][columns["item"][row]]], context={"slot": slot}
        )
    np.testing.assert_allclose(scores.logit, logits[:1], atol=1e-5)
    np.testing.assert_allclose(scores.probability, kept.probability(scores.logit))
    assert scores.probability[0] < special.expit(kept.of_rows(scores.logit))[0], "half of the negatives are not here"

    assert "step" in user_error(calibration.read, scored, report["step"] + 1)
    (scored / calibration.FILE).write_text("{")
    assert "cannot be read" in user_error(evaluation.evaluate, scored, "test")
    (scored / calibration.FILE).unlink()
