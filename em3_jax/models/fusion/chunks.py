"""Fusion a few items at a time, when the items of a batch at once would not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def as_type(tokens: dict[str, jax.Array], dtype: jnp.dtype = jnp.float32) -> dict[str, jax.Array]:
    """Tokens as fusion modules compute with them; they are stored, and gathered, in their own dtype."""
    return {name: x.astype(dtype) for name, x in tokens.items()}


def in_chunks(
    fusion: nn.Module,
    chunk: int,
    tokens: dict[str, jax.Array],
    mask: dict[str, jax.Array],
    *,
    train: bool,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """fusion(tokens, mask) [S, D] in `dtype`, at most `chunk` items at once; 0 = all.

    Only the result is kept of a chunk: the backward pass computes it again. Peak memory is then that of one chunk. Items do not
    depend on each other, so the result is the same, but for the draw of dropout.
    """
    items = len(next(iter(mask.values())))
    count = -(-items // chunk) if chunk else 1
    if count == 1:
        return fusion(as_type(tokens, dtype), mask, train=train)
    size = -(-items // count)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, count * size - items)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])

    def body(fusion: nn.Module, carry: tuple, inputs: tuple) -> tuple[tuple, jax.Array]:
        tokens, mask = inputs
        return carry, fusion(as_type(tokens, dtype), mask, train=train)

    scan = nn.scan(
        nn.remat(body, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False, "dropout": True}
    )
    _, out = scan(fusion, (), jax.tree.map(split, (tokens, mask)))
    return out.reshape(count * size, -1)[:items]
