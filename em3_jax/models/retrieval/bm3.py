"""BM3: bootstrapped latent representations; no negatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.models.dropout import Dropout
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, need_features, squares, xavier
from em3_jax.models.retrieval.propagation import layer_mean
from em3_jax.models.similarity import cosine


class BM3(nn.Module):
    """BM3 (Zhou et al. 2023, arXiv:2207.05969).

        h_u = mean_k of LightGCN,  h_i = mean_k of LightGCN + e_i,  h_m = W_m f^m + b_m
        online: h~ = h W_p + b_p, one predictor for all;   target: h' = dropout(h), without gradient
        L_rec = C(h~_u, h'_i) + C(h'_u, h~_i),  L_align = sum_m C(h~_m, h'_i),  L_mask = sum_m C(h~_m, h'_m),  C = -cosine
        L = L_rec + content_weight (L_align + L_mask) + l2 (|h_u|^2 + |h_i|^2),  y_ui = <h~_u, h~_i>

    The negative item is not read.

    Attributes:
      num_users, num_items: U, I.
      width: D.
      layers: K.
      dropout: rate of the targets.
      content_weight: 1 in the paper.
      l2: weight of the regularisation.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    dropout: float
    content_weight: float
    l2: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.content = Projections(self.width)
        self.predictor = nn.Dense(self.width, kernel_init=nn.initializers.xavier_normal())
        self.drop = Dropout(self.dropout)

    def graph(self, graphs: Graphs) -> tuple[jax.Array, jax.Array]:
        """(h_u [U, D], h_i [I, D])."""
        users, items = layer_mean(graphs.user_item, self.user_embedding, self.item_embedding, self.layers)
        return users, items + self.item_embedding

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        users, items = self.graph(graphs)
        return self.predictor(users), self.predictor(items)

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        need_features(features, "BM3")
        users, items = self.graph(graphs)
        users, items = gather.rows(users, user), gather.rows(items, positive)
        target = [jax.lax.stop_gradient(self.drop(x, train=True)) for x in (users, items)]
        reconstruction = -cosine(self.predictor(users), target[1]) - cosine(self.predictor(items), target[0])
        alignment: jax.Array | float = 0.0
        for x in self.content(features, positive).values():
            online, masked = self.predictor(x), jax.lax.stop_gradient(self.drop(x, train=True))
            alignment -= cosine(online, target[1]) + cosine(online, masked)
        reconstruction, alignment = reconstruction.mean(), jnp.mean(alignment)
        norm = squares(users, items)
        loss = reconstruction + self.content_weight * alignment + self.l2 * norm
        return loss, {"ranking_loss": reconstruction, "alignment_loss": alignment, "squared_norm": norm}
