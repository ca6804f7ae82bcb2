"""Image encoders without a checkpoint, config.model.encoders.<feature set> = "cnn:<name>".

Their parameters are drawn from the seed. One that reads pictures takes them as
(pixel / 255 - 0.5) / 0.25, of any raw set of pictures: those of `em3 raw --image-size`, and those
of `em3 extract --raw`, whose own normalisation is that of their checkpoint. One that goes on where
another encoder has stopped reads what that has stored, standardised as all stored content is.

"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.config import parse
from em3_jax.config.schema import OnClicks
from em3_jax.core import rng
from em3_jax.core.errors import UserError, nearest
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.features.in_model import PLAINLY, How, Pooled, RawEncoder, of_images, of_stored
from em3_jax.features.prior import categories
from em3_jax.models.encoders import STATISTICS, Given
from em3_jax.models.encoders.scratch import SCRATCH, Net, Sizes

PREFIX = "cnn:"
CENTER, SPREAD = 0.5, 0.25
"""Of pixels from 0 to 1, where they are moved to 0 and 1: about those of photographs."""


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


def scratch(config: OnClicks, dataset: Dataset | None = None) -> Scratch:
    """What a config has encoders from scratch made of; without a dataset, without categories."""
    field = config.model.encoder_prior
    count = categories(dataset, field) if dataset is not None else 0
    return Scratch(Sizes(**parse.entries(config.model.cnn)), config.seed, count)


def module_of(encoder: str, scratch: Scratch) -> Any:
    """The module that "cnn:<name>" names; its call gives an `EncoderOutput`."""
    return SCRATCH[encoder.removeprefix(PREFIX)].build(scratch.sizes, scratch.categories)


def make(encoder: str, features: FeatureSet, scratch: Scratch, how: How = PLAINLY) -> RawEncoder:
    """The encoder that a feature set is read with.

    Args:
      how: it is run and trained.

    Raises:
      UserError: there is no such net, it does not read what the set holds, or it needs a category; or
        `how` has what it cannot do.
    """
    net = _net(encoder, features, scratch)
    module = module_of(encoder, scratch)
    shape: Any = _shape(encoder, net, features)
    params = _drawn(module, shape, features.name, scratch)

    def function(params, content: jax.Array, given: Given) -> tuple[Pooled, Mapping[str, Any]]:
        x = content.astype(jnp.float32)
        x = (x / 255 - CENTER) / SPREAD if net.reads == "pictures" else x
        found, changed = module.apply({"params": params}, x, given, mutable=[STATISTICS])
        return (found.tokens.astype(jnp.float32), found.mask), changed.get(STATISTICS, {})

    made = of_images if net.reads == "pictures" else of_stored
    return made(features.name, params, module.parts(), function, shape, how)


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
    if below := features.manifest.get("below"):  # bits of numbers, which are no pixels
        raise UserError(
            f"{where}: '{features.name}' holds what {below} of {features.manifest['encoder']} reads, "
            "and only that encoder goes on from there; name it"
        )
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
