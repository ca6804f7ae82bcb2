"""Products with sparse matrices, and what graph convolutions make of them."""

import jax
import jax.numpy as jnp

from em3_jax.models.retrieval import ItemGraph
from em3_jax.sparse import Adjacency


def product(matrix: Adjacency, x: jax.Array) -> jax.Array:
    """[N, D] A x, differentiable in x [N, D] and in the weights: sums over each group, then over the groups of each row."""
    # One gather after the other, so that XLA makes a single loop of them and [G, W, D] never exists.
    rows = sum(matrix.weight[:, k, None] * x[matrix.sender[:, k]] for k in range(matrix.sender.shape[1]))  # [G, D]
    return jax.ops.segment_sum(rows, matrix.receiver, len(x), indices_are_sorted=True)


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
    total /= layers + 1
    return total[: len(users)], total[len(users) :]


def along_items(graphs: dict[str, ItemGraph], weights: dict[str, jax.Array | float], x: jax.Array, layers: int):
    """[I, D] S^K x with the item graph S = sum_m weight_m S_m.

    Args:
      graphs: {modality m: S_m}.
      weights: {modality m: weight_m}, see `modality_weights`.
      x: [I, D].
      layers: K.
    """
    for _ in range(layers):
        x = sum(weights[name] * propagate(*graph, x) for name, graph in sorted(graphs.items()))
    return x
