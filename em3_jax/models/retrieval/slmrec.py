"""SLMRec: self-supervised graph convolutions, one for the IDs and one for each modality."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, need_features, xavier
from em3_jax.models.retrieval.propagation import layer_mean
from em3_jax.models.similarity import unit


def info_nce(query: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """[] mean over b of -ln( exp(s(q_b, k_b) / tau) / sum_c exp(s(q_b, k_c) / tau) ), s the cosine; q and k are [B, D]."""
    score = unit(query) @ unit(key).T / temperature  # [B, B]
    return jnp.mean(jax.nn.logsumexp(score, axis=1) - jnp.diagonal(score))


class SLMRec(nn.Module):
    """SLMRec (Tao et al. 2022, IEEE TMM, doi:10.1109/TMM.2022.3187556) with the task "fine and coarse alignment" (FAC).

        z^id = LightGCN(users e_u, items e_i),   z^m = LightGCN(users e_u, items W_m f_i^m)    each modality m: K layers, mean
        z_u = W_U [z_u^id, z_u^m, ...],   z_i = W_I [z_i^id, z_i^m, ...],   y_ui = <z_u, z_i>
        L = InfoNCE(z_u, z_i; tau) + alpha L_FAC
        L_FAC = sum_m InfoNCE(g_m(c_{m-1}), h_m(z_i^m); tau'),   c_0 = z_i^id,   c_m = g_m(c_{m-1})

    InfoNCE contrasts the pairs of the batch (the other positives are the negatives), similarity is the cosine. L_FAC aligns the
    IDs with the first modality in a fine space, both with the second in a coarser one, and so on, in the order of the names; the
    last space has half the width. Features come in at length 1.

    Attributes:
      num_users, num_items: U, I.
      width: D.
      layers: K.
      temperature, ssl_temperature: tau, tau'.
      ssl_weight: alpha.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    temperature: float
    ssl_temperature: float
    ssl_weight: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.content = Projections(self.width, unit_length=True)
        self.user_join = nn.Dense(self.width, kernel_init=xavier)
        self.item_join = nn.Dense(self.width, kernel_init=xavier)
        self.alignment = Alignment(self.width, self.ssl_temperature)

    def views(self, features: dict[str, jax.Array], graphs: Graphs) -> tuple[list[jax.Array], list[jax.Array]]:
        """(users, items): [U, D] and [I, D] of the IDs, then of each modality by name."""
        need_features(features, "SLMRec")
        projected = self.content(features)
        starts = [self.item_embedding, *(projected[name] for name in sorted(projected))]
        views = [layer_mean(graphs.user_item, self.user_embedding, start, self.layers) for start in starts]
        return [users for users, _ in views], [items for _, items in views]

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        users, items = self.views(features, graphs)
        return self.user_join(jnp.concatenate(users, axis=1)), self.item_join(jnp.concatenate(items, axis=1))

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self.views(features, graphs)
        users, items = [gather.rows(x, user) for x in users], [gather.rows(x, positive) for x in items]
        joint = self.user_join(jnp.concatenate(users, axis=1)), self.item_join(jnp.concatenate(items, axis=1))
        ranking = info_nce(*joint, self.temperature)
        alignment = self.alignment(items[0], items[1:])
        loss = ranking + self.ssl_weight * alignment
        return loss, {"ranking_loss": ranking, "alignment_loss": alignment}


class Alignment(nn.Module):
    """L_FAC of `SLMRec`: [] from the ID view [B, D] and the views of the modalities [B, D] each."""

    width: int
    temperature: float

    @nn.compact
    def __call__(self, ids: jax.Array, modalities: list[jax.Array]) -> jax.Array:
        total, common = jnp.zeros(()), ids
        for k, view in enumerate(modalities):
            width = self.width if k < len(modalities) - 1 else self.width // 2
            common = nn.Dense(width, kernel_init=xavier, name=f"common_{k}")(common)
            total += info_nce(common, nn.Dense(width, kernel_init=xavier, name=f"modality_{k}")(view), self.temperature)
        return total
