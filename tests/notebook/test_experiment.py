"""Steps one by one are those of a run; what a model looks at is what its log and its derivatives say; its tree adds up."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import em3_jax as em3
from em3_jax import evaluate, train
from em3_jax.core import trees
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.training import step as steps
from em3_jax.training.run import Run
from tests.conftest import user_error
from tests.small_runs import records, small

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.filterwarnings("ignore:features .* random weights")]

STEPS, BATCH = 3, 128


@pytest.fixture(scope="module")
def settings(planted) -> dict:
    """Three steps without dropout, each of which is logged."""
    dropout = {"model__fusion_settings__dropout": 0.0, "model__backbone_settings__dropout": 0.0}
    epochs = STEPS * BATCH / len(planted.split_rows("train"))
    return small(planted, train__epochs=epochs, train__log_every=1, train__eval_every=STEPS, **dropout)


@pytest.fixture(scope="module")
def experiment(settings) -> em3.Experiment:
    return em3.Experiment(settings)


@pytest.fixture(scope="module")
def stepped(experiment) -> tuple:
    """(state after the steps, scalars of each)."""
    state, logged = experiment.init(), []
    for k in range(STEPS):
        state, scalars = experiment.train_step(state, experiment.batch(k))
        logged.append(jax.device_get(scalars))
    return state, logged


def test_steps_are_those_of_a_run_bit_for_bit(settings, experiment, stepped, tmp_path):
    train.train(settings, tmp_path)
    state, logged = stepped
    kept = trees.named_leaves(Run.open(tmp_path).state())
    mine = trees.named_leaves(state)
    assert kept.keys() == mine.keys()
    for name, leaf in mine.items():
        assert np.asarray(leaf).tobytes() == np.asarray(kept[name]).tobytes(), name
    lines = [line for line in records(tmp_path) if "train/loss" in line]
    assert [{name: line[f"train/{name}"] for name in logged[0]} for line in lines] == [
        {name: float(value) for name, value in scalars.items()} for scalars in logged
    ]
    for split in ("valid", "test"):
        found, expected = experiment.evaluate(state, split), evaluate.evaluate(tmp_path, split)["slices"]
        assert {name: set(of) <= set(expected[name]) for name, of in found.items()} == dict.fromkeys(expected, True)
        assert found["all"]["auc"] == expected["all"]["auc"]


def test_another_seed_draws_other_parameters(experiment):
    one, same, other = (trees.named_leaves(experiment.init(seed).params) for seed in (None, 0, 1))
    name = "model/backbone/item/kernel"
    assert np.array_equal(one[name], same[name]) and not np.array_equal(one[name], other[name])


def entropy(weights: np.ndarray) -> float:
    some = weights.sum(axis=1) > 0
    return float(-np.sum(weights * np.log(np.maximum(weights, 1e-30)), axis=1)[some].mean())


def test_attention_over_the_history_is_that_whose_entropy_is_logged(experiment, stepped):
    state, batch = experiment.init(), experiment.batch(0)
    looked = experiment.explain(state, batch)
    assert looked.history.keys() == {"id_attention", "content_attention"}
    for name, weights in looked.history.items():
        assert np.all((weights > 0) <= (looked.history_item >= 0))
        assert entropy(weights) == pytest.approx(float(stepped[1][0][f"{name}_entropy"]), rel=1e-5)
    logit = experiment.parts.program.predict(state, batch)
    np.testing.assert_allclose(looked.logit, logit, rtol=1e-5, atol=1e-6)
    host = experiment.parts.work.source[0]
    assert np.array_equal(looked.item, host["item_id"][host["item_position"]])
    shares, equal = looked.modalities["layer_0"], looked.equal["layer_0"]
    assert shares.keys() == equal.keys() == {"learnt queries", "image", "text"}
    for of in (shares, equal):
        np.testing.assert_allclose(sum(of.values()), 1.0, rtol=1e-5)
    without = ~np.asarray(experiment.parts.work.dataset.features("image").mask)[looked.item].any(axis=1)
    assert without.any() and not shares["image"][without].any() and shares["image"][~without].all()


def test_gradients_are_those_of_the_logit_by_tokens(experiment, stepped):
    """Against differences of the logit as all tokens grow by a little; and an example moves with its own items alone."""
    state, batch = stepped[0], experiment.batch(1)
    parts, example = experiment.parts, 5
    looked = experiment.explain(state, batch, example)
    task = parts.work.task

    def scaled(given, inputs):
        params, factor = given
        grown = {name: factor * one for name, one in inputs.tokens.items()}
        return task.predict(params, inputs._replace(tokens=grown)), inputs.tokens

    apply = steps.make_apply(task, scaled, parts.program.mesh, parts.work.shards)
    at = lambda factor: apply((state.params, jnp.float32(factor)), state.tables, {}, parts.work.constants, batch)  # noqa: E731
    (more, tokens), (less, _) = at(1.01), at(0.99)
    there = np.asarray(batch["item_mask"])
    along = sum(np.sum(np.asarray(tokens[name])[there] * of) for name, of in looked.gradients.items())
    assert along == pytest.approx((float(more[example]) - float(less[example])) / 0.02, rel=0.05)
    named = {looked.item[example], *looked.history_item[example]}
    moved = np.stack([abs(of).sum(axis=(1, 2)) > 0 for of in looked.gradients.values()]).any(axis=0)
    assert moved.any() and set(looked.token_item[moved]) <= named
    sums = experiment.explain(state, batch).gradients["image"]
    assert abs(sums).sum() > abs(looked.gradients["image"]).sum()
    assert "no example 128" in user_error(experiment.explain, state, batch, BATCH)


def test_the_tree_adds_up_and_names_what_modules_give(experiment):
    text = str(experiment)
    assert max(map(len, text.splitlines()[:-1])) <= 80
    counts = dict(re.findall(r"^(\w+) .*?([\d,]+)$", text, re.MULTILINE))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(of)) for name, of in experiment.init().params.items()}
    assert {name: int(counts[name].replace(",", "")) for name in sizes} == sizes
    assert re.search(r"fusion  FusionQFormer  queries \[2, 16\] -> \[S, 16\]", text)
    assert re.search(r"backbone  DIN -> \[B\]", text)
    assert f"B = {BATCH} examples" in text.splitlines()[-1]


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A planted dataset whose items have pixels and words."""
    return synthetic(tmp_path_factory.mktemp("data") / "raw", interactions=600, users=30, items=40, raw=True)


