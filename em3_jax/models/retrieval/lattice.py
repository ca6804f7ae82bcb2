"""LATTICE: an item graph that is learnt with the model."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.models.encoders import STATISTICS
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, need_features, pairwise_loss, rows_of, squares, xavier
from em3_jax.models.retrieval.neighbours import along, nearest, neighbours, normalised
from em3_jax.models.retrieval.propagation import along_items, layer_mean
from em3_jax.models.similarity import unit


class LATTICE(nn.Module):
    """LATTICE (Zhang et al. 2021, arXiv:2104.09036) on LightGCN.

        S~_m: the frozen item graph of modality m, cosines of the k nearest, D^-1/2 S D^-1/2
        A~_m: the same of the projected features W_m f^m + b_m
        A = sum_m a_m (lambda S~_m + (1 - lambda) A~_m),   a = softmax of trained weights
        h^(l) = A h^(l-1),  h^(0) = e_i;   users x_u, items x_i + h_i^(L) / |h_i^(L)|,  x = layer mean of LightGCN
        L = mean of -ln sigmoid(y_ui - y_uj) + l2 |users and items of the batch|^2

    The weights of the learnt graph are rebuilt in every step: the cosines of the chosen pairs, which carry the gradient to W_m.
    Which items are the k nearest is found block by block, never with an [I, I] matrix in memory, and is a constant of the step.
    (The gradient with respect to the choice is zero almost everywhere, so nothing is left out.) Negative cosines count as 0: an
    adjacency matrix has no negative weights.

    The authors' code builds the graph in the first step of each epoch, keeps it as a constant for the others, and builds it anew
    to evaluate; it normalises sum_m a_m S_m, where the paper and this normalise each S_m. `search_every` is for the costly half
    of that, the search: with it the choice is as old as that, while the weights stay those of the step. Evaluation searches.

    Attributes:
      num_users, num_items: U, I.
      width: D.
      layers: of the user-item graph.
      item_layers: L.
      neighbours: k.
      frozen_share: lambda.
      search_every: steps from one search for the k nearest to the next.
      l2: weight of the regularisation.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    item_layers: int
    neighbours: int
    frozen_share: float
    search_every: int
    l2: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.content = Projections(self.width)
        self.modality_logits = Logits()
        if self.search_every > 1:
            self.found = Found()

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        need_features(features, "LATTICE")
        projected = {name: unit(x) for name, x in self.content(features).items()}
        weight = dict(zip(sorted(projected), nn.softmax(self.modality_logits(len(projected))), strict=True))
        learnt = {}
        for name, sender in self.nearest(projected, train).items():
            near = neighbours(sender)
            learnt[name] = near, normalised(projected[name], near)
        h = self.item_embedding
        for _ in range(self.item_layers):
            frozen = along_items(graphs.items, weight, h, 1)
            terms = (weight[name] * along(*learnt[name], h) for name in sorted(learnt))
            h = self.frozen_share * frozen + (1.0 - self.frozen_share) * sum(terms)
        users, items = layer_mean(graphs.user_item, self.user_embedding, self.item_embedding, self.layers)
        return users, items + unit(h)

    def nearest(self, projected: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """{modality: [I, k] i32}, constants: those of these rows of unit length, or of the step that searched last."""
        constant = jax.lax.stop_gradient(projected)
        search = lambda: {name: nearest(x, self.neighbours) for name, x in constant.items()}  # noqa: E731
        if self.search_every == 1:
            return search()
        shapes = {name: (len(x), self.neighbours) for name, x in constant.items()}
        return self.found(search, shapes, self.search_every) if train else search()

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


class Found(nn.Module):
    """Who was nearest at the last search, kept in parameters that no gradient moves: [I, k] of each modality, and their age.

    Parameters are floats; an f32 holds every integer up to 2^24.
    """

    @nn.compact
    def __call__(
        self, search: Callable[[], dict[str, jax.Array]], shapes: dict[str, tuple[int, int]], every: int
    ) -> dict[str, jax.Array]:
        """What `search` finds, if it is that step's turn, or what it found last; {modality: [I, k] i32} of `shapes`."""
        zeros = nn.initializers.zeros
        age = self.param("age", zeros, ())  # steps since the search
        kept = {name: self.param(name, zeros, shape).astype(jnp.int32) for name, shape in shapes.items()}
        found = jax.lax.cond(age == 0, search, lambda: kept)
        if self.is_mutable_collection(STATISTICS) and not self.is_initializing():
            for name, sender in found.items():
                self.put_variable(STATISTICS, name, sender.astype(jnp.float32))
            self.put_variable(STATISTICS, "age", jnp.where(age + 1 < every, age + 1, 0.0))
        return found
