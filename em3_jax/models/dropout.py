"""Dropout whose random numbers cost less than what they are multiplied with."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B)


class Dropout(nn.Module):
    """In training, each element is 0 with probability `rate`, else divided by 1 - rate (Srivastava et al. 2014).

    `nn.Dropout` draws every element by Threefry, which on CPUs was 40 % of a fusion module's time. Here an element's number is
    a hash of its index and of two words that Threefry draws: as independent of mesh and machine, and next to free.

    Attributes:
      rate: probability of a zero, in [0, 1].
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        # 24 bits, which f32 holds: so the share kept is 1 - rate to 1e-7.
        keep = (random_words(self.make_rng("dropout"), x.shape) >> 8) >= round(self.rate * 2**24)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0)


def random_words(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """u32 of `shape`, uniform: two rounds of a hash of the index (lowbias32, Wellons 2018), each after a word of the key.

    Indices count modulo 2^32: what is longer repeats itself.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):  # along axes, so that devices count their own part of a sharded array
        stride = math.prod(shape[axis + 1 :]) % 2**32
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    for word in jax.random.bits(key, (2,)):
        index = _mix(index ^ word)
    return index


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of u32 in which each input bit flips half of the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(_MULTIPLIERS[0])
    x = (x ^ (x >> 15)) * jnp.uint32(_MULTIPLIERS[1])
    return x ^ (x >> 16)
