"""Content tokens as every model reads them: standardised, unless an encoder has to read them first."""

import jax
import jax.numpy as jnp
import numpy as np


def is_raw(tokens: jax.Array | np.ndarray) -> bool:
    """Whether these are pixels or token ids, which an encoder has to read first."""
    return jnp.issubdtype(tokens.dtype, jnp.integer)


@jax.jit
def standardise(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Tokens [..., E] with mean 0 and variance 1 over E, zero where masked, in their own dtype; raw ones as they are.

    Encoders differ in scale by orders of magnitude. Without affine parameters this belongs to the data: tables on the
    device are standardised once, when they are placed there, and not in every step.
    """
    if is_raw(tokens):
        return tokens
    x = tokens.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    kept = jnp.finfo(tokens.dtype)
    # A compiler may leave out a rounding that is undone at once; tokens that come with the batch are to be those of tables.
    x = jax.lax.reduce_precision(x, kept.nexp, kept.nmant)
    return jnp.where(mask[..., None], x, 0.0).astype(tokens.dtype)
