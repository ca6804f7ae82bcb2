"""Gates of convolutional maps: how much channels and places count, given the item's category.

`ChannelGate` on the mean alone is squeeze-and-excitation (SE: Hu et al. 2018, arXiv:1709.01507, eq.
2 and 3). On mean and maximum, with `SpatialGate` after it, it is CBAM (Woo et al. 2018,
arXiv:1807.06521, eq. 2 and 3). With a category they are CSCNN's (Liu et al. 2020, arXiv:2006.10337,
section 3): its channel and its spatial attention read the map and an embedding of the category. Of
the paper what could be read here says no more, so this is our reading of it: the embedding is
appended to each pooled vector before the MLP that they share, and a linear layer makes of it a
third map for the spatial convolution, beside the mean and the maximum over the channels.
`ChannelGate` on the mean and the category alone is HCCM's (Chen et al. 2022, arXiv:2205.02711: the
category's tensor is concatenated to the squeezed maps).

Published gates are sigmoid(score). Here they are twice that, and the last layer of each starts at
zero: a fresh gate is 1, and a net with gates is the one without, exactly. The factor changes no
function that a net can learn.

Letters: B batch, Y and X rows and columns, C channels, W width of a category's embedding.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core.maxima import largest

WINDOW = 7
"""Rows and columns of the window of the spatial gate, as in CBAM."""

GRID = 7
"""Rows and columns of a category's map, which is resized: parameters know no image size."""

_zeros = nn.initializers.zeros


class ChannelGate(nn.Module):
    """Factors of the channels, 2 sigmoid(sum over the pooled vectors p of MLP([p, category])).

    Attributes:
      reduction: channels of the map / hidden width of the MLP, which has ReLU.
      with_max: whether the maximum over the places is pooled, beside their mean.
      dtype: of the activations; parameters are float32.
    """

    reduction: int
    with_max: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, category: jax.Array | None = None) -> jax.Array:
        """[B, 1, 1, C] in `dtype`.

        Args:
          x: [B, Y, X, C].
          category: [B, W] embeddings of the categories; None = it knows none.
        """
        channels, dtype = x.shape[-1], self.dtype
        hidden = nn.Dense(max(channels // self.reduction, 1), dtype=dtype, name="hidden")
        out = nn.Dense(channels, kernel_init=_zeros, dtype=dtype, name="out")
        places = x.reshape(len(x), -1, channels)
        pooled = [places.mean(axis=1), *([largest(places, 1)] if self.with_max else [])]
        beside = [] if category is None else [category.astype(dtype)]
        inputs = [jnp.concatenate([one, *beside], axis=1) for one in pooled]
        score = sum(out(nn.relu(hidden(one))) for one in inputs)
        return 2 * nn.sigmoid(score)[:, None, None]


class SpatialGate(nn.Module):
    """Factors of the places, 2 sigmoid(convolution of [mean, maximum, map of the category]).

    Attributes:
      dtype: of the activations; parameters are float32.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, category: jax.Array | None = None) -> jax.Array:
        """[B, Y, X, 1] in `dtype`.

        Args:
          x: [B, Y, X, C], over whose channels mean and maximum are.
          category: [B, W] embeddings of the categories; None = it knows none.
        """
        maps = [x.mean(axis=-1, keepdims=True), largest(x, 3)[..., None]]
        if category is not None:
            prior = nn.Dense(GRID * GRID, dtype=self.dtype, name="prior")(category)
            prior = prior.reshape(-1, GRID, GRID, 1)
            maps.append(jax.image.resize(prior, maps[0].shape, "linear"))
        conv = nn.Conv(
            1, (WINDOW, WINDOW), kernel_init=_zeros, dtype=self.dtype, name="conv"
        )  # fmt: skip
        return 2 * nn.sigmoid(conv(jnp.concatenate(maps, axis=-1)))
