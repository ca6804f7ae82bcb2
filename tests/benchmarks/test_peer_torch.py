"""benchmarks.peer_torch: the PyTorch step that ours is timed against is the same step, in both of its forms."""

import jax
import numpy as np
import pytest
import torch

from benchmarks.peer_model import Peer, arranged, tensors
from benchmarks.peer_torch import peer_of
from benchmarks.ranking import Trainer, planted_config
from configs import base
from em3_jax import losses, tasks
from em3_jax.config import parse
from em3_jax.config.schema.ranking import RankingSettings
from em3_jax.core import rng, trees
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.features.tokens import standardise
from em3_jax.tasks.ranking.task import ranking
from tests.training.test_step import make_params

SEED, NEGATIVES = 3, 8
KEY_BIAS = (
    "model/fusion/layer_0/attention/key/bias"  # softmax ignores it: its gradient is rounding, and Adam's step a coin
)


def resized(config):
    """The config at widths of which no two are alike."""
    config.seed = SEED
    config.model.backbone_settings.update({"hidden": (20, 12), "attention_hidden": 6})
    config.model.fusion_settings.update({"width": 16, "heads": 2, "ffn_width": 24, "queries": 3})
    config.model.cic.update({"negatives": NEGATIVES, "width": 10})
    return config


def draw_of_jax(batch, item_id: torch.Tensor, step):
    """The draw of the JAX step on `batch`, at step(), for a peer whose items are `item_id` [S], in whatever order."""

    def draw(counts: torch.Tensor) -> torch.Tensor:
        mask = np.array(batch["item_mask"]) & np.isin(batch["item_id"], item_id[counts])
        key = rng.stream(jax.random.key(SEED), "negatives", step())
        drawn = np.array(batch["item_id"])[losses.in_batch_negatives(mask, NEGATIVES, key)[0]]
        return (torch.from_numpy(drawn)[:, None] == item_id[counts]).int().argmax(dim=1)

    return draw


def assert_close(actual: torch.Tensor, expected: np.ndarray, tolerance: float, name: str):
    """As arrays, by their norm: single entries may be rounding alone."""
    norm = np.linalg.norm(expected)
    assert norm > 0 and np.linalg.norm(actual.detach().numpy() - expected) <= tolerance * norm, name


def test_loss_and_gradients_are_those_of_jax(tiny):
    """On data with every kind of field, empty histories and missing modalities; of both forms."""
    config = resized(base.ranking()).to_dict()
    config["model"]["cic"] |= {"weight": 0.7, "id_fields": ("item", "tags")}
    dataset, key = tiny.dataset, rng.numpy_key(0, "unknown", 0)
    options = {"history_length": 7, "unknown_alpha": 5.0, "unknown_floor": {}}
    builders = [BatchBuilder(dataset, distinct_items=distinct, **options) for distinct in (True, False)]
    examples = np.asarray(dataset.split_rows("train"))[50:79]
    batch, all_slots = (builder(examples, buckets=Buckets(64, 128), key=key) for builder in builders)
    sets = [dataset.features(name) for name in ("image", "text")]
    features = {s.name: (standardise(np.asarray(s.tokens), np.asarray(s.mask)), s.mask) for s in sets}
    table = np.random.default_rng(1).normal(0, 0.5, (dataset.fields.num_rows, 16)).astype(np.float32)
    table[0] = 0.0
    known = batch["row_id"] < len(table)
    table_rows = np.where(known[:, None], table[np.where(known, batch["row_id"], 0)], 0.0)
    task = ranking(dataset.fields, parse.section(RankingSettings, config["model"], "model"))
    params = make_params(task, table_rows, features, batch)

    def loss(params, rows):
        return task.loss(params, tasks.gathered(rows, features, batch), jax.random.key(SEED), 0)

    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).lower(params, table_rows)
    program = program.compile(
        {"xla_backend_optimization_level": 0}
    )  # LLVM's optimizer takes half of the time to compile
    (value, aux), gradients = program(params, table_rows)
    expected = trees.named_leaves(gradients[0])
    whole = np.sqrt(sum(np.linalg.norm(gradient) ** 2 for gradient in expected.values()))
    assert np.linalg.norm(expected[KEY_BIAS]) < 1e-6 * whole
    expected[KEY_BIAS] = np.zeros_like(expected[KEY_BIAS])

    for form in (tensors(batch, len(table)), tensors(all_slots, len(table))):
        peer = Peer(config, dataset.fields, trees.named_leaves(params), features)
        rows = torch.from_numpy(table_rows[known]).requires_grad_()
        out = peer.loss(rows, form, draw_of_jax(batch, form["item_id"], lambda: 0))
        out["loss"].backward()
        for name, number in (("loss", value), ("ranking_loss", aux["ranking_loss"]), ("cic_loss", aux["cic_loss"])):
            assert out[name].item() == pytest.approx(float(number), rel=1e-5), name
        assert_close(rows.grad, np.array(gradients[1])[known], 1e-4, "rows")
        for name, gradient in arranged(expected).items():
            assert_close(peer.params[name].grad, gradient, 1e-4, name)
    assert len(all_slots["item_id"]) == 29 * 8 > 2 * len(np.unique(all_slots["item_id"]))


def test_steps_are_those_of_jax(planted):
    """Parameters, ID table and accumulators after three steps, in which gradients are clipped and weights decay."""
    config = resized(planted_config(planted.root))
    config.data.batch_size, config.data.history_length = 24, 5
    config.optim.clip_norm, config.optim.weight_decay = 0.1, 1.0
    trainer = Trainer(config)
    before = jax.device_get((trainer.state.params, trainer.state.tables))
    steps, batch = [], jax.device_get(trainer.batch)
    items = tensors(batch, planted.fields.num_rows)["item_id"]
    peer = peer_of(trainer, config.to_dict(), draw=draw_of_jax(batch, items, lambda: len(steps)))
    for _ in range(3):
        ours, theirs = trainer(), peer()
        assert ours["gradient_norm"] > config.optim.clip_norm
        for name, value in theirs.items():
            assert value.item() == pytest.approx(float(ours[name]), rel=1e-4), (len(steps), name)
        steps.append(theirs)
    after = jax.device_get((trainer.state.params, trainer.state.tables))
    params, table = jax.tree.map(np.subtract, after, before)
    assert_close(peer.table - torch.tensor(before[1]["embedding"]), table["embedding"], 1e-4, "table")
    assert_close(peer.accumulator, table["slots"]["accumulator"], 1e-4, "accumulator")
    start = arranged(trees.named_leaves(before[0]))
    for name, moved in arranged(trees.named_leaves(params)).items():
        part = slice(len(moved) // 2, None) if name.endswith("key_value/bias") else ...  # not the keys', see KEY_BIAS
        assert_close((peer.peer.params[name].detach() - torch.from_numpy(start[name]))[part], moved[part], 1e-3, name)


def test_another_model_is_refused(planted):
    config = resized(planted_config(planted.root))
    config.model.backbone = "deepfm"
    with pytest.raises(AssertionError, match="backbone"):
        Peer(config.to_dict(), planted.fields, {}, {})
