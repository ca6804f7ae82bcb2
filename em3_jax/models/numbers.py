"""Embeddings of numbers: each becomes a vector as wide as a field's, which backbones read as one more field.

    standardised   W z + b, z = (x - mean) / std
    log            the same of sign(x) log(1 + |x|)
    piecewise      W PLE(x) + b: Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning,
                   NeurIPS 2022, eq. 1, with the edges of the number's ranges
    periodic       relu(W [sin(2 pi c z), cos(2 pi c z)] + b), c learnt: the same paper, section 3.3

Mean, standard deviation and edges are those of the training rows. A missing number is NaN; it is a
vector of its own, which is learnt where training has such rows, and else it is as the mean.

Letters: m numbers of a group, W ID width, P pieces, K frequencies.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import numbers as core
from em3_jax.core.numbers import Number, Numbers
from em3_jax.core.types import Batch

FARTHEST = 1e3
"""Inputs of the layers beyond are as far: a request may name a number that no training row came near."""


class NumberSettings(NamedTuple):
    """How numbers are embedded.

    Attributes:
      frequencies: K, of a periodic number.
      frequency_scale: sigma, the standard deviation of its frequencies at first.
    """

    frequencies: int = 16
    frequency_scale: float = 1.0


def standardised(x: jax.Array, number: Number) -> jax.Array:
    """[*] of x [*]: (x - mean) / std, of kind log that of sign(x) log(1 + |x|)."""
    fit = number.fit
    if number.kind == core.LOG:
        return (jnp.sign(x) * jnp.log1p(jnp.abs(x)) - fit.log_mean) / fit.log_std
    return (x - fit.mean) / fit.std


def piece_edges(number: Number) -> np.ndarray:
    """[P + 1] f32 ascending: the least number, the edges of its ranges, the largest; where all are one, a piece of 1."""
    fit = number.fit
    edges = np.unique(np.array([fit.low, *number.edges, fit.high]).astype(np.float32))
    edges = edges[(edges >= np.float32(fit.low)) & (edges <= np.float32(fit.high))]
    if len(edges) > 1:
        return edges
    only = edges[0]
    beyond = max(only + np.float32(1), np.nextafter(only, np.float32(np.inf)))  # 1 more than a large one is the same
    return np.array([only, beyond], np.float32)


def piecewise_linear(x: jax.Array, edges: np.ndarray) -> jax.Array:
    """[*, P] of x [*]: 1 for pieces below x, 0 for those above, and how far x is through its own (PLE, eq. 1).

    The first and the last piece go on beyond their ends.
    """
    part = (x[..., None] - edges[:-1]) / np.diff(edges)
    last = len(edges) - 2
    low = np.array([-FARTHEST if k == 0 else 0.0 for k in range(last + 1)], np.float32)
    high = np.array([FARTHEST if k == last else 1.0 for k in range(last + 1)], np.float32)
    return jnp.clip(part, low, high)


class NumberEmbedding(nn.Module):
    """The vector of a number.

    Attributes:
      number: which, and what is known of it.
      settings: how.
      width: W.
    """

    number: Number
    settings: NumberSettings
    width: int

    @nn.compact
    def __call__(self, x: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """[*, W] in `dtype`, of numbers x [*] f32, NaN = missing."""
        number, absent = self.number, jnp.isnan(x)
        at_mean = _at_mean(number)
        z = self._inputs(jnp.where(absent, at_mean, x)).astype(dtype)
        found = nn.Dense(self.width, name="linear")(z)
        found = nn.relu(found) if number.kind == core.PERIODIC else found
        if not number.missing:
            return found
        vector = self.param("missing", nn.initializers.zeros, (self.width,))
        return jnp.where(absent[..., None], vector.astype(dtype), found)

    def _inputs(self, x: jax.Array) -> jax.Array:
        """[*, inputs] f32 of the linear layer."""
        number, settings = self.number, self.settings
        if number.kind == core.PIECEWISE:
            return piecewise_linear(x, piece_edges(number))
        z = jnp.clip(standardised(x, number), -FARTHEST, FARTHEST)[..., None]
        if number.kind != core.PERIODIC:
            return z
        start = nn.initializers.normal(settings.frequency_scale)
        frequency = self.param("frequency", start, (settings.frequencies,)).astype(jnp.float32)
        angle = 2 * jnp.pi * frequency * z
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _at_mean(number: Number) -> float:
    """The number that stands at the mean, as the kind has it."""
    if number.kind != core.LOG:
        return number.fit.mean
    mean = number.fit.log_mean
    return float(np.sign(mean) * np.expm1(abs(mean)))


class EmbeddedNumbers(nn.Module):
    """The vectors of all numbers that a batch brings as values.

    Attributes:
      numbers: which.
      settings: how.
      width: W.
    """

    numbers: Numbers
    settings: NumberSettings
    width: int

    @nn.compact
    def __call__(self, batch: Batch, dtype: jnp.dtype) -> dict[str, jax.Array]:
        """Group with numbers -> [*, m, W]: of items [S, m, W], of users and contexts [B, m, W], of events [B, T, m, W]."""
        found = {}
        for group, numbers in self.numbers.groups():
            values = batch["history_number" if group == "event" else f"{group}_number"]
            vectors = [
                NumberEmbedding(number, self.settings, self.width, name=f"{group}_{number.name}")(values[..., k], dtype)
                for k, number in enumerate(numbers)
            ]
            found[group] = jnp.stack(vectors, axis=-2)
        return found
