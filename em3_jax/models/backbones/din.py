"""DIN (Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018), the paper's kind of baseline."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.models.attention import TargetAttention, entropies
from em3_jax.models.backbones import BackboneSettings, Features
from em3_jax.models.heads import top


class DIN(nn.Module):
    """Target attention over the history's items, one for each of its segments; a DNN on everything side by side.

    Items enter the attention through an FC layer, which event fields are added behind, and the DNN reads the interest
    times the candidate, too. Without `attention_layer` it is DIN as published: items' fields side by side, to each of
    which event fields are added, and no product.
    """

    settings: BackboneSettings
    has_heads = True
    reads_similarity = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, f = self.settings, features
        flat = f.items.reshape(f.items.shape[0], -1)
        items = nn.Dense(f.items.shape[-1], name="item")(flat) if s.attention_layer else flat  # [S, W] or [S, F W]
        interests: list[jax.Array] = []
        scalars: dict[str, jax.Array] = {}
        for name, of in f.parts():
            own = f"_{name}" if name else ""
            attention = TargetAttention(
                s.attention_score, s.attention_hidden, softmax=s.attention_softmax, name=f"attention{own}"
            )
            events, values = of.events, of.event_values
            if not s.attention_layer:  # as wide as all fields of an item side by side
                events = None if events is None else jnp.tile(events, (1, f.items.shape[1]))
                values = None if values is None else jnp.tile(values, (1, 1, f.items.shape[1]))
            slots = (of.history, of.mask, events, of.event_position, values)
            interest, weight = attention(items, of.candidate, *slots, similarity=of.similarity)
            interests.append(interest)
            scalars |= {} if not s.attention_softmax else entropies(f"id_attention{own}", weight, of.mask)
        target = exchange.rows(items, f.candidate)
        parts = [exchange.rows(flat, f.candidate)]
        for interest in interests:
            parts += [interest, interest * target] if s.attention_layer else [interest]
        parts += [f.others.reshape(f.candidate.shape[0], -1), *f.content]
        logit, further = top(s, jnp.concatenate(parts, axis=-1), train)
        return logit, further | scalars
