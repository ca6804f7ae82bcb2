"""Maxima whose gradient is one number, whatever the compiler does."""

import jax
import jax.numpy as jnp


def largest(x: jax.Array, axis: int, where: jax.Array | None = None, initial: float = -jnp.inf) -> jax.Array:
    """The maximum along an axis, whose gradient goes to the first place that has it.

    That of `jnp.max` goes where x equals the maximum, divided by how many places do. A compiler may
    compute x once more for that, in another order of its sums; then nothing is equal, and the
    gradient is 0 / 0.

    Args:
      x: [..] float.
      axis: along which.
      where: bool, broadcast to x; False = the place does not count, and has the value `initial`.
      initial: the result where no place counts; no more than what x may be.
    """
    x = x if where is None else jnp.where(where, x, initial)
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    chosen = place == jnp.argmax(x, axis=axis, keepdims=True)
    return jnp.where(chosen, x, 0).sum(axis=axis)
