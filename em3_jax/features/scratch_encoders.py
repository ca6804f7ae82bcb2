"""Image encoders without a checkpoint, config.model.encoders.<feature set> = "cnn:<name>".

Their parameters are drawn from the seed. One that reads pictures takes them as
(pixel / 255 - 0.5) / 0.25, of any raw set of pictures: those of `em3 raw --image-size`, and those
of `em3 extract --raw`, whose own normalisation is that of their checkpoint. One that goes on where
another encoder has stopped reads what that has stored, standardised as all stored content is.

Letters: S items, M pictures of an item, n stored tokens, N tokens that come out, E width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import rng
from em3_jax.core.errors import UserError, nearest
from em3_jax.data.format import FeatureSet
from em3_jax.features.in_model import PLAINLY, Encoded, How, Pooled, RawEncoder, of_images
from em3_jax.models.encoders import PLAIN, STATISTICS, Given
from em3_jax.models.encoders.scratch import SCRATCH, Net

PREFIX = "cnn:"
CENTER, SPREAD = 0.5, 0.25
"""Of pixels from 0 to 1, where they are moved to 0 and 1: about those of photographs."""


def is_scratch(encoder: str) -> bool:
    """Whether this names an encoder from scratch, and not the place of a checkpoint."""
    return encoder.startswith(PREFIX)


def make(encoder: str, features: FeatureSet, how: How) -> RawEncoder:
    """The encoder that a feature set is read with.

    Raises:
      UserError: there is no such net, it does not read what the set holds, or it needs a category;
        or `how` has what it cannot do.
    """
    net = _net(encoder, features, how)
    module: Any = net.build(how.sizes, how.categories)
    shape, name = _shape(encoder, net, features), features.name
    if net.reads != "pictures" and how.augment != PLAINLY.augment:
        raise UserError(
            f"config.data.augment: '{name}' holds {net.reads} and no pictures, which alone can be cut; leave it out"
        )

    def run(params, x: jax.Array, given: Given) -> tuple[Pooled, Mapping[str, Any]]:
        x = x.astype(jnp.float32)
        if net.reads == "pictures":
            x = (x / 255 - CENTER) / SPREAD
        found, changed = module.apply({"params": params}, x, given, mutable=[STATISTICS])
        return (found.tokens.astype(jnp.float32), found.mask), changed.get(STATISTICS, {})

    made = of_images(name, _drawn(module, shape, name, how), module.parts(), run, shape, how)
    return made if net.reads != "maps" else made._replace(encode=_of_map(made.encode))


def _of_map(encode: Callable[..., Encoded]) -> Callable[..., Encoded]:
    """`encode` of stored maps [S, n, E], whose n places are those of one picture."""

    def of_places(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN) -> Encoded:
        whole = mask.any(axis=1, keepdims=True)
        return encode(params, content.reshape(len(content), 1, -1), whole, given)

    return of_places


def _drawn(module: nn.Module, shape: tuple[int, ...], name: str, how: How) -> dict:
    key = rng.stream(jax.random.key(how.seed), f"encoders/{name}", 0)
    given = Given(category=jnp.zeros(1, jnp.int32))
    variables = jax.jit(module.init)(key, jnp.zeros((1, *shape), jnp.float32), given)
    params: dict = jax.device_get(variables["params"])
    return jax.tree.map(np.asarray, params)


def _net(encoder: str, features: FeatureSet, how: How) -> Net:
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
    if net.knows_category and not how.categories:
        raise UserError(
            f"{where}: reads the item's category; set config.model.encoder_prior to an item field"
        )  # fmt: skip
    return net


def _shape(encoder: str, net: Net, features: FeatureSet) -> tuple[int, int, int]:
    """Of a row of what the module reads."""
    if net.reads == "pictures":
        rows, columns, channels = features.manifest["raw"]["shape"]
        return rows, columns, channels
    _, count, width = features.tokens.shape
    if net.reads == "vectors":
        return 1, 1, width
    side = math.isqrt(count)
    if side * side != count:
        raise UserError(
            f"config.model.encoders.{features.name}={encoder}: reads a square map of one picture, "
            f"and an item of '{features.name}' has {count} tokens; extract it with --pooling tokens "
            "--frames 1"
        )
    return side, side, width
