"""Backbones that cross features instead of attending: DeepFM, DCN v2, Wide & Deep.

Their history is the mean of its items, one for each of its segments. Content features are further fields beside the ID fields.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.models.attention import gather_slots
from em3_jax.models.backbones import BackboneSettings, Features
from em3_jax.models.heads import added, top
from em3_jax.models.mlp import MLP


class Fields(nn.Module):
    """([B, F, W] embeddings of the candidate's, the user's and the context's fields and of the history; [B, E] all flat)."""

    @nn.compact
    def __call__(self, features: Features) -> tuple[jax.Array, jax.Array]:
        f, width = features, features.items.shape[-1]
        items = nn.Dense(width, name="item")(f.items.reshape(f.items.shape[0], -1))  # [S, W]
        means = []
        for _, of in f.parts():
            slots = gather_slots(items, of.history, of.events, of.event_position, of.event_values)
            count = jnp.maximum(of.mask.sum(axis=1, keepdims=True), 1)
            means.append((jnp.einsum("bt,btw->bw", of.mask.astype(slots.dtype), slots) / count)[:, None])
        target = exchange.rows(f.items, f.candidate)
        fields = jnp.concatenate([target, *means, f.others], axis=1)
        return fields, jnp.concatenate([fields.reshape(fields.shape[0], -1), *f.content], axis=-1)


class DeepFM(nn.Module):
    """DeepFM (Guo et al., IJCAI 2017): first-order weights + factorization machine + DNN, added up.

    The first component of an embedding is its first-order weight, the others are its FM vector. A content feature has a
    weight per dimension, and an FC layer makes its vector. Further labels have DNNs of their own.
    """

    settings: BackboneSettings
    has_heads = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        fields, flat = Fields(name="fields")(features)
        vectors = [fields[:, :, 1:]]  # [B, F, W - 1]
        first_order = fields[:, :, 0].sum(axis=1)
        for k, content in enumerate(features.content):
            vectors.append(nn.Dense(fields.shape[-1] - 1, name=f"content_vector_{k}")(content)[:, None])
            first_order += nn.Dense(1, name=f"content_weight_{k}")(content)[:, 0]
        vector = jnp.concatenate(vectors, axis=1)
        # sum over pairs <v_i, v_j> = (|sum v|^2 - sum |v|^2) / 2, Rendle 2010
        pairs = 0.5 * (jnp.square(vector.sum(axis=1)) - jnp.square(vector).sum(axis=1)).sum(axis=-1)
        deep, further = top(s, flat, train)
        return added(first_order + pairs, deep, further)


class DCNv2(nn.Module):
    """DCN v2 (Wang et al., WWW 2021), parallel: full-rank cross layers beside a DNN, one FC layer on both.

    With further labels each has an FC layer of its own on the cross layers, and what `heads.top` makes of the DNN.
    """

    settings: BackboneSettings
    has_heads = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        _, flat = Fields(name="fields")(features)
        crossed = flat
        for k in range(s.cross_layers):
            crossed = flat * nn.Dense(flat.shape[-1], name=f"cross_{k}")(crossed) + crossed
        if s.heads is not None:
            of_each = nn.Dense(1 + len(s.heads.labels), name="out")(crossed)
            first, further = top(s, flat, train)
            return first + of_each[:, 0], {"further": further["further"] + of_each[:, 1:]}
        deep = MLP(s.hidden[:-1], s.hidden[-1], s.dropout, name="dnn")(flat, train=train)
        logit = nn.Dense(1, name="out")(jnp.concatenate([crossed, nn.relu(deep)], axis=-1))
        return logit[:, 0], {}


class WideDeep(nn.Module):
    """Wide & Deep (Cheng et al., DLRS 2016): a linear model of the fields beside a DNN.

    The first component of an embedding is its weight in the linear part. Further labels have DNNs of their own.
    """

    settings: BackboneSettings
    has_heads = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s = self.settings
        fields, flat = Fields(name="fields")(features)
        wide = fields[:, :, 0].sum(axis=1)
        for k, content in enumerate(features.content):
            wide += nn.Dense(1, name=f"content_weight_{k}")(content)[:, 0]
        return added(wide, *top(s, flat, train))
