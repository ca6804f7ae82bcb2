"""Pre-extracted vectors as they are: content that the ranker reads and nothing trains."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Frozen(nn.Module):
    """[S, sum of E_m]: per modality the mean of its valid tokens, zeros without any; no parameters.

    Vectors come with variance 1 and leave with 0.01, the size at which a fusion module's output starts (`layers.join`).
    """

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        parts = []
        for name in sorted(tokens):
            valid = mask[name][..., None]
            total = jnp.where(valid, tokens[name], 0.0).sum(axis=1)
            parts.append(0.1 * total / jnp.maximum(valid.sum(axis=1), 1))
        return jnp.concatenate(parts, axis=-1)
