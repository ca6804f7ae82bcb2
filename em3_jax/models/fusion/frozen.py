"""An item's vectors as they are, without a layer: pre-extracted ones, or what an encoder makes in the step."""

import flax.linen as nn
import jax
import jax.numpy as jnp

AS_THEY_ARE = "as_they_are"
"""Name of this fusion module among those of config.model.fusion, with a scale of 1."""


class Frozen(nn.Module):
    """[S, sum of E_m]: per modality the mean of its valid tokens, zeros without any; no parameters.

    Attributes:
      scale: of the result. Stored vectors come with variance 1 and leave with 0.01, the size at which a fusion
        module's output starts (`layers.join`).
    """

    scale: float = 0.1

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        parts = []
        for name in sorted(tokens):
            valid = mask[name][..., None]
            total = jnp.where(valid, tokens[name], 0.0).sum(axis=1)
            parts.append(self.scale * total / jnp.maximum(valid.sum(axis=1), 1))
        return jnp.concatenate(parts, axis=-1)
