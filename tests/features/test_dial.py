"""How much of an encoder trains: the rules that each position of the dial stands for, on every family of encoders."""

import jax
import numpy as np
import pytest

from em3_jax.core import trees
from em3_jax.features import convert, dial
from em3_jax.models import lora
from tests.conftest import user_error

_VIT = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
_BERT = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "max_position_embeddings": 8}
CONFIGS = {
    "efficientnet_lite": {"variant": 0},
    "mobilenet_v2": {"depth_multiplier": 0.35},
    "resnet": {"embedding_size": 4, "hidden_sizes": [8, 8], "depths": [1, 2]},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 2],
        "num_heads": [2, 2],
        "window_size": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "vit": {**_VIT, "intermediate_size": 16, "patch_size": 16},
    "dinov2": {**_VIT, "mlp_ratio": 2, "patch_size": 14},
    "bert": {**_BERT, "num_hidden_layers": 3, "intermediate_size": 12},
}


def encoder(kind: str) -> tuple:
    """(parts, shapes of the parameters) of a small encoder."""
    config = CONFIGS[kind] | {"model_type": kind}
    module = convert.encoder_from_config(config)
    example = convert._family(config, "").example(module, config)
    return module.parts(), jax.eval_shape(module.init, jax.random.key(0), example)["params"]


def trained(kind: str, trains: str, multipliers: tuple = ()) -> dict[str, float]:
    """Parameter -> factor of those that train."""
    parts, shapes = encoder(kind)
    rules = (*dial.rules("image", trains, parts, trees.named_leaves(shapes), multipliers), *multipliers)
    found = {name: trees.first_match(f"encoders/image/{name}", rules) for name in trees.named_leaves(shapes)}
    return {name: factor for name, factor in found.items() if factor}


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_belongs_to_one_part_and_parts_are_in_order(kind):
    parts, shapes = encoder(kind)
    groups = [group for part in parts for group in part.groups]
    assert set(shapes) <= set(groups) and len(groups) == len(set(groups))
    blocks = [part.is_block for part in parts]
    first, last = blocks.index(True), len(blocks) - 1 - blocks[::-1].index(True)
    assert first > 0 and all(blocks[first : last + 1])
    assert not trained(kind, "none") and not trained(kind, "adapters")
    assert trained(kind, "all").keys() == trees.named_leaves(shapes).keys()
    sizes = [len(trained(kind, trains)) for trains in ("head", "last 1", "last 2", "all")]
    assert 0 < sizes[0] <= sizes[1] < sizes[2] < sizes[3]


def test_the_head_and_the_last_blocks_of_efficientnet_lite():
    assert {name.split("/")[0] for name in trained("efficientnet_lite", "head")} == {"head"}
    found = {name.split("/")[0] for name in trained("efficientnet_lite", "last 1")}
    assert found == {"head", "block15_expand", "block15_depthwise", "block15_project"}
    found = {name.split("/")[0] for name in trained("efficientnet_lite", "last 16")}
    assert "block0_project" in found and "stem" not in found


def test_what_trains_has_the_factor_that_multipliers_give_it():
    """One of 0 is what the dial is for; others stay, first match first."""
    multipliers = (("norm/", 0.5), ("^encoders/", 0.0), ("encoders/(image|text)/", 0.1), ("^model/", 3.0))
    found = trained("resnet", "last 1", multipliers)
    assert {name.split("/")[1]: factor for name, factor in found.items()} == {"norm": 0.5, "conv": 0.1}
    assert set(trained("resnet", "all", (("^encoders/", 0.0),)).values()) == {1.0}


def test_unknown_positions_are_refused_with_those_known():
    parts, shapes = encoder("efficientnet_lite")
    for wrong in ("some", "last 17", "last 0", "last", "last two", "Head", "last 1 "):
        message = user_error(dial.rules, "image", wrong, parts, trees.named_leaves(shapes), ())
        assert f"config.model.encoder_trains.image='{wrong}': give none, head, last K" in message
        assert "from 1 to 16" in message and "adapters or all" in message


def test_fresh_adapters_change_nothing_and_others_what_a_product_does():
    shapes = encoder("resnet")[1]
    params = jax.tree.map(lambda leaf: np.random.default_rng(0).standard_normal(leaf.shape).astype(np.float32), shapes)
    adapters = lora.fresh(jax.random.key(0), params, 3)
    jax.tree.map(np.testing.assert_array_equal, lora.adapted(params, adapters), params)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    kernel, own = params["stem"]["conv"]["kernel"], adapters["stem"]["conv"]
    expected = kernel + np.einsum("ir,ro->io", own["lora_a"], own["lora_b"]).reshape(kernel.shape)
    found = lora.adapted(params, adapters)
    np.testing.assert_allclose(found["stem"]["conv"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert found["stem"]["norm"]["scale"] is params["stem"]["norm"]["scale"]


def test_adapters_are_beside_every_kernel_but_depthwise_ones():
    shapes = encoder("mobilenet_v2")[1]
    names = trees.named_leaves(
        jax.eval_shape(lambda key, params: lora.fresh(key, params, 3), jax.random.key(0), shapes)
    )
    assert "block1_depthwise/conv/lora_a" not in names
    assert names["block1_expand/conv/lora_a"].shape == (shapes["block1_expand"]["conv"]["kernel"].shape[2], 3)
    assert names["stem/conv/lora_a"].shape == (27, 3)
    assert "layer2/mlp_in/lora_b" in trees.named_leaves(lora.fresh(jax.random.key(0), encoder("bert")[1], 1))
