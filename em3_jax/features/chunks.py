"""An encoder a few of its inputs at a time, when all of a batch at once would not fit.

Letters: B inputs of all devices, n devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Run = Callable[..., tuple[Any, Mapping[str, Any]]]
"""(params, inputs [B, ..], [B] bool which count, [B, ..] or None) -> (tree of [B, ..], statistics)."""


def in_chunks(run: Run, chunk: int, devices: int, kept: str = "") -> Run:
    """`run`, at most `chunk` inputs of each device at once; 0 = all.

    Of a chunk only the result is kept, and the backward pass computes it again: memory is that of
    one chunk, and gradients are summed over chunks. Inputs do not depend on each other but through
    batch statistics, which are those of a chunk (ghost batch normalisation, Hoffer et al. 2017,
    arXiv:1705.08741); running statistics are the chunks' means, by how many inputs count in each.

    Args:
      devices: n, over which the first axis of inputs is cut.
      kept: what `jax.ad_checkpoint.checkpoint_name` calls the input of the first part that trains;
        it is kept, so that no frozen part runs again.
    """
    if not chunk:
        return run
    policy = jax.checkpoint_policies.save_only_these_names(kept) if kept else None

    def chunked(params: Any, *inputs: Any) -> tuple[Any, Mapping[str, Any]]:
        total = len(inputs[0])
        parts = devices if total % devices == 0 else 1
        own = total // parts
        count = -(-own // chunk)
        if count == 1:
            return run(params, *inputs)
        size = -(-own // count)

        def split(x: jax.Array) -> jax.Array:
            x = x.reshape(parts, own, *x.shape[1:])
            x = jnp.pad(x, [(0, 0), (0, count * size - own)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(parts, count, size, *x.shape[2:]), 1, 0).reshape(count, -1, *x.shape[2:])

        def join(x: jax.Array) -> jax.Array:
            x = jnp.moveaxis(x.reshape(count, parts, size, *x.shape[2:]), 0, 1)
            return x.reshape(parts, count * size, *x.shape[3:])[:, :own].reshape(total, *x.shape[3:])

        body = jax.checkpoint(lambda params, some: run(params, *some), prevent_cse=False, policy=policy)
        some = jax.tree.map(split, inputs)
        _, (found, statistics) = jax.lax.scan(lambda carry, one: (carry, body(params, one)), (), some)
        number = some[1].sum(axis=1).astype(jnp.float32)
        share = jnp.where(number.sum() > 0, number / jnp.maximum(number.sum(), 1.0), 1.0 / count)
        mean = lambda leaf: jnp.tensordot(share, leaf, 1)  # noqa: E731
        return jax.tree.map(join, found), jax.tree.map(mean, statistics)

    return chunked
