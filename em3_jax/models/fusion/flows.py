"""The fusion methods that the paper compares FQ-Former with (section 4.3.2), and the mean as control."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.layers import ModalityTokens, TransformerLayer, join


class OneFlow(nn.Module):
    """1flow (ViLT, Kim et al. 2021): one transformer over all tokens; its outputs, padding included, are the feature."""

    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        s = self.settings
        x, valid = ModalityTokens(s, name="modalities")(tokens, mask, train=train)  # [S, N, D], [S, N]
        for k in range(s.layers):
            x = TransformerLayer(s, name=f"layer_{k}")(x, x, valid, train=train)
        return join(s, x, valid)


class TwoFlow(nn.Module):
    """2flow (ViLBERT, Lu et al. 2019): a transformer for the text and one for all else, each reading the other.

    A layer attends to the other flow and then to its own. The outputs of the text flow, padding included, are the feature. The
    text flow is the modalities whose name begins with "text"; without any, the last one by name.
    """

    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        s = self.settings
        content, content_mask = ModalityTokens(s, name="modalities")(tokens, mask, train=train)
        ends = list(itertools.accumulate(tokens[name].shape[1] for name in sorted(tokens)))
        places = zip(sorted(tokens), [0, *ends], ends, strict=False)
        column = {name: slice(start, end) for name, start, end in places}
        text = [name for name in column if name.startswith("text")] or [max(column)]
        x, valid = {}, {}
        for flow, names in (("text", text), ("other", [name for name in column if name not in text])):
            if names:
                # Slices: the gradient of a gather would be a sum.
                own = [column[name] for name in names]
                x[flow] = jnp.concatenate([content[:, part] for part in own], axis=1)
                valid[flow] = jnp.concatenate([content_mask[:, part] for part in own], axis=1)
        for k in range(s.layers):
            before = dict(x)  # each flow reads what the other was before the layer
            for flow in ["text"] if k == s.layers - 1 else list(x):
                for other in set(x) - {flow}:
                    cross = TransformerLayer(s, name=f"{flow}_cross_{k}")
                    x[flow] = cross(x[flow], before[other], valid[other], train=train)
                x[flow] = TransformerLayer(s, name=f"{flow}_{k}")(x[flow], x[flow], valid[flow], train=train)
        return join(s, x["text"], valid["text"])


class Mean(nn.Module):
    """The mean of an item's valid tokens, behind the FC layers that every variant has; zeros without any."""

    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool) -> jax.Array:
        x, valid = ModalityTokens(self.settings, name="modalities")(tokens, mask, train=train)
        total = jnp.where(valid[..., None], x, 0.0).sum(axis=1)
        return join(self.settings, total / jnp.maximum(valid.sum(axis=1, keepdims=True), 1))
