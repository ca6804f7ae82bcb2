"""Vision transformers: ViT, DINOv2, and the vision towers of CLIP and SigLIP."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.core.errors import UserError
from em3_jax.features.families.checks import (
    FLAG,
    ID,
    NUMBER,
    SIDES,
    SIZE,
    Config,
    Where,
    activation,
    check_heads,
    one_of,
    sides,
    value,
)
from em3_jax.features.families.family import LEAVES, OLD_NAMES, Family
from em3_jax.models.encoders import vit

_BLOCKS = ((r"mlp_in/", "mlp.fc1/"), (r"mlp_out/", "mlp.fc2/"))
_VIT_NAMES = (
    (r"^patch_embedding/", "embeddings.patch_embeddings.projection/"),
    (r"^position_embedding$", "embeddings.position_embeddings"),
    (r"^class_token$", "embeddings.cls_token"),
    (r"^registers$", "embeddings.register_tokens"),
    (r"^norm/", "layernorm/"),
    (r"^pooler/", "pooler.dense/"),
    (r"^layer(\d+)/", r"encoder.layer.\1."),
    (r"attention_(query|key|value)/", r"attention.attention.\1/"),
    (r"attention_out/", "attention.output.dense/"),
)


def _build_vit(config: Config, where: Where, pooler: bool, dtype: Any) -> vit.Vit:
    of = functools.partial(value, config, where)
    of("pooler_act", one_of("tanh"), "tanh")
    return vit.Vit(
        **_sizes(config, where, patch=16),
        mlp_width=of("intermediate_size", SIZE),
        qkv_bias=of("qkv_bias", FLAG, True),
        pooler="dense" if pooler else "",
        norm_eps=of("layer_norm_eps", NUMBER, 1e-12),
        activation=activation(config, where, "gelu"),
        dtype=dtype,
    )


def _build_dinov2(config: Config, where: Where, pooler: bool, dtype: Any) -> vit.Vit:
    del pooler  # the class token is what its checkpoints pool
    of = functools.partial(value, config, where)
    of("apply_layernorm", one_of(True), True)
    sizes, gated = _sizes(config, where, patch=14), of("use_swiglu_ffn", FLAG, False)
    hidden = int(sizes["width"] * of("mlp_ratio", NUMBER, 4))
    with_registers = config["model_type"] == "dinov2_with_registers"
    return vit.Vit(
        **sizes,
        mlp_width=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        registers=of("num_register_tokens", ID, 4) if with_registers else 0,
        antialias=with_registers,
        qkv_bias=of("qkv_bias", FLAG, True),
        layer_scale=True,
        gated=gated,
        pooler="class",
        norm_eps=of("layer_norm_eps", NUMBER, 1e-6),
        activation=activation(config, where, "gelu"),
        dtype=dtype,
    )


def _build_clip(config: Config, where: Where, pooler: bool, dtype: Any) -> vit.Vit:
    del pooler
    config = _tower(config, where)
    return vit.Vit(
        **_sizes(config, where, patch=32),
        mlp_width=value(config, where, "intermediate_size", SIZE),
        patch_bias=False,
        norm_before=True,
        norm_of="pooled",
        pooler="class",
        norm_eps=value(config, where, "layer_norm_eps", NUMBER, 1e-5),
        activation=activation(config, where, "quick_gelu"),
        dtype=dtype,
    )


def _build_siglip(config: Config, where: Where, pooler: bool, dtype: Any) -> vit.Vit:
    del pooler
    config = _tower(config, where)
    return vit.Vit(
        **_sizes(config, where, patch=16),
        mlp_width=value(config, where, "intermediate_size", SIZE),
        class_token=False,
        pooler="attention" if value(config, where, "vision_use_head", FLAG, True) else "",
        norm_eps=value(config, where, "layer_norm_eps", NUMBER, 1e-6),
        activation=activation(config, where, "gelu_pytorch_tanh"),
        dtype=dtype,
    )


# Of CLIP and SigLIP, whose configs may name none of them.
_TOWER_SIZES = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
}  # fmt: skip


def _tower(config: Config, where: Where) -> dict[str, Any]:
    """The config of the vision tower of a model that has a text tower too, or is one itself."""
    found = config.get("vision_config") if config["model_type"] in ("clip", "siglip") else config
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: has no vision_config; take the file from the checkpoint")
    return _TOWER_SIZES | dict(found)


def _sizes(config: Config, where: Where, patch: int) -> dict[str, Any]:
    """What all of them have; `patch` is what transformers assumes."""
    of = functools.partial(value, config, where)
    width, heads = of("hidden_size", SIZE), of("num_attention_heads", SIZE)
    check_heads(width, heads, where)
    cut, image = sides(of("patch_size", SIDES, patch)), sides(of("image_size", SIDES, 224))
    if image[0] < cut[0] or image[1] < cut[1]:
        raise UserError(f"{where}: image_size {image} holds no patch of {cut}; mend one of them")
    grid = (image[0] // cut[0], image[1] // cut[1])
    layers = of("num_hidden_layers", SIZE)
    return {"width": width, "layers": layers, "heads": heads, "patch": cut, "grid": grid}


def _example(module: vit.Vit, config: Config) -> jax.Array:
    channels = value(config.get("vision_config", config), "config.json", "num_channels", SIZE, 3)
    return jnp.zeros((1, *module.patch, channels))


VIT = Family(
    modality="image",
    build=_build_vit,
    example=_example,
    names=(
        *_VIT_NAMES,
        (r"attention_norm/", "layernorm_before/"),
        (r"mlp_norm/", "layernorm_after/"),
        (r"mlp_in/", "intermediate.dense/"),
        (r"mlp_out/", "output.dense/"),
        *LEAVES,
    ),
    aliases=OLD_NAMES,
    ignorable=r"embeddings\.mask_token|(classifier|decoder)\..*",
)

DINOV2 = Family(
    modality="image",
    build=_build_dinov2,
    example=_example,
    names=(
        *_VIT_NAMES,
        (r"attention_norm/", "norm1/"),
        (r"mlp_norm/", "norm2/"),
        (r"attention_scale$", "layer_scale1.lambda1"),
        (r"mlp_scale$", "layer_scale2.lambda1"),
        *_BLOCKS,
        *LEAVES,
    ),
    aliases=(*OLD_NAMES, (r"mlp\.weights_in\.", "mlp.fc1."), (r"mlp\.weights_out\.", "mlp.fc2.")),
    ignorable=r"embeddings\.mask_token|classifier\..*",
)

_TOWER_NAMES = (
    (r"^patch_embedding/", "embeddings.patch_embedding/"),
    (r"^position_embedding$", "embeddings.position_embedding.weight"),
    (r"^class_token$", "embeddings.class_embedding"),
    (r"^norm_before/", "pre_layrnorm/"),
    (r"^norm/", "post_layernorm/"),
    (r"^layer(\d+)/", r"encoder.layers.\1."),
    (r"attention_norm/", "layer_norm1/"),
    (r"\.mlp_norm/", ".layer_norm2/"),
    (r"attention_query/", "self_attn.q_proj/"),
    (r"attention_key/", "self_attn.k_proj/"),
    (r"attention_value/", "self_attn.v_proj/"),
    (r"attention_out/", "self_attn.out_proj/"),
    (r"^head/in/kernel$", "head.attention.in_proj_weight"),
    (r"^head/in/bias$", "head.attention.in_proj_bias"),
    (r"^head/out/", "head.attention.out_proj/"),
    (r"^head/norm/", "head.layernorm/"),
    (r"^head/", "head."),
    *_BLOCKS,
    *LEAVES,
)
_TOWER_ALIASES = ((r"^vision_model\.", ""),)
_OTHER_TOWER = r".*position_ids|(text_model|text_projection|visual_projection|classifier)\..*|logit_(scale|bias)"

CLIP = Family("image", _build_clip, _example, _TOWER_NAMES, _TOWER_ALIASES, _OTHER_TOWER)
SIGLIP = Family("image", _build_siglip, _example, _TOWER_NAMES, _TOWER_ALIASES, _OTHER_TOWER)
