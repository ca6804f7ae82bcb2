"""The lower part of an image encoder, run once: what the part above it is to read is stored, and trains from there.

Maps are stored as the bits of float16 or float32 numbers, u16 or u32, for content that an encoder is yet to read are
integers everywhere. Letters: B pictures, H and W rows and columns of pixels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.core.errors import UserError, nearest
from em3_jax.data.format import NUMBERS_OF

BITS = {number: bits for bits, number in NUMBERS_OF.items()}
"""dtype of the numbers of a map -> that of the feature set they are stored in."""


def check(module: Any, below: str, folder: Path) -> None:
    """Refuses a part that the encoder does not have, or nothing lies below of."""
    known = [part.name for part in module.parts()[1:]] if hasattr(module, "first") else []
    if below not in known:
        hint = nearest(below, known) if known else "take ResNet, MobileNetV2, EfficientNet-Lite or a vision transformer"
        raise UserError(f"--below {below}: {folder} has no such part, or nothing of it lies below; {hint}")


def lower(module: Any, below: str, normalised: Callable[[jax.Array], jax.Array], dtype: str) -> Callable:
    """(params, pixels [B, H, W, 3] u8) -> (bits [B, 1, numbers of a map] u16 or u32, mask [B, 1] all True).

    Args:
      module: the encoder.
      below: name of the part whose input is wanted.
      normalised: pixels -> images as the encoder expects them.
      dtype: of the numbers.
    """
    cut = module.clone(last=below)

    def encode(params, pixels: jax.Array):
        found = cut.apply({"params": params}, normalised(pixels))
        found = found.astype(dtype).reshape(len(found), 1, -1)
        return jax.lax.bitcast_convert_type(found, BITS[dtype]), jnp.ones((len(found), 1), bool)

    return encode


def shape_of(module: Any, below: str, params: Any, images: jax.ShapeDtypeStruct) -> tuple[int, ...]:
    """The shape of a picture's map: [Y, X, C] of a convolutional net, [N, D] of a transformer."""
    cut = module.clone(last=below)
    return tuple(jax.eval_shape(lambda p, x: cut.apply({"params": p}, x), params, images).shape[1:])


def numbers(bits: jax.Array, dtype: str) -> jax.Array:
    """f32 numbers of bits."""
    return jax.lax.bitcast_convert_type(bits, dtype).astype(jnp.float32)


def upper(module: Any, params: Mapping[str, Any], below: str) -> tuple[Any, dict[str, Any]]:
    """(the encoder from that part on, which reads maps, and what of its parameters that takes)."""
    cut = module.clone(first=below)
    groups = {group for part in cut.parts() for group in part.groups}
    return cut, {name: leaf for name, leaf in params.items() if name in groups}
