"""Labels that are amounts, metrics of further labels, the step that they choose, and runs compared by one of them."""

import importlib.util
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import metrics, train
from em3_jax.core import amounts, strict_json
from em3_jax.core.amounts import Amount
from em3_jax.core.labels import Labels
from em3_jax.data.readers.table import table
from em3_jax.evaluation import calibration, compare, labels, ndcg
from em3_jax.export import command as export
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from em3_jax.serving import store
from em3_jax.serving.service import Model
from em3_jax.tasks.heads import NOT_OBSERVED, FurtherLabels, loss_of_amount
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
ROWS, USERS, ITEMS = 3000, 40, 30


def log(seed: int = 0) -> pa.Table:
    """Clicks, buys and seconds of items that each have a length; seconds of clicked rows alone."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, USERS, ROWS), random.integers(0, ITEMS, ROWS)
    click = random.random(ROWS) < 0.2 + 0.6 * (item % 3 == user % 3)
    buy = random.random(ROWS) < 0.1 + 0.5 * (item % 2)
    seconds = random.gamma(2.0, 1.0 + item, ROWS) * (random.random(ROWS) < 0.8)
    return pa.table(
        {
            "user": user, "item": item, "time": np.arange(ROWS) + 1_600_000_000, "label": click.astype(int),
            "bought": buy.astype(int), "seconds": pa.array(np.where(click, seconds, np.nan), from_pandas=True),
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    pq.write_table(log(), folder / "log.parquet")
    given = {"labels": {"buy": "bought"}, "amounts": {"dwell": "seconds"}}
    return table(folder / "data", interactions=folder / "log.parquet", split="0.6,0.2,0.2", **given)


def config_of(dataset, **changes):
    heads = {"labels": ("buy", "dwell"), "hidden": (8,), "losses": {"dwell": "tweedie"}} | changes
    config = small_config(
        dataset, model__content="none", data__features=(), model__cic__id_fields=("item",), eval__batch_size=128
    )
    for name, value in heads.items():
        setattr(config.model.heads, name, value)
    config.tables.learning_rate, config.train.epochs = 0.2, 2.0
    return config


@pytest.fixture(scope="module")
def several(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several") / "run"
    config = config_of(shop)
    config.eval.metric = "dwell_rmse"
    found = train.train(config, folder)
    return folder, found, evaluation.evaluate(folder, "test")


def test_amounts_are_kept_as_they_are(shop):
    values = shop.label("dwell")
    expected = log().column("seconds").to_numpy(zero_copy_only=False).astype(np.float32)
    np.testing.assert_array_equal(values, expected)
    assert values.dtype == np.float32 and np.isnan(values[shop.label("click") == 0]).all()
    assert len(shop.split_rows("train", "dwell")) == int(np.sum(shop.label("click")[:1800]))


def test_losses_of_amounts_are_their_formulas_and_least_at_the_truth():
    random = np.random.default_rng(0)
    amount = np.where(random.random(64) < 0.3, 0.0, random.gamma(2.0, 30.0, 64)).astype(np.float32)
    observed, weight = random.random(64) < 0.7, random.random(64).astype(np.float32)
    head = random.standard_normal(64).astype(np.float32)
    kept = observed & (weight > 0)
    w, y, x = weight[kept].astype(np.float64), amount[kept].astype(np.float64), head[kept].astype(np.float64)
    for loss in amounts.LOSSES:
        how = amounts.fitted(loss, amount[observed])
        args = (jnp.asarray(amount), jnp.array([how.shift, how.scale]), jnp.asarray(observed), jnp.asarray(weight))
        z = how.shift + how.scale * x
        if loss == "tweedie":  # of mu = exp(z), up to what does not depend on it: 2 sqrt(mu) + 2 y / sqrt(mu)
            rows = (2 * np.exp(z / 2) + 2 * y * np.exp(-z / 2)) / np.exp(how.shift / 2)
        else:
            rows = ((z - (np.log1p(y) if loss == "log" else y)) / how.scale) ** 2 / 2
        found = loss_of_amount(loss, jnp.asarray(head), *args)
        assert float(found) == pytest.approx(np.average(rows, weights=w), rel=1e-4)
        # Of one number for all rows the best is the mean: of y, or of log(1 + y).
        target = np.log1p(y) if loss == "log" else y
        best = np.average(target, weights=w)
        at_best = ((np.log(best) if loss == "tweedie" else best) - how.shift) / how.scale
        slope = jax.grad(lambda x, loss=loss, args=args: loss_of_amount(loss, jnp.full(64, x), *args))(at_best)
        assert abs(float(slope)) < 1e-3
        expected = amounts.expected(loss, np.array([how.shift + how.scale * at_best]))
        assert expected[0] == pytest.approx(np.expm1(best) if loss == "log" else best, rel=1e-4)
    none = loss_of_amount("log", jnp.ones(64), *args[:2], jnp.zeros(64, bool), args[3])
    assert float(none) == 0.0


def test_shift_and_scale_are_kept_and_take_no_gradient():
    task = FurtherLabels(("dwell",), {}, False, False, {"dwell": Amount("log", 2.0, 0.5)})
    params = task.init()
    batch = {"label": jnp.ones(4), "weight": jnp.ones(4), "further": jnp.array([[3.0], [9.0], [NOT_OBSERVED], [0.0]])}
    value = lambda p, x: task.loss(p, jnp.float32(0), jnp.zeros(4), {"further": x}, batch)[0]  # noqa: E731
    of_params, of_head = jax.grad(value, (0, 1))(params, jnp.ones((4, 1)))
    assert not np.any(of_params["amounts"]["dwell"]) and of_head[2, 0] == 0 and np.all(of_head[[0, 1, 3], 0] != 0)
    np.testing.assert_allclose(task.scores(params, jnp.ones((4, 1)))[:, 0], 2.5)


def test_the_report_is_of_the_scores_and_a_label_chooses_the_step(several, shop):
    folder, found, report = several
    rows = np.asarray(shop.split_rows("test"))
    values = shop.label("dwell")[rows]
    there, scores = ~np.isnan(values), np.load(folder / "eval_test_logits_dwell.npy")
    predicted = np.exp(scores[there].astype(np.float64))
    of = report["labels"]["dwell"]
    assert of["n"] == there.sum() and of["mae"] == pytest.approx(np.abs(predicted - values[there]).mean())
    assert of["rmse"] == pytest.approx(np.sqrt(np.mean((predicted - values[there]) ** 2))) and of["rmse_se"] > 0
    assert of["r2"] > 0.05, "an item's length is learnt"
    assert 0.8 < of["calibration"] < 1.25
    buy = report["labels"]["buy"]
    assert buy["auc"] == pytest.approx(
        metrics.auc(shop.label("buy")[rows], np.load(folder / "eval_test_logits_buy.npy"))
    )
    assert buy["auc_se"] > 0
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    valid = {line["step"]: line for line in logged if "valid/dwell_rmse" in line}
    best = min(valid, key=lambda step: valid[step]["valid/dwell_rmse"])
    assert found["best_step"] == best and found["best_value"] == pytest.approx(valid[best]["valid/dwell_rmse"])
    one = valid[best]
    assert one["valid/mean_auc"] == pytest.approx((one["valid/auc"] + one["valid/buy_auc"]) / 2)


def test_predict_writes_expected_amounts(several, shop, tmp_path):
    folder = several[0]
    rows = np.asarray(shop.split_rows("test"))
    pq.write_table(log().take(rows), tmp_path / "rows.parquet")
    predict(folder, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet")
    scores = np.load(folder / "eval_test_logits_dwell.npy").astype(np.float64)
    np.testing.assert_allclose(found.column("expected_dwell").to_numpy(), np.exp(scores), rtol=1e-5)
    assert "probability_buy" in found.column_names and "probability_dwell" not in found.column_names
    users = len(shop.user_table)
    assert recommend(folder, tmp_path / "top.parquet", count=2, keep_seen=True).rows == 2 * users
    report = evaluation.evaluate(folder, "test", calibrate="platt")
    assert report["calibration"]["method"] == "platt"
    kept = json.loads((folder / "calibration.json").read_text())["labels"]
    assert set(kept) == {"buy"}, "an amount has no probability to calibrate"
    (folder / "calibration.json").unlink()


def test_a_service_answers_for_every_label(several, shop, tmp_path):
    folder = shutil.copytree(several[0], tmp_path / "run")  # which is calibrated here
    evaluation.evaluate(folder, "test", calibrate="platt")
    with_onnx = importlib.util.find_spec("jax2onnx") is not None
    export.export(folder, tmp_path / "store", export.Settings(platforms=("cpu",), with_onnx=with_onnx))
    model = Model(store.open_current(tmp_path / "store"))
    assert not with_onnx or model.manifest["serving"]["onnx"]["largest_difference"] < 1e-5, "of all labels' logits"
    rows = shop.split_rows("test")[:8]
    columns, items = shop.interactions, shop.item_table.column("id").to_numpy()
    kept = calibration.read(folder, several[1]["best_step"])
    logits = {name: np.load(folder / f"eval_test_logits{name}.npy")[:8] for name in ("", "_buy", "_dwell")}
    for k, row in enumerate(rows):
        past = shop.events["item"][columns["history_start"][row] : columns["history_end"][row]]
        user = shop.user_table.column("id")[int(columns["user"][row])].as_py()
        answer = model.score(user, items[past], items[[columns["item"][row]]])
        assert answer.probability[0] == pytest.approx(kept.first.probability(logits[""][k]), abs=1e-5)
        assert answer.further.keys() == {"buy", "dwell"}
        assert answer.further["buy"][0] == pytest.approx(kept.of("buy").probability(logits["_buy"][k]), abs=1e-5)
        assert answer.further["dwell"][0] == pytest.approx(amounts.expected("tweedie", logits["_dwell"][k]), rel=1e-4)
    nobody = model.score(None, [], [])
    assert nobody.probability.shape == (0,) and nobody.further["buy"].shape == (0,)


def test_compare_shows_further_labels_and_one_alone(several, shop, tmp_path, capsys, monkeypatch):
    folder = several[0]
    config = small_config(
        shop, model__content="none", data__features=(), model__cic__id_fields=("item",), data__label="buy"
    )
    train.train(config, tmp_path / "alone")
    evaluation.evaluate(tmp_path / "alone", "test")
    monkeypatch.setattr(sys, "argv", ["compare", f"alone={tmp_path / 'alone'}", f"all={folder}", "--label", "buy"])
    compare.main()
    shown = capsys.readouterr().out
    alone, of_all = (json.loads((one / "eval_test.json").read_text()) for one in (tmp_path / "alone", folder))
    assert f"{alone['slices']['all']['auc']:.4f}" in shown and f"{of_all['labels']['buy']['auc']:.4f}" in shown
    assert "+" in shown.split("all", 2)[2] or "-" in shown
    models = [compare.load(f"{name}={folder}", "test") for name in ("a", "b")]
    rows = compare.compare(models, "auc")
    assert (
        rows["label buy"]["a"]["mean"] == of_all["labels"]["buy"]["auc"] and rows["label buy"]["b"]["difference"] == 0
    )
    rows = compare.compare(models, "rmse")
    assert rows["label dwell"]["a"]["mean"] == of_all["labels"]["dwell"]["rmse"]
    said = user_error(compare.check_paired, [compare.load(str(one), "test") for one in (folder, tmp_path / "alone")])
    assert "different labels" in said and "--label" in said
    assert "does not learn it" in user_error(compare.of_label, models[0], "like")


def test_all_labels_are_measured_within_groups_when_asked(several, shop, monkeypatch, capsys):
    folder, before = several[0], json.loads(strict_json.dumps(several[2]))
    monkeypatch.setattr(sys, "argv", ["eval", f"--workdir={folder}", "--at", "3,5", "--group-by=item"])
    evaluation.main()
    shown, report = capsys.readouterr().out, json.loads((folder / "eval_test.json").read_text())
    rows = np.asarray(shop.split_rows("test"))
    columns = {name: shop.interactions[name][rows] for name in ("user", "item")}
    for label, of in (("click", report["slices"]["all"]), ("buy", report["labels"]["buy"])):
        values = shop.label(label)[rows]
        logits = np.load(folder / f"eval_test_logits{'' if label == 'click' else '_buy'}.npy")
        lists = ndcg.of_groups(values, logits, columns["user"], (3, 5))
        assert of["ndcg@5"] == lists.mean("ndcg@5") and of["mrr"] == lists.mean("mrr") and of["mrr_se"] > 0
        assert of["gauc_by_item"] == metrics.gauc(values, logits, columns["item"]).value
        assert f"{of['mrr']:.4f}" in shown and f"{of['gauc_by_item']:.4f}" in shown
    dwell = shop.label("dwell")[rows]
    there, scores = ~np.isnan(dwell), np.load(folder / "eval_test_logits_dwell.npy")
    lists = ndcg.of_groups(dwell[there], scores[there], columns["user"][there], (3,))
    of = report["labels"]["dwell"]
    assert of["ndcg@3"] == pytest.approx(lists.mean("ndcg@3")) and not {"mrr", "gauc_by_item"} & set(of)
    assert "less those of one row" in shown and report["config"] == before["config"]
    for found, old in ((report["slices"], before["slices"]), (report["labels"], before["labels"])):
        assert {name: {key: found[name][key] for key in of} for name, of in old.items()} == old, "as it was"
    monkeypatch.setattr(sys, "argv", ["eval", f"--workdir={folder}", "--group-by=itme"])
    assert "group_by=itme: no such field; did you mean 'item'?" in user_error(evaluation.main)
    monkeypatch.setattr(sys, "argv", ["eval", f"--workdir={folder}", "--at=0"])
    assert "--at 0" in user_error(evaluation.main)
    assert json.loads(strict_json.dumps(evaluation.evaluate(folder, "test"))) == before


def test_intervals_by_drawing_users_again_and_what_compare_makes_of_them(several, monkeypatch, capsys):
    folder = several[0]

    def call(command, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["em3", *arguments])
        command.main()
        return capsys.readouterr().out

    compared = f"a={folder}", f"b={folder}", "--metric", "rmse,normalized_entropy,ndcg@3"
    shown = call(evaluation, f"--workdir={folder}", "--at=3", "--bootstrap=200", "--seed=1")
    report = json.loads((folder / "eval_test.json").read_text())
    drawn, values = report["bootstrap"], labels.by_slice(report)
    assert (drawn["samples"], drawn["seed"], drawn["clusters"]) == (200, 1, "user") and "200 samples" in shown
    assert set(drawn["intervals"]) == {"all", "label buy", "label dwell"}
    for name, of in drawn["intervals"].items():
        assert "ndcg@3" in of and ("rmse" if name == "label dwell" else "normalized_entropy") in of
        for metric, one in of.items():
            assert one["low"] <= one["value"] + one["se"] and one["value"] == values[name][metric]
            if f"{metric}_se" in values[name]:
                assert one["se"] == pytest.approx(values[name][f"{metric}_se"], rel=0.3), metric
    shown = call(compare, *compared)
    dwell = shown.split("label dwell, n ")[1].splitlines()[1]
    assert f"{report['labels']['dwell']['rmse']:.4f}" in dwell
    entropy = shown.split("normalized_entropy on test")[1].splitlines()
    assert f"{drawn['intervals']['all']['normalized_entropy']['se']:.4f}" in entropy[2] and "+0.0000 to" in entropy[3]
    shown = call(compare, *compared, "--bootstrap", "--json", str(folder / "compared.json"))
    assert f"{drawn['intervals']['label dwell']['rmse']['se']:.4f}" in shown and "bootstrap samples" in shown
    kept = json.loads((folder / "compared.json").read_text())
    assert set(kept) == {"rmse", "normalized_entropy", "ndcg@3"} and kept["rmse"]["label dwell"]["b"]["low"] == 0
    shown = call(compare, *compared[:2], "--label=buy", "--bootstrap")
    assert f"{drawn['intervals']['label buy']['auc']['se']:.4f}" in shown
    evaluation.evaluate(folder, "test")
    assert "has no bootstrap samples" in user_error(call, compare, *compared[:2], "--bootstrap")


def test_plots_are_of_every_label_as_trained_and_calibrated(several, shop, monkeypatch, capsys):
    folder = several[0]
    monkeypatch.setattr(sys, "argv", ["eval", f"--workdir={folder}", "--plots", "--calibrate=platt"])
    evaluation.main()
    found = json.loads((folder / "eval_test.json").read_text())["reliability"]
    shown = capsys.readouterr().out
    for name in ("eval_test_calibration.png", "eval_test_calibration.html"):
        assert (folder / name).stat().st_size > 5000 and f"{folder / name}: written" in shown
    rows = np.asarray(shop.split_rows("test"))
    assert set(found) == {"all", "label buy", "label dwell"} and not found["label dwell"]["after"]
    kept = calibration.read(folder, several[2]["step"])
    for slice_name, label in (("all", "click"), ("label buy", "buy")):
        logits = np.load(folder / f"eval_test_logits{'' if label == 'click' else '_buy'}.npy").astype(np.float64)
        fitted = kept.first if label == "click" else kept.of("buy")
        for part, scores in (("before", logits), ("after", fitted.of_rows(logits))):
            tenths = found[slice_name][part]
            mean = sum(one["rows"] * one["predicted"] for one in tenths) / len(rows)
            assert mean == pytest.approx(np.mean(1 / (1 + np.exp(-scores))))
            observed = sum(one["rows"] * one["observed"] for one in tenths) / len(rows)
            assert observed == pytest.approx(shop.label(label)[rows].mean())
    (folder / "calibration.json").unlink()


def test_what_is_asked_for_may_choose_the_step(shop):
    config = config_of(shop)
    config.eval.at, config.eval.group_by, config.eval.metric = (3,), ("item",), "buy_ndcg@3"
    headline = experiment.build(config).work.headline
    assert {"ndcg@3", "mrr", "gauc_by_item", "buy_mrr", "buy_gauc_by_item", "dwell_ndcg@3"} <= set(headline)
    assert "dwell_mrr" not in headline


@pytest.mark.parametrize(
    "losses, words",
    [
        ({}, ("'dwell' is an amount", "tweedie")),
        ({"dwell": "log", "buy": "log"}, ("losses.buy", "0 or 1")),
        ({"dwell": "log", "like": "log"}, ("losses.like", "no such further label")),
    ],
)
def test_losses_that_do_not_go_with_the_labels(shop, losses, words):
    said = user_error(experiment.build, config_of(shop, losses=losses))
    assert all(word in said for word in words)


def test_labels_and_metrics_that_cannot_be(shop):
    alone = {"model__content": "none", "data__features": (), "model__cic__id_fields": ("item",)}
    said = user_error(experiment.build, small_config(shop, data__label="dwell", **alone))
    assert "label 'dwell' is an amount" in said and "tweedie" in said
    config = config_of(shop)
    config.eval.metric = "buy_rmse"
    said = user_error(experiment.build, config)
    assert "eval.metric=buy_rmse" in said and "not a metric of this run" in said


def test_columns_that_are_no_amounts(tmp_path):
    def said(read: pa.Table, name: str = "dwell") -> str:
        pq.write_table(read, tmp_path / "log.parquet")
        given = {"labels": {"buy": "bought"}, "amounts": {name: "seconds"}}
        return user_error(lambda: table(tmp_path / "data", interactions=tmp_path / "log.parquet", **given))

    read = log()
    at = read.column_names.index("seconds")
    below = read.set_column(at, "seconds", pa.array(np.where(np.arange(ROWS) == 7, -1.0, 2.0)))
    assert "amount 'dwell' is -1" in said(below)
    assert "in every row" in said(read.set_column(at, "seconds", pa.array(np.full(ROWS, 2.0))))
    for name, word in (("click", "first label"), ("buy", "in --labels"), ("a b", "letters")):
        assert word in said(read, name)


def test_reports_without_further_labels_are_as_before():
    assert labels.to_choose_by({"auc": 0.5}, {}) == {} and labels.headline(Labels()) == ()
    assert labels.common([{"slices": {}}, {"labels": {"a": {}}}]) == []
    assert labels.of_amount(np.zeros(0, np.float32), np.zeros(0))["n"] == 0
