"""Two-tower models of implicit feedback: users and items become vectors, and the score of a pair is their dot product.

Each is a Linen module with the fields `num_users` U and `num_items` I, its own settings, and

    __call__(features, graphs, *, train) -> (users [U, D], items [I, D])
    loss(features, graphs, user [B], positive [B], negative [B]) -> (loss [], {name: [] scalar})     in training mode

with `features` {modality: [I, E] f32} and `graphs` a `Graphs`. Random streams: "dropout", "negatives". `init` through
`method="loss"` makes all parameters, also those that only training needs. The ID embeddings are the parameters `user_embedding`
[U, D] and `item_embedding` [I, D]. Losses are means over the batch of the papers' sums.

Letters: U users, I items, N = U + I nodes (users first), E width of a feature, D width, B batch, K layers.
"""

from typing import NamedTuple

import jax

from em3_jax.core.sparse import Adjacency


class ItemGraph(NamedTuple):
    """An item graph [I, I], and its transpose, which its gradient reads."""

    matrix: Adjacency
    transpose: Adjacency


class Graphs(NamedTuple):
    """The graphs of a step.

    Attributes:
      user_item: D^-1/2 A D^-1/2 over the N nodes, both directions of every edge: a symmetric matrix.
      items: {modality: item graph over I}; empty for models without.
      present: {modality: [I] bool}, the items that have it. The others hold a zero vector, and
        neither read nor are read in its item graph.
    """

    user_item: Adjacency
    items: dict[str, ItemGraph]
    present: dict[str, jax.Array]
