"""LATTICE: an item graph that is learnt with the model."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.core.sparse import FEWEST_GROUPS, Adjacency
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, need_features, pairwise_loss, rows_of, squares, xavier
from em3_jax.models.retrieval.propagation import along_items, layer_mean, product
from em3_jax.models.similarity import unit

_BLOCK = 512  # rows of the similarity matrix at once
_CHUNK = 32  # of its columns


class LATTICE(nn.Module):
    """LATTICE (Zhang et al. 2021, arXiv:2104.09036) on LightGCN.

        S~_m: the frozen item graph of modality m, cosines of the k nearest, D^-1/2 S D^-1/2
        A~_m: the same of the projected features W_m f^m + b_m
        A = sum_m a_m (lambda S~_m + (1 - lambda) A~_m),   a = softmax of trained weights
        h^(l) = A h^(l-1),  h^(0) = e_i;   users x_u, items x_i + h_i^(L) / |h_i^(L)|,  x = layer mean of LightGCN
        L = mean of -ln sigmoid(y_ui - y_uj) + l2 |users and items of the batch|^2

    The graph is rebuilt in every step: which items are the k nearest is found block by block, never with an [I, I] matrix in
    memory, and is a constant of the step; the weights are the cosines of the chosen pairs and carry the gradient to W_m. (The
    gradient with respect to the choice is zero almost everywhere, so nothing is left out.) Negative cosines count as 0: an
    adjacency matrix has no negative weights.

    Attributes:
      num_users, num_items: U, I.
      width: D.
      layers: of the user-item graph.
      item_layers: L.
      neighbours: k.
      frozen_share: lambda.
      l2: weight of the regularisation.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    item_layers: int
    neighbours: int
    frozen_share: float
    l2: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.content = Projections(self.width)
        self.modality_logits = Logits()

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        need_features(features, "LATTICE")
        projected = self.content(features)
        weight = dict(zip(sorted(projected), nn.softmax(self.modality_logits(len(projected))), strict=True))
        learnt = {name: learnt_graph(x, self.neighbours) for name, x in projected.items()}
        h = self.item_embedding
        for _ in range(self.item_layers):
            frozen = along_items(graphs.items, weight, h, 1)
            h = self.frozen_share * frozen + (1.0 - self.frozen_share) * sum(
                weight[name] * product(graph, h, take=gather.rows) for name, graph in learnt.items()
            )
        users, items = layer_mean(graphs.user_item, self.user_embedding, self.item_embedding, self.layers)
        return users, items + unit(h)

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self(features, graphs, train=True)
        rows = gather.rows(users, user), *rows_of(items, positive, negative)
        ranking, norm = pairwise_loss(*rows), squares(*rows)
        return ranking + self.l2 * norm, {"ranking_loss": ranking, "squared_norm": norm}


class Logits(nn.Module):
    """[count] trained logits, zeros at first."""

    @nn.compact
    def __call__(self, count: int) -> jax.Array:
        return self.param("logits", nn.initializers.zeros, (count,))


def learnt_graph(x: jax.Array, neighbours: int) -> Adjacency:
    """D^-1/2 S D^-1/2 over the k nearest by cosine, the item itself among them; differentiable in x [I, D]."""
    x = unit(x)
    sender = jax.lax.stop_gradient(nearest(x, neighbours))  # [I, k]
    weight = nn.relu(jnp.stack([jnp.sum(x * gather.rows(x, sender[:, k]), axis=1) for k in range(neighbours)], axis=1))
    degree = weight.sum(axis=1)
    scale = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1.0)), 0.0)
    weight = weight * scale[:, None] * gather.rows(scale, sender)
    padding = jnp.zeros((FEWEST_GROUPS, neighbours), jnp.int32)
    return Adjacency(sender, weight, jnp.full(FEWEST_GROUPS, len(x), jnp.int32), padding, padding.astype(weight.dtype))


def nearest(x: jax.Array, count: int) -> jax.Array:
    """[I, count] i32 the rows with the largest inner product with each row of x [I, D], in blocks; equal ones by index.

    The largest of a row lie in the chunks with the largest maxima, so only those are searched for them.
    """
    items, blocks, chunks = len(x), -(-len(x) // _BLOCK), -(-len(x) // _CHUNK)
    rows = jnp.pad(x, ((0, blocks * _BLOCK - items), (0, 0))).reshape(blocks, _BLOCK, -1)
    columns = jnp.pad(x, ((0, chunks * _CHUNK - items), (0, 0)))

    def search(row: jax.Array) -> jax.Array:
        score = jnp.where(jnp.arange(len(columns)) < items, row @ columns.T, -jnp.inf).reshape(_BLOCK, chunks, _CHUNK)
        chunk = jnp.sort(jax.lax.top_k(score.max(axis=2), min(count, chunks))[1], axis=1)  # ascending, for equal scores
        candidates = jnp.take_along_axis(score, chunk[:, :, None], axis=1).reshape(_BLOCK, -1)
        found = jax.lax.top_k(candidates, count)[1]
        return jnp.take_along_axis(chunk, found // _CHUNK, axis=1) * _CHUNK + found % _CHUNK

    return jax.lax.map(search, rows).reshape(-1, count)[:items]
