"""Gathers whose gradients are summed in f32, whatever the activations are.

A row that many examples name gets the sum of all their gradients. XLA sums in the type of what
was gathered, and a bf16 sum stops growing at 256 times its addend: a row that 4,096 examples share
would get a sixteenth of what it should.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def rows(array: jax.Array, index: jax.Array) -> jax.Array:
    """[*, ...] the rows `index` [*] i32 of `array` [S, ...], in its dtype.

    The gradient is summed in f32 and rounded once. Of arrays of 32 bits or more it is `jnp.take`,
    bit for bit.
    """
    if array.dtype.itemsize >= 4:
        return _take(array, index)
    return _rounded_once(array, index, array.shape[0])  # open in an exported program


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(array, index, axis=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_once(array: jax.Array, index: jax.Array, length: Any) -> jax.Array:
    return _take(array, index)


def _forward(array, index, length):
    return _take(array, index), index


def _backward(length, index, gradient):
    wide = jax.ShapeDtypeStruct((length, *gradient.shape[index.ndim :]), jnp.float32)
    transpose = jax.linear_transpose(lambda array: _take(array, index), wide)
    (total,) = transpose(gradient.astype(jnp.float32))
    return total.astype(gradient.dtype), None


_rounded_once.defvjp(_forward, _backward)
