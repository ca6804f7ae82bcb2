"""EM3's fusion and Content-ID-Contrastive learning in FREEDOM (EM3, section 4.6)."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from em3_jax import losses
from em3_jax.core import gather
from em3_jax.models.cic import ContentIdHeads
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import modality_weights, need_features, pairwise_loss, rows_of, xavier
from em3_jax.models.retrieval.propagation import along_items, layer_mean


class EM3(nn.Module):
    """FREEDOM's two graphs on ID and on content embeddings, as the text of the paper has it (section 4.6).

        c_i = FQ-Former of the item's modalities (eq. 2-6), for all items in every step
        users [e~_u, c~_u], items [e~_i + S^L e_i, c~_i + S^L c_i],  y_ui their dot product
            (e~_u, e~_i) = layer mean of LightGCN from (e_u, e_i);   (c~_u, c~_i) the same from (0, c_i)
            S = sum_m weight_m S_m, the frozen item graphs
        L = mean of -ln sigmoid(y_ui - y_uj) + cic_weight L_CIC(c_i, e_i) over the distinct items of the batch (eq. 10-14)

    The user-item graph is pruned in training, as in FREEDOM; the graph that comes with the batch is.
    A modality that an item lacks is not attended to, and an item without any takes no part in CIC.

    Attributes:
      num_users, num_items: U, I.
      width: D of either half.
      layers: of the user-item graph.
      item_layers: L of the item graph.
      modality_weights: {modality: weight_m}; {} = equal.
      fusion: module that makes c of the tokens, see `models.fusion`; its width is D.
      cic_weight, cic_temperature: of eq. 12-14.
      cic_negatives: H, drawn from the distinct items of the batch; 0 = all of them.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    item_layers: int
    modality_weights: FrozenDict
    fusion: nn.Module
    cic_weight: float
    cic_temperature: float
    cic_negatives: int

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.heads = ContentIdHeads(self.width)

    def content(self, features: dict[str, jax.Array], present: dict[str, jax.Array], train: bool) -> jax.Array:
        """[I, D] c of all items."""
        need_features(features, "EM3")
        tokens = {name: x[:, None] for name, x in features.items()}  # [I, 1, E]
        mask = {name: present[name][:, None] for name in tokens}
        return self.fusion(tokens, mask, train=train)

    def towers(self, content: jax.Array, graphs: Graphs) -> list[tuple[jax.Array, jax.Array]]:
        """(users [U, D], items [I, D]) by ID, and by content; one after the other, so that memory is that of one."""
        weights = modality_weights(self.modality_weights, graphs.items)
        halves = []
        for users, items in (
            (self.user_embedding, self.item_embedding),
            (jnp.zeros_like(self.user_embedding), content),
        ):
            of_users, of_items = layer_mean(graphs.user_item, users, items, self.layers)
            halves.append((of_users, of_items + along_items(graphs.items, weights, items, self.item_layers)))
        return halves

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        content = self.content(features, graphs.present, train)
        users, items = zip(*self.towers(content, graphs), strict=True)
        return jnp.concatenate(users, axis=1), jnp.concatenate(items, axis=1)

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        content = self.content(features, graphs.present, True)
        halves = [
            (gather.rows(users, user), *rows_of(items, positive, negative))
            for users, items in self.towers(content, graphs)
        ]
        ranking = pairwise_loss(*(jnp.concatenate(both, axis=1) for both in zip(*halves, strict=True)))
        item = jnp.sort(jnp.concatenate([positive, negative]))  # [2 B]
        first = item != jnp.roll(item, 1)
        first = first.at[0].set(True)  # one row of each item counts
        has_content = functools.reduce(jnp.logical_or, graphs.present.values())
        of_content, of_ids = self.heads(gather.rows(content, item), gather.rows(self.item_embedding, item))
        cic, aux = losses.content_id_contrastive(
            of_content,
            of_ids,
            first & has_content[item],
            temperature=self.cic_temperature,
            negatives=self.cic_negatives,
            key=self.make_rng("negatives") if self.cic_negatives else None,
        )
        return ranking + self.cic_weight * cic, {"ranking_loss": ranking, "cic_loss": cic} | aux
