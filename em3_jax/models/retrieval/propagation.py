"""Products with sparse matrices, and what graph convolutions make of them.

On a CPU a product gathers the senders' rows and sums them by receiver: over sorted segments, or, where receivers have many
entries, first W at a time in registers (padded neighbours), which writes E / W rows instead of E. Elsewhere always sorted
segments, which XLA lowers to a scatter-add. Measured by benchmarks/retrieval.py.
"""

import functools

import jax
import jax.numpy as jnp

from em3_jax.models.retrieval import Adjacency

_GROUP = 8  # W
_DENSE = 6  # entries per node from which groups win


def propagate(adjacency: Adjacency, x: jax.Array, *, symmetric: bool = False) -> jax.Array:
    """[N, D] the product A x, differentiable in x and in the weights.

    Args:
      adjacency: A.
      x: [N, D] f32.
      symmetric: A equals its transpose, so the backward pass is the same product. Otherwise it scatters to the senders.
    """
    return _propagate(symmetric, adjacency.receiver, adjacency.sender, adjacency.weight, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _propagate(symmetric, receiver, sender, weight, x):
    return _product(receiver, sender, weight, x)


def _forward(symmetric, receiver, sender, weight, x):
    return _product(receiver, sender, weight, x), (receiver, sender, weight, x)


def _backward(symmetric, saved, gradient):
    receiver, sender, weight, x = saved
    if symmetric:
        of_x = _product(receiver, sender, weight, gradient)
    else:
        of_x = jnp.zeros_like(x).at[sender].add(weight[:, None] * gradient[receiver])
    of_weight = jnp.sum(gradient[receiver] * x[sender], axis=1)  # dropped by XLA where nobody asks for it
    return None, None, of_weight, of_x


_propagate.defvjp(_forward, _backward)


def _product(receiver, sender, weight, x):
    if len(receiver) < _DENSE * len(x):
        return segments(receiver, sender, weight, x)
    return jax.lax.platform_dependent(receiver, sender, weight, x, cpu=groups, default=segments)


def segments(receiver: jax.Array, sender: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
    """A x as a sum over the sorted segments of equal receivers."""
    rows = weight[:, None] * x[sender]  # [E, D]
    return jax.ops.segment_sum(rows, receiver, len(x), indices_are_sorted=True)


def groups(receiver: jax.Array, sender: jax.Array, weight: jax.Array, x: jax.Array) -> jax.Array:
    """A x with the entries of each receiver in groups of W, the last one padded: sums over the group, then over the groups.

    There are at most N + E / W groups; what is left over sums padding into a row that is cut off.
    """
    nodes, count = len(x), len(x) + len(receiver) // _GROUP
    degree = jnp.zeros(nodes, jnp.int32).at[receiver].add(1, indices_are_sorted=True)
    stop, last = jnp.cumsum(degree), jnp.cumsum(-(-degree // _GROUP))  # ends of each node's entries, and of its groups
    group = jnp.arange(count, dtype=jnp.int32)
    node = jnp.cumsum(jnp.zeros(count, jnp.int32).at[last].add(1, mode="drop", indices_are_sorted=True))
    own = jnp.minimum(node, nodes - 1)
    first = (stop - degree)[own] + _GROUP * (group - (last + degree // -_GROUP)[own])
    total = jnp.zeros((count, x.shape[1]), x.dtype)
    for k in range(_GROUP):
        valid = (first + k < stop[own]) & (node < nodes)
        entry = jnp.where(valid, first + k, 0)
        total += jnp.where(valid, weight[entry], 0.0)[:, None] * x[sender[entry]]
    return jax.ops.segment_sum(total, node, nodes + 1, indices_are_sorted=True)[:nodes]


def layer_mean(user_item: Adjacency, users: jax.Array, items: jax.Array, layers: int) -> tuple[jax.Array, jax.Array]:
    """(users [U, D], items [I, D]) 1 / (K + 1) sum_k A^k x, the light graph convolution (He et al. 2020, eq. 3-8).

    Args:
      user_item: A, see `Graphs`.
      users, items: x, [U, D] and [I, D].
      layers: K.
    """
    x = jnp.concatenate([users, items])  # [N, D]
    total = x
    for _ in range(layers):
        x = propagate(user_item, x, symmetric=True)
        total += x
    total /= layers + 1
    return total[: len(users)], total[len(users) :]


def along_items(graphs: dict[str, Adjacency], weights: dict[str, jax.Array | float], x: jax.Array, layers: int):
    """[I, D] S^K x with the item graph S = sum_m weight_m S_m.

    Args:
      graphs: {modality m: S_m}.
      weights: {modality m: weight_m}, see `modality_weights`.
      x: [I, D].
      layers: K.
    """
    for _ in range(layers):
        x = sum(weights[name] * propagate(graph, x) for name, graph in sorted(graphs.items()))
    return x
