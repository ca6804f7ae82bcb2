"""Several labels on one model: towers and experts against their formulas, losses against plain ones, runs from end to end."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import special

from em3_jax import evaluate as evaluation
from em3_jax import losses, metrics, train
from em3_jax.config import parse, recipes
from em3_jax.data.format import NOT_PART
from em3_jax.data.readers import planted_labels
from em3_jax.data.readers.planted_world import make_world, random_of
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.evaluation import calibration
from em3_jax.predict.command import predict
from em3_jax.tasks.heads import NOT_OBSERVED, FurtherLabels
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.predict.test_predict import rows_of
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
B, LABELS = 32, ("buy", "like")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled") / "data"
    return synthetic(folder, interactions=4000, users=100, items=150, labels=True, amounts=True)


class WithoutHeads(nn.Module):
    """A backbone of one's own that knows of one label."""

    settings: "em3_jax.models.backbones.BackboneSettings"  # noqa: F821


def config_of(dataset, labels=LABELS, **changes):
    config = small_config(dataset, model__heads__labels=labels, model__heads__hidden=(8,), eval__batch_size=128)
    for key, value in changes.items():
        section = config.model.heads if hasattr(config.model.heads, key) else config.model
        setattr(section, key, value)
    return config


def random_batch(seed: int = 0) -> dict:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, (B, 2)).astype(np.float32)
    labels[random.random((B, 2)) < 0.3] = NOT_OBSERVED
    return {
        "label": jnp.asarray(random.integers(0, 2, B), jnp.float32), "further": jnp.asarray(labels),
        "weight": jnp.asarray((random.random(B) < 0.8).astype(np.float32) * random.random(B)),
    }  # fmt: skip


def test_the_planted_labels_are_what_they_say(labelled):
    click, buy, like = labelled.label("click"), labelled.label("buy"), labelled.label("like")
    np.testing.assert_array_equal(buy == NOT_PART, click == 0)
    assert 0.1 < buy[click == 1].mean() < 0.45 and 0.55 < (like != NOT_PART).mean() < 0.65


def test_the_planted_seconds_have_the_mean_that_they_say(labelled):
    click, dwell = labelled.label("click"), labelled.label("dwell")
    np.testing.assert_array_equal(np.isnan(dwell), click == 0)
    world = make_world(0, 100, 150, 6, 0.15, 0.1)
    rows = np.flatnonzero(click)
    user, item = (labelled.interactions[name][rows] for name in ("user", "item"))
    liked = np.sum(world.taste[user] * world.content[item], axis=1)
    length = random_of(0, "amounts").standard_normal(150, dtype=np.float32)
    expected = np.exp(planted_labels.DWELL * liked + planted_labels.LENGTH * length[item] + planted_labels.DWELL_BIAS)
    ratio = dwell[rows] / expected
    assert ratio.mean() == pytest.approx(1, abs=0.06) and ratio.var() == pytest.approx(
        1 / planted_labels.SHAPE, rel=0.25
    )
    assert abs(np.corrcoef(ratio, liked)[0, 1]) < 0.08


@pytest.mark.parametrize(
    "variant, kind, labels",
    [
        ("shared_bottom", "shared_bottom", LABELS),
        ("mmoe,learnt_weights", "mmoe", LABELS),
        ("ple,dwell", "ple", (*LABELS, "dwell")),
        ("esmm", "esmm", ("buy",)),
        ("dwell", "shared_bottom", ("dwell",)),
    ],
)
def test_the_recipe_has_a_variant_for_each_kind(labelled, variant, kind, labels):
    config = recipes.read(f"configs/several_labels.py:id_only,{variant}", {"data.root": str(labelled.root)})
    task = experiment.build(config).work.task
    assert config.model.heads.kind == kind and task.labels.names == labels
    assert task.labels.entire_space == (kind == "esmm") and config.model.heads.learn_weights == ("learnt" in variant)
    assert dict(task.labels.amounts) == ({"dwell": "tweedie"} if "dwell" in labels else {})


def test_without_further_labels_nothing_has_changed(planted):
    """The parameters of a single label have the names that they had, so older runs are read."""
    parts = experiment.build(small_config(planted))
    names = {
        "/".join(str(k.key) for k in path)
        for path, _ in jax.tree_util.tree_leaves_with_path(parts.program.shapes.params)
    }
    assert any(name.startswith("model/backbone/dnn/Dense_0") for name in names)
    assert not any("tower" in name or name.startswith("heads") for name in names)
    assert parts.program.predict_all is None and "further" not in parts.work.source[0]