def test_lemur_is_looked_into_too(raw):
    overrides = {
        "data.root": raw.root, "data.batch_size": 16, "data.history_length": 6, "eval.batch_size": 16,
        "model.short_history": 4, "model.encoder.layers": 1, "model.ranking_weight": 0.0,
    }  # fmt: skip
    lemur = em3.Experiment(em3.load_config("lemur", overrides))
    state, batch = lemur.init(), lemur.batch(0)
    looked = lemur.explain(state, batch)
    np.testing.assert_allclose(looked.logit, lemur.parts.program.predict(state, batch), rtol=1e-5, atol=1e-5)
    shapes = {name: weights.shape for name, weights in looked.history.items()}
    assert shapes == {
        "content_attention": (16, 4), "id_attention": (16, 4), "decoder_layer0": (16, 6), "decoder_layer1": (16, 6)
    }  # fmt: skip
    for of in (looked.modalities["layer0"], looked.equal["layer0"]):
        assert of.keys() == {"class token", "raw_image", "raw_text"}
        np.testing.assert_allclose(sum(of.values()), 1.0, rtol=1e-5)
    state, scalars = lemur.train_step(state, batch)
    assert np.isfinite(float(scalars["sqdc_loss"]))
    text = str(lemur)
    assert "encoder  FieldEncoder -> [C, 64]" in text and "memory bank" in text


def test_behind_encoders_gradients_are_by_what_these_give(raw):
    overrides = {
        "data.root": raw.root, "data.batch_size": 16, "data.history_length": 6, "data.features": ["raw_image"],
        "model.content": "raw", "model.encoders.raw_image": "cnn:cnn", "model.cic.weight": 0.0,
    }  # fmt: skip
    pictures = em3.Experiment(em3.load_config("em3_synthetic", overrides))
    state, batch = pictures.init(), pictures.batch(0)
    looked = pictures.explain(state, batch)
    np.testing.assert_allclose(looked.logit, pictures.parts.program.predict(state, batch), rtol=1e-5, atol=1e-5)
    assert "encoder cnn:cnn of 'raw_image' is drawn by config.seed" in user_error(pictures.seeds, (0, 1))
    gradient = looked.gradients["raw_image"]
    assert gradient.ndim == 3 and len(gradient) == len(looked.token_item) and np.abs(gradient).sum() > 0


def test_what_does_not_fit_says_so_in_one_line(settings, experiment, planted):
    state = experiment.init()
    assert "no split 'tset'; did you mean 'test'?" in user_error(experiment.evaluate, state, "tset")
    assert "steps count from 0" in user_error(experiment.batch, -1)
    pretraining = em3.Experiment(em3.load_config("em3_synthetic:pretraining", {"data.root": planted.root}))
    fresh, batch = pretraining.init(), pretraining.batch(0)
    assert "task pretraining scores no split" in user_error(pretraining.evaluate, fresh)
    assert "task pretraining scores no single examples" in user_error(pretraining.explain, fresh, batch)
    assert "config.stream" in user_error(em3.Experiment, em3.load_config("online", {"data.root": planted.root}))
