"""Swin v1."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.core.errors import UserError
from em3_jax.features.families.checks import FLAG, NUMBER, SIDES, SIZE, SIZES, Config, Where, activation, sides, value
from em3_jax.features.families.family import LEAVES, OLD_NAMES, Family
from em3_jax.models.encoders import swin


def build(config: Config, where: Where, pooler: bool, dtype: Any) -> swin.Swin:
    """The module of a config."""
    del pooler  # Swin pools by the mean, without parameters.
    of = functools.partial(value, config, where)
    width, depths, heads = of("embed_dim", SIZE), of("depths", SIZES), of("num_heads", SIZES)
    if not depths or len(depths) != len(heads) or any(width * 2**i % h for i, h in enumerate(heads)):
        raise UserError(
            f"{where}: embed_dim {width}, depths {depths} and num_heads {heads} do not fit; mend one of them"
        )
    patch, image = sides(of("patch_size", SIDES, 4)), sides(of("image_size", SIDES, 224))
    absolute = of("use_absolute_embeddings", FLAG, False)
    return swin.Swin(
        width=width,
        depths=tuple(depths),
        heads=tuple(heads),
        window=of("window_size", SIZE),
        patch=patch,
        mlp_ratio=of("mlp_ratio", NUMBER, 4.0),
        qkv_bias=of("qkv_bias", FLAG, True),
        position_grid=(image[0] // patch[0], image[1] // patch[1]) if absolute else None,
        norm_eps=of("layer_norm_eps", NUMBER, 1e-5),
        activation=activation(config, where, "gelu"),
        dtype=dtype,
    )


def _example(module: swin.Swin, config: Config) -> jax.Array:
    rows, columns = module.position_grid or (1, 1)
    channels = value(config, "config.json", "num_channels", SIZE, 3)
    return jnp.zeros((1, rows * module.patch[0], columns * module.patch[1], channels))


SWIN = Family(
    modality="image",
    build=build,
    example=_example,
    names=(
        (r"^patch_embedding/", "embeddings.patch_embeddings.projection/"),
        (r"^patch_norm/", "embeddings.norm/"),
        (r"^position_embedding$", "embeddings.position_embeddings"),
        (r"^stage(\d+)_block(\d+)/", r"encoder.layers.\1.blocks.\2."),
        (r"^merge(\d+)/", r"encoder.layers.\1.downsample."),
        (r"^norm/", "layernorm/"),
        (r"attention/relative_position_bias$", "attention.self.relative_position_bias_table"),
        (r"attention/out/", "attention.output.dense/"),
        (r"attention/", "attention.self."),
        (r"attention_norm/", "layernorm_before/"),
        (r"mlp_in/", "intermediate.dense/"),
        (r"mlp_out/", "output.dense/"),
        (r"mlp_norm/", "layernorm_after/"),
        *LEAVES,
    ),
    aliases=(
        *OLD_NAMES,
        # transformers 5 renames in memory; a state dict that was saved by hand has its names.
        (r"attention\.q_proj\.", "attention.self.query."),
        (r"attention\.k_proj\.", "attention.self.key."),
        (r"attention\.v_proj\.", "attention.self.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"attention\.relative_position_bias\.", "attention.self."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ),
    ignorable=r".*relative_position_index|embeddings\.mask_token|(classifier|decoder|hidden_states_norms)\..*",
)
