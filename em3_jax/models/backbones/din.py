"""DIN (Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018), the paper's kind of baseline."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.models.attention import TargetAttention, entropies
from em3_jax.models.backbones import BackboneSettings, Features
from em3_jax.models.heads import top


class DIN(nn.Module):
    """Target attention over the history's items; a DNN on everything side by side."""

    settings: BackboneSettings
    has_heads = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, f = self.settings, features
        flat = f.items.reshape(f.items.shape[0], -1)
        items = nn.Dense(f.items.shape[-1], name="item")(flat)  # [S, W]
        attention = TargetAttention(s.attention_score, s.attention_hidden, name="attention")
        interest, weight = attention(items, f.candidate, f.history, f.mask, f.events, f.event_position)
        target = exchange.rows(items, f.candidate)
        parts = [exchange.rows(flat, f.candidate), interest, interest * target]
        parts += [f.others.reshape(f.candidate.shape[0], -1), *f.content]
        logit, further = top(s, jnp.concatenate(parts, axis=-1), train)
        return logit, further | entropies("id_attention", weight, f.mask)
