"""A first label that is an amount or of ordered levels: its loss, metrics, the step it chooses, what is written and served."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import losses, metrics, train
from em3_jax.core import amounts
from em3_jax.core.labels import Labels
from em3_jax.data.readers.table import table
from em3_jax.evaluation import compare
from em3_jax.export import command as export
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from em3_jax.protocols import importance
from em3_jax.serving import store
from em3_jax.serving.service import Model
from em3_jax.tasks import ordinal
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.evaluation.test_labels import ROWS, log
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
LEVELS = (1.0, 2.0, 4.0, 7.0)


def test_the_cumulative_link_is_its_formula_and_begins_at_the_shares_of_the_levels():
    random = np.random.default_rng(0)
    values = random.choice(LEVELS, 200, p=[0.1, 0.5, 0.3, 0.1])
    how = amounts.fitted(amounts.ORDINAL, values)
    assert how.levels == LEVELS and amounts.middle(how.levels) == 2 and amounts.middle((1, 2, 3, 4, 5)) == 3
    params, head = ordinal.init(how) + np.array([0.1, -0.3, 0.2], np.float32), random.normal(0, 2, 200)
    observed, weight = random.random(200) < 0.8, random.random(200).astype(np.float32)
    cuts = np.asarray(ordinal.thresholds(params), np.float64)
    assert (np.diff(cuts) > 0).all()
    below = 1 / (1 + np.exp(-(cuts - head[:, None])))  # P(y <= k)
    chance = np.diff(np.concatenate([np.zeros((200, 1)), below, np.ones((200, 1))], axis=1), axis=1)
    expected = np.average(-np.log(chance[np.arange(200), np.searchsorted(LEVELS, values)]), weights=weight * observed)
    given = jnp.asarray(values), jnp.array(LEVELS), params, jnp.asarray(observed), jnp.asarray(weight)
    head32 = jnp.asarray(head, jnp.float32)
    assert float(ordinal.loss(head32, *given)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(ordinal.expected_level(head32, jnp.array(LEVELS), params), chance @ LEVELS, rtol=1e-5)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-np.asarray(ordinal.thresholds(ordinal.init(how))))),
        [np.mean(values <= level) for level in LEVELS[:-1]], atol=0.01,
    )  # fmt: skip
    slopes = jax.grad(ordinal.loss, (0, 3))(100 * head32, *given)
    assert all(np.isfinite(one).all() for one in slopes) and not np.any(slopes[0][~observed])
    two = jnp.asarray(values > 2, jnp.float32)  # of two levels it is the cross-entropy
    one = ordinal.loss(head32, two, jnp.array([0.0, 1.0]), jnp.zeros(1), jnp.ones(200, bool), jnp.ones(200))
    assert float(one) == pytest.approx(float(losses.binary_cross_entropy(head32, two)), rel=1e-5)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Clicks and seconds, and stars by item and user."""
    folder, read, random = tmp_path_factory.mktemp("rated"), log(), np.random.default_rng(1)
    user, item = (read.column(name).to_numpy() for name in ("user", "item"))
    stars = 1 + np.clip(np.round(item % 5 / 2 + 2 * (user % 2) + random.normal(0, 0.5, ROWS)), 0, 4)
    pq.write_table(read.append_column("rating", pa.array(stars)), folder / "log.parquet")
    given = {"labels": {"buy": "bought"}, "amounts": {"stars": "rating", "dwell": "seconds"}}
    return table(folder / "data", interactions=folder / "log.parquet", split="0.6,0.2,0.2", **given)


def config_of(dataset, label: str = "stars", **heads):
    config = small_config(
        dataset, model__content="none", data__features=(), model__cic__id_fields=("item",), eval__batch_size=128,
        data__label=label,
    )  # fmt: skip
    for name, value in ({"losses": {"stars": "cumulative_link"}, "hidden": (8,)} | heads).items():
        setattr(config.model.heads, name, value)
    config.eval.metric, config.tables.learning_rate, config.train.epochs = "rmse", 0.2, 2.0
    return config


