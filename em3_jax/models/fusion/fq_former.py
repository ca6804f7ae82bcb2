"""Fusion-Q-Former (EM3, section 3.2.2): trainable queries read an item's modality tokens through self-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.layers import ModalityTokens, TransformerLayer, join


class FusionQFormer(nn.Module):
    """c_A = TRM(concat([q, v_A, t_A]))[:Q] (eq. 6), its Q outputs joined by an FC layer.

    The last layer computes the Q query positions alone, since eq. 6 slices the others away. The queries take part in the
    attention, so an item without any token still gets a finite embedding, and one with poor content can attend to them.

    Attributes:
      settings: see `FusionSettings`.
      masked: the masked FQ-Former of table 3: the queries read the modalities, but nothing reads the queries' values.
    """

    settings: FusionSettings
    masked: bool = False

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        s = self.settings
        content, content_mask = ModalityTokens(s, name="modalities")(tokens, mask, train=train)
        items = len(content)
        queries = self.param("queries", nn.initializers.normal(1.0), (s.queries, s.width))
        readable = jnp.concatenate([jnp.full((items, s.queries), not self.masked), content_mask], axis=1)  # [S, Q + N]
        x = content
        for k in range(s.layers):
            last, layer = k == s.layers - 1, TransformerLayer(s, name=f"layer_{k}")
            if k == 0:
                shared = queries[None]  # the same for all items until they have read
                every = jnp.broadcast_to(queries, (items, *queries.shape))
                asking = shared if last else jnp.concatenate([every, content], axis=1)  # [S, Q + N, D]
                x = layer(asking, (shared, content), readable, train=train)
            else:
                x = layer(x[:, : s.queries] if last else x, x, readable, train=train)
        return join(s, x)


class MaskedFusionQFormer(FusionQFormer):
    """The masked FQ-Former of table 3."""

    masked: bool = True
