"""One pass of an encoder for each distinct picture is one for each impression: the same loss, the same gradients."""

import jax
import numpy as np
import pytest

from em3_jax.tasks import Inputs
from tests.features.test_raw import build, make_config, world  # noqa: F401

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights")]
OF_ITEMS = ("item_id", "item_mask", "item_row", "item_is_known")


def config_of(world, length: int) -> dict:  # noqa: F811
    """DeepCTR's ranker, or with histories DICM's two queries; pixels in, encoders that train."""
    config = make_config(world.raw, {"image": world.folders["image"]}, data__features=("image",))
    config["optim"]["multipliers"] = ()
    config["data"] |= {"history_length": length, "placement": "host"}
    config["model"]["cic"]["weight"] = 0.0
    config["model"] |= {"backbone": "deepctr", "content_aggregator": "multi_query"}
    if not length:
        config["model"]["content_parts"] = ("item",)
        config["data"] |= {"order": "by_item", "items_per_batch": 4}
    return config


def one_each(batch: dict) -> dict:
    """The batch with an item for each candidate and for each slot of a history, in their order, pixels and all."""
    named = np.concatenate([batch["item_position"][:, None], batch["history_position"]], axis=1)
    place = np.arange(named.size, dtype=np.int32).reshape(named.shape)
    take = lambda tree: {name: array[named.ravel()] for name, array in tree.items()}  # noqa: E731
    moved = take({name: batch[name] for name in OF_ITEMS})
    moved |= {"tokens": take(batch["tokens"]), "tokens_mask": take(batch["tokens_mask"])}
    return batch | moved | {"item_position": place[:, 0], "history_position": place[:, 1:]}


@pytest.mark.parametrize("length", [0, 3])
def test_encoding_a_picture_once_is_encoding_it_for_each_impression(world, length):  # noqa: F811
    parts = build(config_of(world, length))
    state, task = jax.device_get(parts.program.init()), parts.work.task
    batch, random = parts.work.source[0], np.random.default_rng(0)
    assert "tokens" in batch
    rows = random.standard_normal((len(batch["row_id"]), 4)).astype(np.float32)

    def loss(params, rows, batch):
        inputs = Inputs(rows, batch["tokens"], batch["tokens_mask"], batch)
        return task.loss(params, inputs, jax.random.key(0), 0)[0]

    value_and_gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    with jax.default_matmul_precision("float32"):
        grouped = value_and_gradients(state.params, rows, batch)
        alone = value_and_gradients(state.params, rows, one_each(batch))
    impressions = len(batch["label"]) * (1 + length)
    assert batch["item_mask"].sum() < impressions / 4
    assert len(one_each(batch)["tokens"]["image"]) == impressions
    assert float(grouped[0]) == pytest.approx(float(alone[0]), abs=1e-5)
    of_encoder = grouped[1][0]["encoders"]["image"]
    assert sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(of_encoder)) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grouped[1], alone[1])
