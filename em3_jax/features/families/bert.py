"""BERT and RoBERTa."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.features.families.checks import ID, NUMBER, SIZE, Config, Where, activation, check_heads, one_of, value
from em3_jax.features.families.family import LEAVES, OLD_NAMES, Family
from em3_jax.models.encoders import bert


def build(config: Config, where: Where, pooler: bool, dtype: Any) -> bert.Bert:
    """The module of a config."""
    of = functools.partial(value, config, where)
    of("position_embedding_type", one_of("absolute"), "absolute")
    of("is_decoder", one_of(False), False)
    width, heads = of("hidden_size", SIZE), of("num_attention_heads", SIZE)
    check_heads(width, heads, where)
    return bert.Bert(
        vocab_size=of("vocab_size", SIZE),
        width=width,
        layers=of("num_hidden_layers", SIZE),
        heads=heads,
        mlp_width=of("intermediate_size", SIZE),
        max_positions=of("max_position_embeddings", SIZE),
        token_types=of("type_vocab_size", SIZE, 2),
        padding_id=of("pad_token_id", ID, 1) if config["model_type"] == "roberta" else None,
        pooler=pooler,
        norm_eps=of("layer_norm_eps", NUMBER, 1e-12),
        activation=activation(config, where, "gelu"),
        dtype=dtype,
    )


def _example(module: bert.Bert, config: Config) -> jax.Array:
    del module, config
    return jnp.zeros((1, 1), jnp.int32)


BERT = Family(
    modality="text",
    build=build,
    example=_example,
    names=(
        (r"^(word|token_type|position)_embedding/", r"embeddings.\1_embeddings/"),
        (r"^embedding_norm/", "embeddings.LayerNorm/"),
        (r"^layer(\d+)/", r"encoder.layer.\1."),
        (r"attention/out/", "attention.output.dense/"),
        (r"attention/", "attention.self."),
        (r"attention_norm/", "attention.output.LayerNorm/"),
        (r"mlp_in/", "intermediate.dense/"),
        (r"mlp_out/", "output.dense/"),
        (r"mlp_norm/", "output.LayerNorm/"),
        (r"^pooler/", "pooler.dense/"),
        *LEAVES,
    ),
    aliases=OLD_NAMES,
    ignorable=r"embeddings\.(position_ids|token_type_ids)|(cls|classifier|qa_outputs|lm_head)\..*",
)
