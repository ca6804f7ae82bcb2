"""From content alone to a ranker on frozen vectors: pretraining, the export of vectors, and runs that read them."""

import jax
import numpy as np
import pytest

from configs import base
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import parse
from em3_jax.config.registry import fusion
from em3_jax.data import catalogue
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.export import vectors
from em3_jax.training import experiment
from em3_jax.training.checkpoint import Checkpoints
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A dataset that these tests may add features to."""
    return synthetic(tmp_path_factory.mktemp("data") / "own", interactions=2000, users=60, items=400, seed=2)


def pretraining_config(dataset, **overrides):
    config = base.pretraining(small_config(dataset, **overrides))
    config.data.batch_size = 64
    config.train.epochs = 30.0
    return config


@pytest.fixture(scope="module")
def pretrained(own, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "pe"
    train.train(pretraining_config(own).to_dict(), directory)
    return directory


def contrast_in_numpy(module, params, tokens, masks) -> float:
    """Mean over modalities of InfoNCE between each modality's view and the others', in both directions."""
    losses = []
    for alone in sorted(tokens):
        views, valid = [], np.ones(len(next(iter(masks.values()))), bool)
        for side in (True, False):
            kept = {name: mask & ((name == alone) == side) for name, mask in masks.items()}
            views.append(np.asarray(module.apply({"params": params}, tokens, kept, train=False), np.float64))
            valid = valid & np.stack([mask.any(axis=1) for mask in kept.values()]).any(axis=0)
        left, right = (view[valid] / np.linalg.norm(view[valid], axis=1, keepdims=True) for view in views)
        logits = left @ right.T / 0.1
        losses += [np.mean(np.log(np.exp(matrix).sum(axis=1)) - np.diag(matrix)) for matrix in (logits, logits.T)]
    return float(np.mean(losses))


def test_the_loss_is_the_contrast_of_views(own):
    config = pretraining_config(own)
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    assert state.tables == {}
    _, held_out = catalogue.hold_out(own.num_items, 0.1)
    tables = {name: [np.asarray(x)[held_out] for x in table] for name, table in parts.work.constants.items()}
    tokens = {name: table[0].astype(np.float32) for name, table in tables.items()}
    masks = {name: table[1] for name, table in tables.items()}
    module = fusion(config.model.fusion, parse.parse(config).model.fusion_settings)
    expected = contrast_in_numpy(module, state.params["model"]["fusion"], tokens, masks)
    assert parts.validate(state)["contrast_loss"] == pytest.approx(expected, rel=1e-4)


def test_pretraining_learns_what_held_out_items_look_like(own, pretrained):
    config = pretraining_config(own)
    parts = experiment.build(config.to_dict())
    before = parts.validate(parts.program.init())
    trained, _ = Checkpoints(pretrained).restore(jax.eval_shape(parts.program.init))
    after = parts.validate(trained)
    assert after["contrast_loss"] < before["contrast_loss"] - 0.2
    assert after["contrast_accuracy"] > before["contrast_accuracy"] + 0.05
    assert "no clicks to score" in user_error(evaluation.evaluate, pretrained, "test")


def test_held_out_items_never_train_and_each_epoch_shows_the_others_once(own):
    train_items, held_out = catalogue.hold_out(own.num_items, 0.1)
    assert len(held_out) == 40 and sorted([*train_items, *held_out]) == list(range(own.num_items))
    source = catalogue.CatalogueSource(train_items, 36, 0, ())
    epochs = [np.concatenate([source[k]["item_id"] for k in range(start, start + 10)]) for start in (0, 10)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), train_items)
    assert (epochs[0] != epochs[1]).any()


def test_a_batch_across_two_epochs_counts_an_item_once(own):
    """So that no item is a negative of itself, which the contrast of its views would be wrong about."""
    train_items, _ = catalogue.hold_out(own.num_items, 0.1)
    source, repeats = catalogue.CatalogueSource(train_items, 250, 0, ()), 0
    for step in range(12):
        batch = source[step]
        counted = batch["item_id"][batch["item_mask"]]
        assert len(set(counted)) == len(counted) and set(counted) == set(batch["item_id"])
        repeats += len(batch["item_id"]) - len(counted)
    assert repeats > 50


def test_with_one_modality_views_differ_by_dropout(own, tmp_path):
    config = pretraining_config(own)
    config.data.features, config.model.fusion_settings.dropout = ("text",), 0.0
    build = lambda: experiment.build(config.to_dict())  # noqa: E731
    assert "dropout" in user_error(lambda: build().program.init())
    config.model.fusion_settings.dropout = 0.2
    parts = build()
    state = parts.program.init()
    first = float(parts.program.train_step(state, parts.work.constants, parts.work.source[0])[1]["contrast_loss"])
    assert 0 < first < np.log(64)
    state = parts.program.init()
    assert parts.validate(state) == parts.validate(state)


def test_vectors_of_a_run_are_a_feature_set_that_a_ranker_reads_frozen(own, pretrained, tmp_path):
    folder = vectors.export_vectors(pretrained, "pe")
    dataset = open_dataset(own.root)
    features = dataset.features("pe")
    parts = experiment.build(pretraining_config(own).to_dict())
    state, _ = Checkpoints(pretrained).restore(jax.eval_shape(parts.program.init))
    batch = {"item_id": np.array([3, 250], np.int32), "item_mask": np.ones(2, bool)}
    np.testing.assert_allclose(features.tokens[[3, 250], 0], parts.program.embed(state, batch), rtol=1e-4, atol=1e-5)
    without = ~np.stack([own.features(name).mask.any(axis=1) for name in ("image", "text")]).any(axis=0)
    np.testing.assert_array_equal(features.mask[:, 0], ~without)
    assert "modality name in use" in user_error(vectors.export_vectors, pretrained, "pe")
    assert folder == vectors.export_vectors(pretrained, "pe", overwrite=True)

    config = small_config(own)
    config.model.content = "pre_extracted"
    config.data.features = ("pe",)
    ranker = experiment.build(config.to_dict())
    assert not any("fusion" in name for name in ranker.program.frozen)
    train.train(config.to_dict(), tmp_path / "ranker")
    assert evaluation.evaluate(tmp_path / "ranker", "test")["slices"]["all"]["auc"] > 0.5


def test_vectors_of_a_ranking_run_are_those_that_it_ranks_with(own, tmp_path):
    config = small_config(own, data__placement="host")
    train.train(config.to_dict(), tmp_path / "run")
    vectors.export_vectors(tmp_path / "run", "e2e")
    parts = experiment.build(config.to_dict())
    state, _ = Checkpoints(tmp_path / "run").restore(jax.eval_shape(parts.program.init))
    batch = parts.work.source[0]
    used = open_dataset(own.root).features("e2e").tokens[batch["item_id"], 0]
    np.testing.assert_allclose(used, parts.program.embed(state, batch), rtol=1e-4, atol=1e-5)


def test_a_run_on_ids_has_no_vectors(own, tmp_path):
    config = base.id_only(small_config(own))
    train.train(config.to_dict(), tmp_path / "ids")
    assert "no content embeddings" in user_error(vectors.export_vectors, tmp_path / "ids", "x")
