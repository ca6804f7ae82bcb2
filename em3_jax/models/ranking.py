"""The ranking model (EM3, section 3.1): ID features, target attention on IDs, content features -> DNN -> logit.

Letters: B batch, T history, S distinct items, R distinct table rows, C columns of a field group, F fields, W ID width, D width.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.fields import Field, Fields, columns
from em3_jax.models.attention import TargetAttention, entropy
from em3_jax.models.mlp import MLP
from em3_jax.types import Batch


def field_embeddings(rows: jax.Array, position: jax.Array, fields: Sequence[Field]) -> jax.Array:
    """[*, F, W] one embedding per field; multi-valued fields are the mean of their values, padding left out.

    Args:
      rows: [R, W] the distinct table rows; row 0 is padding.
      position: [*, C] i32 positions in `rows`, the fields side by side.
    """
    values = jnp.take(rows, position, axis=0)  # [*, C, W]
    parts = []
    for field, column in zip(fields, columns(tuple(fields)).values(), strict=True):
        value = values[..., column, :]
        if field.length > 1:
            valid = (position[..., column] != 0)[..., None]
            value = jnp.sum(value * valid, axis=-2, keepdims=True) / jnp.maximum(valid.sum(axis=-2, keepdims=True), 1)
        parts.append(value)
    return jnp.concatenate(parts, axis=-2)


class RankingModel(nn.Module):
    """Click logits from IDs and, if there is a fusion module, from content (eq. 1, 6-8).

    Attributes:
      fields: the dataset's categorical fields.
      fusion: module from content tokens to item embeddings [S, D]; None is the ID-only model.
      attention_score, attention_hidden: of the attention on IDs (see `TargetAttention`).
      content_score, content_hidden: of the attention on content.
      hidden: widths of the DNN.
      dropout: rate in the DNN.
    """

    fields: Fields
    fusion: nn.Module | None
    attention_score: str
    attention_hidden: int
    content_score: str
    content_hidden: int
    hidden: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(
        self,
        rows: jax.Array,
        tokens: dict[str, jax.Array],
        tokens_mask: dict[str, jax.Array],
        batch: Batch,
        *,
        train: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(logit [B], named intermediates).

        Args:
          rows: [R, W] the batch's distinct rows of the embedding table.
          tokens, tokens_mask: {modality: [S, N, E]}, {modality: [S, N]} of the distinct items; unused without fusion.
          batch: see `data/batches.py`.
        """
        candidate, history, mask = batch["item_position"], batch["history_position"], batch["history_mask"]
        out = {}
        item_fields = field_embeddings(rows, batch["item_row"], self.fields.item)  # [S, F, W]
        out["item_fields"] = item_fields
        flat = item_fields.reshape(len(item_fields), -1)
        items = nn.Dense(rows.shape[-1], name="item")(flat)  # [S, W]
        attention = TargetAttention(self.attention_score, self.attention_hidden, name="id_attention")
        events = (rows, batch["history_row"]) if self.fields.event else ()
        interest, weight = attention(items, candidate, history, mask, *events)
        out["id_attention_entropy"] = entropy(weight)
        target = jnp.take(items, candidate, axis=0)
        parts = [jnp.take(flat, candidate, axis=0), interest, interest * target]
        for group in ("user", "context"):
            if fields := getattr(self.fields, group):
                embedding = field_embeddings(rows, batch[f"{group}_row"], fields)
                parts.append(embedding.reshape(len(embedding), -1))
        if self.fusion is not None:
            content = self.fusion(tokens, tokens_mask, train=train)  # [S, D]
            attention = TargetAttention(self.content_score, self.content_hidden, name="content_attention")
            interest, weight = attention(content, candidate, history, mask)
            out |= {"content": content, "content_attention_entropy": entropy(weight)}
            target = jnp.take(content, candidate, axis=0)
            parts += [target, interest, interest * target]
        logit = MLP(self.hidden, 1, self.dropout, name="dnn")(jnp.concatenate(parts, axis=-1), train=train)
        return logit[:, 0], out
