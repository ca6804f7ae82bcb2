"""FREEDOM: frozen item graphs and a pruned user-item graph."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from em3_jax.core import gather
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, modality_weights, pairwise_loss, rows_of, xavier
from em3_jax.models.retrieval.propagation import along_items, layer_mean


class FREEDOM(nn.Module):
    """FREEDOM (Zhou and Shen 2023, arXiv:2211.06924).

        S = sum_m weight_m S_m, the frozen item graphs;   h~^(l) = S h~^(l-1),  h~^(0) = e_i
        h = mean over the layers of LightGCN on the user-item graph, pruned in training
        users h_u, items h_i + h~_i,  y_ui = <h_u, h_i + h~_i>
        L = mean of -ln sigmoid(y_ui - y_uj) + content_weight sum_m -ln sigmoid(<h_u, h_i^m> - <h_u, h_j^m>),  h^m = W_m f^m + b_m

    The pruning is in the graph that comes with the batch.

    Attributes:
      num_users, num_items: U, I.
      width: D.
      layers: K of the user-item graph.
      item_layers: L of the item graph.
      modality_weights: {modality: weight_m}; {} = equal.
      content_weight: lambda.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    item_layers: int
    modality_weights: FrozenDict
    content_weight: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.content = Projections(self.width)

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        weights = modality_weights(self.modality_weights, graphs.items)
        users, items = layer_mean(graphs.user_item, self.user_embedding, self.item_embedding, self.layers)
        return users, items + along_items(graphs.items, weights, self.item_embedding, self.item_layers)

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self(features, graphs, train=True)
        users = gather.rows(users, user)
        ranking = pairwise_loss(users, *rows_of(items, positive, negative))
        if not self.content_weight:
            return ranking, {"ranking_loss": ranking}
        content = self.content(features, jnp.concatenate([positive, negative])).values()
        modalities = jnp.asarray(sum(pairwise_loss(users, *jnp.split(x, 2)) for x in content))
        return ranking + self.content_weight * modalities, {"ranking_loss": ranking, "content_loss": modalities}
