"""Image encoders without a checkpoint, config.model.encoders.<feature set> = "cnn:<name>".

Their parameters are drawn from the seed. One that reads pictures takes them as
(pixel / 255 - 0.5) / 0.25, of any raw set of pictures: those of `em3 raw --image-size`, and those
of `em3 extract --raw`, whose own normalisation is that of their checkpoint. One that goes on where
another encoder has stopped reads what that has stored, standardised as all stored content is.

Letters: S items, M pictures of an item, n stored tokens, N tokens that come out, E width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import rng
from em3_jax.core.errors import UserError, nearest
from em3_jax.data.format import FeatureSet
from em3_jax.models.encoders import PLAIN, STATISTICS, Given
from em3_jax.models.encoders.scratch import SCRATCH, Net, Sizes

PREFIX = "cnn:"
CENTER, SPREAD = 0.5, 0.25
"""Of pixels from 0 to 1, where they are moved to 0 and 1: about those of photographs."""

Encode = Callable[..., tuple[jax.Array, jax.Array, Mapping[str, Any]]]
"""(params, content [S, M, pixels] u8 or [S, n, E], mask, given) -> (tokens [S, N, E], mask, ..)."""


class Scratch(NamedTuple):
    """What encoders from scratch are made of.

    Attributes:
      sizes: see `Sizes`.
      seed: of the parameters.
      categories: of an item, 0 = unknown among them; 0 = the items' category is not known.
    """

    sizes: Sizes = Sizes()
    seed: int = 0
    categories: int = 0


def is_scratch(encoder: str) -> bool:
    """Whether this names an encoder from scratch, and not the place of a checkpoint."""
    return encoder.startswith(PREFIX)


def make(encoder: str, features: FeatureSet, scratch: Scratch) -> tuple[dict, Encode]:
    """(parameters as numpy arrays, function) of the encoder that a feature set is read with.

    Raises:
      UserError: there is no such net, it does not read what the set holds, or it needs a category.
    """
    net = _net(encoder, features, scratch)
    module = net.build(scratch.sizes, scratch.categories)
    shape = _shape(encoder, net, features)

    def inputs(content: jax.Array, mask: jax.Array, given: Given) -> tuple[jax.Array, Given]:
        """What the module reads, a row a picture, or a row an item of stored tokens."""
        x = content.reshape(-1, *shape).astype(jnp.float32)
        if net.reads == "pictures":
            x = (x / 255 - CENTER) / SPREAD
        valid, category = mask.reshape(len(x), -1).any(axis=1), given.category
        if category is not None:
            category = jnp.repeat(category, len(x) // len(content))
        return x, given._replace(mask=valid, category=category)

    def encode(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN):
        images, given = inputs(content, mask, given)
        found, changed = module.apply({"params": params}, images, given, mutable=[STATISTICS])
        tokens = found.tokens.astype(jnp.float32).reshape(len(content), -1, found.tokens.shape[-1])
        valid = mask if tokens.shape[1] == mask.shape[1] else mask.any(axis=1, keepdims=True)
        return jnp.where(valid[..., None], tokens, 0.0), valid, changed.get(STATISTICS, {})

    return _drawn(module, shape, features.name, scratch), encode


def _drawn(module: nn.Module, shape: tuple[int, ...], name: str, scratch: Scratch) -> dict:
    key = rng.stream(jax.random.key(scratch.seed), f"encoders/{name}", 0)
    given = Given(category=jnp.zeros(1, jnp.int32))
    variables = jax.jit(module.init)(key, jnp.zeros((1, *shape), jnp.float32), given)
    params: dict = jax.device_get(variables["params"])
    return jax.tree.map(np.asarray, params)


def _net(encoder: str, features: FeatureSet, scratch: Scratch) -> Net:
    """The net that is named; refuses what it cannot read."""
    where, name = f"config.model.encoders.{features.name}={encoder}", encoder.removeprefix(PREFIX)
    if name not in SCRATCH:
        raise UserError(f"{where}: no such net; {nearest(name, SCRATCH)}")
    net, kind = SCRATCH[name], features.manifest.get("kind")
    if features.is_raw and kind != "image":
        raise UserError(
            f"{where}: '{features.name}' holds {kind}s, and {PREFIX}* read pictures; leave it out"
        )  # fmt: skip
    if net.reads == "pictures" and not features.is_raw:
        others = ", ".join(PREFIX + key for key, one in SCRATCH.items() if one.reads != "pictures")
        raise UserError(
            f"{where}: reads pictures, and '{features.name}' holds vectors; make pictures with "
            f"`em3 raw --image-size`, or take one of {others}"
        )
    if net.reads != "pictures" and features.is_raw:
        pooling = {"vectors": "pooler", "maps": "tokens"}[net.reads]
        raise UserError(
            f"{where}: reads the {net.reads} that an encoder has stored, and '{features.name}' "
            f"holds pictures; make them with `em3 extract --pooling {pooling}`"
        )
    if net.knows_category and not scratch.categories:
        raise UserError(
            f"{where}: reads the item's category; set config.model.encoder_prior to an item field"
        )  # fmt: skip
    return net


def _shape(encoder: str, net: Net, features: FeatureSet) -> tuple[int, ...]:
    """Of a row of what the module reads."""
    if net.reads == "pictures":
        return tuple(features.manifest["raw"]["shape"])
    _, count, width = features.tokens.shape
    if net.reads == "vectors":
        return count, width
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(
            f"config.model.encoders.{features.name}={encoder}: reads a square map of one picture, "
            f"and an item of '{features.name}' has {count} tokens; extract it with --pooling tokens "
            "--frames 1"
        )
    return side, side, width