@pytest.mark.parametrize(
    "kind, backbone",
    [("shared_bottom", "din"), ("mmoe", "deepfm"), ("ple", "wide_deep"), ("mmoe", "dcnv2"), ("ple", "deepctr")],
)
def test_every_kind_trains_every_head(labelled, kind, backbone):
    parts = experiment.build(config_of(labelled, kind=kind, backbone=backbone))
    state, program = parts.program.init(), parts.program
    batch = program.place(parts.work.source[0])
    logits = program.predict_all(state, batch)
    assert logits.shape == (len(batch["label"]), 3)
    np.testing.assert_array_equal(logits[:, 0], program.predict(state, batch))
    before = {name: np.asarray(leaf) for name, leaf in _leaves(state.params).items()}
    after, aux = program.train_step(state, parts.work.constants, batch)
    moved = {name for name, leaf in _leaves(after.params).items() if (np.asarray(leaf) != before[name]).any()}
    assert {name for name in before if "tower" in name and name.endswith("kernel")} <= moved
    assert {"buy_loss", "like_loss"} <= set(aux)


def _leaves(tree) -> dict:
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_batches_have_the_labels_of_their_rows(labelled):
    source = experiment.build(config_of(labelled)).work.source
    batch, rows = source.builder(np.arange(500), buckets=source.buckets), np.arange(500)
    for k, name in enumerate(LABELS):
        values = labelled.label(name)[rows].astype(np.float64)
        np.testing.assert_array_equal(batch["further"][:, k], np.where(values == NOT_PART, NOT_OBSERVED, values))


def test_mmoe_is_its_formula(labelled):
    """y_k = tower_k(sum_i softmax(W_k x)_i relu(expert_i(x))), with the parameters as they lie."""
    from em3_jax.models.backbones import BackboneSettings
    from em3_jax.models.heads import Heads, top

    class Alone(nn.Module):
        settings: BackboneSettings

        @nn.compact
        def __call__(self, x):
            return top(self.settings, x, False)

    settings = BackboneSettings((6, 5), 0.0, None, 0, 0, Heads(("buy",), "mmoe", 3, 1, (4,)))
    x = jax.random.normal(jax.random.key(0), (B, 7))
    (first, further), variables = Alone(settings).init_with_output(jax.random.key(1), x)
    params = jax.tree.map(np.asarray, variables["params"])

    def mlp(p, value):
        for k in range(len(p)):
            value = value @ p[f"Dense_{k}"]["kernel"] + p[f"Dense_{k}"]["bias"]
            value = np.maximum(value, 0) if k + 1 < len(p) else value
        return value

    experts = np.stack([np.maximum(mlp(params[f"expert_{k}"], np.asarray(x)), 0) for k in range(3)])
    for name, found in (("first", first), ("buy", further["further"][:, 0])):
        gate = special.softmax(np.asarray(x) @ params[f"gate_{name}"]["kernel"], axis=1)
        expected = mlp(params[f"tower_{name}"], np.einsum("bk,kbe->be", gate, experts))[:, 0]
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_losses_are_of_observed_rows_and_weighted():
    batch, random = random_batch(), np.random.default_rng(1)
    further = jnp.asarray(random.standard_normal((B, 2)), jnp.float32)
    task = FurtherLabels(LABELS, {"like": 0.25}, False, False)
    first = jnp.float32(0.7)
    total, logged = task.loss({}, first, jnp.zeros(B), {"further": further}, batch)
    expected = 0.7
    for k, factor in enumerate((1.0, 0.25)):
        kept = np.asarray(batch["further"][:, k]) != NOT_OBSERVED
        weight = np.asarray(batch["weight"])[kept]
        rows = metrics.losses_of_rows(np.asarray(batch["further"])[kept, k], np.asarray(further)[kept, k])
        expected += factor * float((weight * rows).sum() / weight.sum())
    assert float(total) == pytest.approx(expected, rel=1e-5) and set(logged) == {"buy_loss", "like_loss"}
    none = batch | {"further": jnp.full((B, 2), NOT_OBSERVED)}
    assert float(task.loss({}, first, jnp.zeros(B), {"further": further}, none)[0]) == pytest.approx(0.7)


def test_esmm_is_the_likelihood_of_both_over_all_rows():
    random = np.random.default_rng(2)
    click = random.integers(0, 2, B).astype(np.float32)
    buy = np.where(click == 1, random.integers(0, 2, B), NOT_OBSERVED).astype(np.float32)
    batch = {"label": jnp.asarray(click), "further": jnp.asarray(buy[:, None]), "weight": jnp.ones(B)}
    a, b = (jnp.asarray(4 * random.standard_normal(B), jnp.float32) for _ in range(2))
    task = FurtherLabels(("buy",), {}, False, True)
    total, _ = task.loss({}, jnp.float32(0.0), a, {"further": b[:, None]}, batch)
    p = special.expit(np.asarray(a, np.float64)) * special.expit(np.asarray(b, np.float64))
    both = np.where(buy == 1, click, 0)
    assert float(total) == pytest.approx(-np.mean(both * np.log(p) + (1 - both) * np.log1p(-p)), rel=1e-5)
    # A click whose conversion was not observed says nothing; large logits stay finite.
    first = int(np.argmax(click))
    hidden = batch | {"further": batch["further"].at[first, 0].set(NOT_OBSERVED)}
    value = lambda b: task.loss({}, jnp.float32(0.0), a, {"further": b[:, None]}, hidden)[0]  # noqa: E731
    assert float(jax.grad(value)(b)[first]) == 0.0
    assert np.isfinite(float(task.loss({}, jnp.float32(0.0), 80 * a, {"further": 80 * b[:, None]}, batch)[0]))


