"""Pictures cut and mirrored on the device, as a function of the seed, the step and the item alone.

So neither the order of a batch, nor a device, nor a process that began again makes any difference.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.config.schema.ranking import Augment
from em3_jax.core import rng


class Drawn(NamedTuple):
    """What random views of items' pictures are a function of.

    Attributes:
      key: the run's root key.
      step: [] i32.
      item: [S] i32 the items.
    """

    key: jax.Array
    step: jax.Array
    item: jax.Array


def view(pixels: jax.Array, settings: Augment, drawn: Drawn | None) -> jax.Array:
    """[S, M, c, c, 3] u8 of pixels [S, M, H, W, 3] u8: the centre, or random squares; c = `settings.crop`, 0 = whole.

    Args:
      pixels: M pictures of each item, each with a crop of its own.
      settings: of config.data.augment.
      drawn: None = nothing is random.
    """
    rows, columns = pixels.shape[2:4]
    side = (settings.crop or rows, settings.crop or columns)
    free = (rows - side[0], columns - side[1])
    if drawn is None:
        top, left = free[0] // 2, free[1] // 2
        return pixels[:, :, top : top + side[0], left : left + side[1]]
    if free == (0, 0) and not settings.mirror:
        return pixels
    key = rng.stream(drawn.key, "augment", drawn.step)
    slots = pixels.shape[1]

    def one(pixels: jax.Array, item: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, item), 3)
        top, left = (jax.random.randint(k, (slots,), 0, most + 1) for k, most in zip(keys[:2], free, strict=True))
        mirrored = jax.random.bernoulli(keys[2], 0.5, (slots,)) & settings.mirror

        def of_slot(picture: jax.Array, top: jax.Array, left: jax.Array, mirror: jax.Array) -> jax.Array:
            cut = jax.lax.dynamic_slice(picture, (top, left, 0), (*side, picture.shape[2]))
            return jnp.where(mirror, cut[:, ::-1], cut)

        return jax.vmap(of_slot)(pixels, top, left, mirrored)

    return jax.vmap(one)(pixels, drawn.item)