@pytest.fixture(scope="module")
def rated(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "rated"
    losses_ = {"stars": "cumulative_link", "dwell": "log"}
    found = train.train(config_of(shop, labels=("buy", "dwell"), losses=losses_), folder)
    return folder, found, evaluation.evaluate(folder, "test")


def test_the_report_is_of_the_expected_level_and_rmse_chooses_the_step(rated, shop, monkeypatch, capsys):
    folder, found, report = rated
    values = shop.label("stars")[np.asarray(shop.split_rows("test"))].astype(np.float64)
    scores = np.load(folder / "eval_test_logits.npy").astype(np.float64)
    of = report["slices"]["all"]
    assert 1 <= scores.min() and scores.max() <= 5 and "logloss" not in of
    assert of["rmse"] == pytest.approx(np.sqrt(np.mean((scores - values) ** 2))) and of["rmse_se"] > 0
    assert of["rmse"] < 0.9 * values.std(), "users and items are learnt"
    assert of["auc"] == pytest.approx(metrics.auc(values > 3, scores)) and of["auc_se"] > 0
    assert report["slices"]["popular items"]["n"] < of["n"] and report["labels"]["buy"]["auc"] > 0.5
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    valid = {line["step"]: line["valid/rmse"] for line in logged if "valid/rmse" in line}
    assert found["best_step"] == min(valid, key=valid.get) and found["best_value"] == min(valid.values())
    last = [line for line in logged if "valid/mean_auc" in line][-1]
    assert last["valid/mean_auc"] == pytest.approx((last["valid/auc"] + last["valid/buy_auc"]) / 2)
    monkeypatch.setattr(sys, "argv", ["eval", f"--workdir={folder}", "--bootstrap=200", "--plots"])
    evaluation.main()
    shown, again = capsys.readouterr().out, json.loads((folder / "eval_test.json").read_text())
    assert "rmse" in shown.splitlines()[1] and f"{of['auc']:.4f}" in shown.splitlines()[2]
    assert again["bootstrap"]["intervals"]["all"]["auc"]["se"] == pytest.approx(of["auc_se"], rel=0.3)
    assert again["reliability"]["all"]["amount"] and again["reliability"]["all"]["mean"] == pytest.approx(values.mean())
    models = [compare.load(f"{name}={folder}", "test") for name in ("a", "b")]
    assert compare.compare(models, "rmse")["all"]["b"]["difference"] == 0
    assert "--calibrate" in user_error(evaluation.evaluate, folder, "test", None, None, "platt")
    assert "the amount stars" in user_error(importance.importance, folder, folder / "out")


def test_it_is_predicted_recommended_and_served_as_what_is_expected(rated, shop, tmp_path):
    folder, scores = rated[0], np.load(rated[0] / "eval_test_logits.npy").astype(np.float64)
    rows = np.asarray(shop.split_rows("test"))
    pq.write_table(log().take(rows), tmp_path / "rows.parquet")
    predict(folder, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet")
    np.testing.assert_allclose(found.column("expected").to_numpy(), scores, rtol=1e-5)
    assert {"probability_buy", "expected_dwell"} <= {*found.column_names} and "probability" not in found.column_names
    recommend(folder, tmp_path / "top.parquet", count=3, keep_seen=True)
    top = pq.read_table(tmp_path / "top.parquet").column("score").to_numpy().reshape(-1, 3)
    assert ((top >= 1) & (top <= 5)).all() and (np.diff(top) <= 0).all()
    export.export(folder, tmp_path / "store", export.Settings(platforms=("cpu",)))
    model, columns = Model(store.open_current(tmp_path / "store")), shop.interactions
    row, items = rows[5], shop.item_table.column("id").to_numpy()
    past = shop.events["item"][columns["history_start"][row] : columns["history_end"][row]]
    user = shop.user_table.column("id")[int(columns["user"][row])].as_py()
    answer = model.score(user, items[past], items[[columns["item"][row]]])
    assert answer.probability[0] == pytest.approx(scores[5], abs=1e-4) and answer.further.keys() == {"buy", "dwell"}


def test_an_amount_alone_may_be_all_that_is_learnt(shop, tmp_path):
    config = config_of(shop, "dwell", losses={"dwell": "tweedie"})
    config.train.epochs = 1.0
    train.train(config, tmp_path / "run")
    of = evaluation.evaluate(tmp_path / "run", "test")["slices"]["all"]
    seconds = shop.label("dwell")[np.asarray(shop.split_rows("test", "dwell"))]
    assert of["n"] == len(seconds) and of["mae"] < 2 * seconds.mean() and "auc" not in of
    assert experiment.build(config).work.headline == ("rmse",)


@pytest.mark.parametrize(
    "label, heads, words",
    [
        ("stars", {"losses": {}}, ("'stars' is an amount", "cumulative_link")),
        ("dwell", {"losses": {"dwell": "cumulative_link"}}, ("losses.dwell", "levels in training rows")),
        ("buy", {}, ("losses.stars", "no such further label")),
        ("stars", {"kind": "esmm", "labels": ("buy",)}, ("esmm", "'stars' is an amount")),
    ],
)
def test_first_labels_and_losses_that_do_not_go_together(shop, label, heads, words):
    said = user_error(experiment.build, config_of(shop, label, **heads))
    assert all(word in said for word in words), said


def test_labels_are_read_again_as_they_were_written():
    what = Labels(("buy", "stars"), {"stars": amounts.ORDINAL}, False, {"stars": LEVELS}, "log", ())
    assert Labels.from_json(json.loads(json.dumps(what.to_json()))) == what
    assert set(Labels(("buy",)).to_json()) == {"names", "amounts", "entire_space"}
