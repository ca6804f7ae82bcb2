"""How the checkpoints of an architecture are written."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.features.families.checks import SIZE, Config, value

Renaming = tuple[str, str | Callable[[re.Match], str]]
"""(pattern, replacement), see `re.sub`."""
Encoder = nn.Module
"""Its call gives an `EncoderOutput`."""


class Family(NamedTuple):
    """How the checkpoints of an architecture are written.

    Attributes:
      modality: "image" or "text".
      build: (config, where it stands, pooler=, dtype=) -> module; `pooler` says whether the weights have
        one, which configs do not.
      example: (module, config) -> an input for `init`.
      names: (pattern, replacement) pairs; they turn the path of a parameter into its name in a file.
      aliases: the same; they turn other spellings of a name into that one.
      ignorable: matches the names of tensors that no encoder needs.
    """

    modality: str
    build: Callable[..., Any]
    example: Callable[[Any, Config], jax.Array]
    names: tuple[Renaming, ...]
    aliases: tuple[Renaming, ...]
    ignorable: str


LEAVES: tuple[Renaming, ...] = ((r"/(kernel|scale|embedding)$", ".weight"), (r"/bias$", ".bias"))
OLD_NAMES: tuple[Renaming, ...] = (
    (r"^(swin|bert|roberta|vit|dinov2|dinov2_with_registers)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)
NORMS: tuple[Renaming, ...] = ((r"/mean$", ".running_mean"), (r"/var$", ".running_var"))


def image_example(module: Any, config: Config) -> jax.Array:
    """[1, 32, 32, channels]: parameters do not depend on an image's size."""
    del module
    return jnp.zeros((1, 32, 32, value(config, "config.json", "num_channels", SIZE, 3)))
