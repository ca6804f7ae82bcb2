"""Fusion, or a layer of it, a few items at a time, when the items of a batch at once would not fit."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def as_type(tokens: dict[str, jax.Array], dtype: jnp.dtype = jnp.float32) -> dict[str, jax.Array]:
    """Tokens as fusion modules compute with them; they are stored, and gathered, in their own dtype."""
    return {name: x.astype(dtype) for name, x in tokens.items()}


def in_chunks(module: nn.Module, chunk: int, call: Callable[[nn.Module, Any], jax.Array], inputs: Any) -> jax.Array:
    """call(module, inputs) [S, ...], at most `chunk` items at once; 0 = all.

    Only the result is kept of a chunk: the backward pass computes it again. Peak memory is then that of one chunk. Items do not
    depend on each other, so the result is the same, but for the draw of dropout.

    Args:
      module: whose parameters `call` uses.
      inputs: tree of arrays [S, ...]; those with S = 1 are shared by all items.
    """
    leaves, structure = jax.tree.flatten(inputs)
    items = max(len(leaf) for leaf in leaves)
    count = -(-items // chunk) if chunk else 1
    if count == 1:
        return call(module, inputs)
    size, own = -(-items // count), [len(leaf) > 1 for leaf in leaves]

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, count * size - items)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, padding).reshape(count, size, *x.shape[1:])

    def body(module: nn.Module, carry: tuple, some: list[jax.Array]) -> tuple[tuple, jax.Array]:
        own_leaves = iter(some)
        of_chunk = [next(own_leaves) if is_own else leaf for leaf, is_own in zip(leaves, own, strict=True)]
        return carry, call(module, jax.tree.unflatten(structure, of_chunk))

    scan = nn.scan(
        nn.remat(body, prevent_cse=False), variable_broadcast="params", split_rngs={"params": False, "dropout": True}
    )
    _, out = scan(module, (), [split(leaf) for leaf, is_own in zip(leaves, own, strict=True) if is_own])
    return out.reshape(count * size, *out.shape[2:])[:items]