def test_learnt_weights_are_kendalls():
    batch = random_batch(3)
    task = FurtherLabels(LABELS, {}, True, False)
    further = jnp.ones((B, 2))
    params = {"log_variance": jnp.asarray([0.3, -0.2, 0.5])}
    total, logged = task.loss(params, jnp.float32(0.7), jnp.zeros(B), {"further": further}, batch)
    each = np.array([0.7, logged["buy_loss"], logged["like_loss"]])
    s = np.array([0.3, -0.2, 0.5])
    assert float(total) == pytest.approx(float(np.sum(np.exp(-s) * each + s / 2)), rel=1e-5)
    assert task.init()["log_variance"].shape == (3,)
    assert losses.binary_cross_entropy(jnp.zeros(1), jnp.zeros(1)) > 0


def test_a_run_learns_all_labels_reports_and_predicts_them(labelled, tmp_path):
    config = config_of(labelled, kind="mmoe", learn_weights=True)
    config.train.epochs = 2.0
    train.train(config, tmp_path / "run")
    report = evaluation.evaluate(tmp_path / "run", "test")
    assert set(report["labels"]) == set(LABELS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    of_labels = [line[f"train/{name}_loss"] for line in lines for name in LABELS if f"train/{name}_loss" in line]
    assert of_labels and all(0 < value < 2 for value in of_labels)
    rows = np.asarray(labelled.split_rows("test"))
    buy = labelled.label("buy")[rows]
    logits = np.load(tmp_path / "run" / "eval_test_logits_buy.npy")
    kept = buy != NOT_PART
    assert report["labels"]["buy"]["n"] == kept.sum()
    assert report["labels"]["buy"]["auc"] == pytest.approx(metrics.auc(buy[kept], logits[kept]))
    assert json.loads((tmp_path / "run" / "eval_test.json").read_text())["labels"] == report["labels"]
    pq.write_table(rows_of(labelled, "test"), tmp_path / "rows.parquet")
    predict(tmp_path / "run", tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet")
    np.testing.assert_allclose(
        found.column("probability_buy").to_numpy(), special.expit(logits.astype(np.float64)), atol=1e-6
    )
    assert {"probability", "probability_like", "logit"} <= set(found.column_names)


def test_esmm_reports_and_predicts_the_label_of_all_rows_and_given_a_click(labelled, tmp_path):
    config = config_of(labelled, labels=("buy",), kind="esmm", content="none")
    config.optim.multipliers, config.train.epochs = (), 1.0
    train.train(config, tmp_path / "run")
    report = evaluation.evaluate(tmp_path / "run", "test", calibrate="platt", kept_negatives=0.5)
    rows = np.asarray(labelled.split_rows("test"))
    click, buy = labelled.label("click")[rows], labelled.label("buy")[rows]
    assert report["labels"]["buy"]["n"] == len(rows) and report["labels"]["buy_given_click"]["n"] == click.sum()
    names = ("", "_buy_given_click", "_buy")
    folder = tmp_path / "run"
    first, given, of_both = (np.load(folder / f"eval_test_logits{name}.npy").astype(np.float64) for name in names)
    np.testing.assert_allclose(special.expit(of_both), special.expit(first) * special.expit(given), rtol=1e-5)
    assert report["labels"]["buy"]["auc"] == pytest.approx(metrics.auc((click == 1) & (buy == 1), of_both))
    pq.write_table(rows_of(labelled, "test"), tmp_path / "rows.parquet")
    predict(tmp_path / "run", tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    written = pq.read_table(tmp_path / "scores.parquet")
    found = {name: written.column(name).to_numpy() for name in written.column_names if name.startswith("prob")}
    kept = calibration.read(tmp_path / "run", report["step"])
    np.testing.assert_allclose(found["probability"], kept.first.probability(first))
    np.testing.assert_allclose(found["probability_buy"], found["probability"] * found["probability_buy_given_click"])
    np.testing.assert_allclose(found["probability_buy_given_click"], kept.of("buy_given_click").probability(given))
    assert (found["probability_buy"] < found["probability"]).all()


def test_contradictions_are_one_line(labelled, planted):
    def said(**changes) -> str:
        return user_error(lambda: experiment.build(parse.parse(config_of(labelled, **changes))))

    assert "no label 'sold'" in said(labels=("sold",))
    assert "'buy' is named twice" in said(labels=("buy", "buy"))
    assert "no such further label" in said(labels=("buy",), weights={"like": 1.0})
    assert "one further label" in said(kind="esmm")
    assert "din" in said(backbone="tests.models.test_heads:WithoutHeads")
    assert "no label 'buy'" in user_error(lambda: experiment.build(config_of(planted)))
