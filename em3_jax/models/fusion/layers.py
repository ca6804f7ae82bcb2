"""What the fusion variants share: tokens at one width, multi-head attention, the transformer layer, the last FC layer."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.attention import WEIGHTS
from em3_jax.models.dropout import Dropout
from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.chunks import in_chunks
from em3_jax.models.lora import LoRA, LoRADense


class ModalityTokens(nn.Module):
    """The tokens of all modalities at one width: an FC layer and an embedding per modality (eq. 4-5)."""

    settings: FusionSettings

    @nn.compact
    def __call__(
        self, tokens: dict[str, jax.Array], mask: dict[str, jax.Array], *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """(tokens [S, N, D] f32, mask [S, N] bool) from {modality: [S, N_m, E_m]} and {modality: [S, N_m] bool}, by name."""
        s, parts = self.settings, []
        for name in sorted(tokens):
            x = jnp.where(mask[name][..., None], tokens[name], 0.0)  # a masked token may hold anything, NaN included
            embedding = self.param(f"{name}_embedding", nn.initializers.normal(0.02), (s.width,))
            parts.append(LoRADense(s.width, s.lora, name=f"{name}_fc")(x) + embedding)
        x = Dropout(s.dropout)(jnp.concatenate(parts, axis=1), train=train)
        return x, jnp.concatenate([mask[name] for name in sorted(tokens)], axis=1)


class Attention(nn.Module):
    """Multi-head attention of `x` [S, M, D] on `context` [S, N, D] where `mask` [S, N]; zeros where nothing is valid.

    The context may come in parts, which follow each other. `x` and parts with S = 1 are shared by all items and projected once.
    """

    heads: int
    lora: LoRA

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | Sequence[jax.Array], mask: jax.Array) -> jax.Array:
        items, width, size = len(mask), x.shape[-1], x.shape[-1] // self.heads
        parts = (context,) if isinstance(context, jax.Array) else context
        query, key, value = (LoRADense(width, self.lora, name=name) for name in ("query", "key", "value"))

        def together(parts: list[jax.Array]) -> jax.Array:
            return jnp.concatenate([jnp.broadcast_to(part, (items, *part.shape[1:])) for part in parts], axis=1)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, size)

        asked = heads(query(x)) / jnp.sqrt(size)
        if len(x) == 1:
            # <W_q x, W_k c> = <W_k^T W_q x, c>: what all items ask the same is asked of c itself, and no key is
            # formed. One product with [D, D + H M] gives a token's value and its scores.
            alone = jnp.eye(self.heads, dtype=asked.dtype)  # a head reads its own part of the width
            asks = jnp.einsum("qhd,hg->hdgq", asked[0], alone).reshape(width, -1)
            both = value.map(width).beside(key.map(width).then(asks))
            read = [both(part.reshape(-1, width)).reshape(*part.shape[:2], -1) for part in parts]
            # Cut before they are joined, so that neither lies between the other's rows.
            score = together([one[..., width:] for one in read])  # [S, N, H M]
            values = heads(together([one[..., :width] for one in read]))
        else:
            keys = heads(together([key(part) for part in parts]))
            score = jnp.einsum("sqhd,snhd->snhq", together([asked]), keys).reshape(*mask.shape, -1)
            values = heads(together([value(part) for part in parts]))
        valid = mask[..., None]
        score = jnp.where(valid, score.astype(jnp.float32), jnp.finfo(jnp.float32).min)
        weight = jnp.where(valid, nn.softmax(score, axis=1), 0.0).astype(x.dtype)
        weight = weight.reshape(*mask.shape, self.heads, -1)  # [S, N, H, M]
        self.sow("intermediates", WEIGHTS, jnp.einsum("snhq->shqn", weight))
        mixed = jnp.einsum("snhq,snhd->sqhd", weight, values)
        return LoRADense(width, self.lora, name="output")(mixed.reshape(items, -1, width))


class TransformerLayer(nn.Module):
    """Post-norm transformer layer: `x` [S, M, D] attends to `context`, then the FFN; [S, M, D]. See `Attention`."""

    settings: FusionSettings

    def __call__(
        self, x: jax.Array, context: jax.Array | Sequence[jax.Array], mask: jax.Array, *, train: bool
    ) -> jax.Array:
        return in_chunks(
            self,
            self.settings.layer_chunk,
            lambda layer, inputs: layer.at_once(*inputs, train=train),
            (x, context, mask),
        )

    @nn.compact
    def at_once(
        self, x: jax.Array, context: jax.Array | Sequence[jax.Array], mask: jax.Array, *, train: bool
    ) -> jax.Array:
        s = self.settings
        drop = functools.partial(Dropout(s.dropout), train=train)
        y = Attention(s.heads, s.lora, name="attention")(x, context, mask)
        x = _normalised(x + drop(y), "attention_norm")
        y = nn.gelu(LoRADense(s.ffn_width, s.lora, name="ffn_in")(x))
        y = LoRADense(s.width, s.lora, name="ffn_out")(y)
        return _normalised(x + drop(y), "ffn_norm")


def _normalised(x: jax.Array, name: str) -> jax.Array:
    """LayerNorm of x [S, M, D], on one flat axis: with M = 1 the gradient takes 5 times as long on CPUs otherwise."""
    return nn.LayerNorm(name=name)(x.reshape(-1, x.shape[-1])).reshape(x.shape)


def join(settings: FusionSettings, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """[S, D] from output tokens [S, M, D] side by side, masked ones as zeros: the FC layer at the end of every variant."""
    x = x if mask is None else jnp.where(mask[..., None], x, 0.0)
    # Content starts small beside the ID embeddings. At full size what all items share, which is everything for items
    # without content, moves the ranker's first layer as a bias with a hundredfold learning rate would.
    small = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")
    return LoRADense(settings.width, settings.lora, small, name="join")(x.reshape(len(x), -1))
