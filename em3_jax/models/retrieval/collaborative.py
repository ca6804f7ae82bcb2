"""Models of interactions alone: matrix factorisation and the light graph convolution."""

import flax.linen as nn
import jax

from em3_jax.core import gather
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import pairwise_loss, rows_of, squares, xavier
from em3_jax.models.retrieval.propagation import layer_mean


class BPR(nn.Module):
    """Matrix factorisation under Bayesian personalised ranking (Rendle et al. 2009, arXiv:1205.2618).

        x_ui = <w_u, h_i>
        L = mean over (u, i, j) of -ln sigmoid(x_ui - x_uj) + l2 (|w_u|^2 + |h_i|^2 + |h_j|^2)

    Attributes:
      num_users, num_items: U, I.
      width: D.
      l2: weight of the regularisation, lambda_Theta.
    """

    num_users: int
    num_items: int
    width: int
    l2: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        return self.user_embedding, self.item_embedding

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self(features, graphs, train=True)
        ranking = pairwise_loss(gather.rows(users, user), *rows_of(items, positive, negative))
        own = gather.rows(self.user_embedding, user)
        norm = squares(own, *rows_of(self.item_embedding, positive, negative))
        return ranking + self.l2 * norm, {"ranking_loss": ranking, "squared_norm": norm}


class LightGCN(BPR):
    """Light graph convolution (He et al. 2020, arXiv:2002.02126).

        e_u^(k+1) = sum_{i in N_u} 1 / sqrt(|N_u| |N_i|) e_i^(k),  e_i^(k+1) likewise    (eq. 3)
        e = 1 / (K + 1) sum_{k=0..K} e^(k),  y_ui = <e_u, e_i>                            (eq. 4-5)
        L = mean of -ln sigmoid(y_ui - y_uj) + l2 |E^(0)|^2 of the batch's rows            (eq. 15)

    Attributes:
      layers: K.
    """

    layers: int

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        return layer_mean(graphs.user_item, self.user_embedding, self.item_embedding, self.layers)
