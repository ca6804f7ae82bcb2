"""Products with sparse matrices, and what graph convolutions make of them."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import gather
from em3_jax.core.sparse import Adjacency
from em3_jax.models.retrieval import ItemGraph


def _plainly(x: jax.Array, sender: np.ndarray | jax.Array) -> jax.Array:
    return x[sender]


def product(matrix: Adjacency, x: jax.Array, take: Callable = _plainly) -> jax.Array:
    """[N, D] A x, differentiable in x [N, D] and in the weights: the sum of each row's first group, and of further ones.

    Args:
      matrix: A.
      x: [N, D] f32.
      take: (x, [*] i32) -> its rows; `gather.rows` where a gradient is asked for.
    """
    x = jnp.asarray(x)

    def sums(sender: np.ndarray | jax.Array, weight: np.ndarray | jax.Array) -> jax.Array:
        # One gather after the other, so that XLA makes a single loop of them and [G, W, D] never exists.
        terms = (weight[:, k, None] * take(x, sender[:, k]) for k in range(sender.shape[1]))
        return jnp.asarray(sum(terms))

    rows, more = sums(matrix.sender, matrix.weight), sums(matrix.more_sender, matrix.more_weight)  # [N, D], [G, D]
    return jax.lax.platform_dependent(rows, more, jnp.asarray(matrix.more_receiver), cpu=_added, default=_summed)


def _added(rows: jax.Array, more: jax.Array, receiver: jax.Array) -> jax.Array:
    """`rows` [N, D] and what the groups `more` [G, D] of theirs add to them.

    G is 2 at least: without a scatter, which one of a single row is not to XLA, the sums would be
    fused into each gather of the rows and repeated there.
    """
    return rows.at[receiver].add(more, indices_are_sorted=True, mode="drop")


def _summed(rows: jax.Array, more: jax.Array, receiver: jax.Array) -> jax.Array:
    """`_added` where additions queue: a popular item has many groups; padding is of row N."""
    return rows + gather.sums(more, receiver, len(rows) + 1)[:-1]


@jax.custom_vjp
def propagate(matrix: Adjacency, transpose: Adjacency, x: jax.Array) -> jax.Array:
    """[N, D] A x of a constant matrix, differentiable in x.

    The gradient is a product with the transpose, which gathers like the product itself; left alone, it would scatter.

    Args:
      matrix: A.
      transpose: A^T; the matrix itself where it is symmetric.
      x: [N, D] f32.
    """
    return product(matrix, x)


def _forward(matrix, transpose, x):
    return product(matrix, x), transpose


def _backward(transpose, gradient):
    return None, None, product(transpose, gradient)


propagate.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _parted(x: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
    """(x[:first], x[first:]), whose gradient is one array; left alone it is the sum of two, and the next gather reads both."""
    return x[:first], x[first:]


_parted.defvjp(lambda x, first: ((x[:first], x[first:]), None), lambda first, _, gradient: (jnp.concatenate(gradient),))


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
        x = propagate(user_item, user_item, x)
        total += x
    return _parted(total / (layers + 1), len(users))


def along_items(graphs: Mapping[str, ItemGraph], weights: Mapping[str, float], x: jax.Array, layers: int) -> jax.Array:
    """[I, D] S^K x with the item graph S = sum_m weight_m S_m.

    Args:
      graphs: {modality m: S_m}.
      weights: {modality m: weight_m}, see `modality_weights`.
      x: [I, D].
      layers: K.
    """
    for _ in range(layers):
        terms = (weights[name] * propagate(*graph, x) for name, graph in sorted(graphs.items()))
        x = jnp.asarray(sum(terms))
    return x
