"""BERT-family text encoders: BERT, RoBERTa and the MiniLM style of small BERTs.

Letters: B batch, L text tokens, D width, H heads. Post-norm transformer of Devlin et al. 2019 (arXiv:1810.04805);
RoBERTa (Liu et al. 2019, arXiv:1907.11692) differs in its position numbers only. There is no dropout.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from em3_jax.core import gather
from em3_jax.core.errors import UserError
from em3_jax.models.attention import WEIGHTS
from em3_jax.models.encoders import EncoderOutput, Part

Dtype = Any

_init = nn.initializers.normal(0.02)


class Bert(nn.Module):
    """The token states, class token, mean and pooler output of a batch of texts.

    Attributes:
      vocab_size, width, layers, heads, mlp_width: sizes.
      max_positions: rows of the position table.
      token_types: rows of the token type table.
      padding_id: None numbers positions 0, 1, 2, ... (BERT). A token id turns on RoBERTa's rule: tokens other than
        `padding_id` get padding_id + 1, padding_id + 2, ..., and padding itself stays at `padding_id`.
      pooler: whether there is a tanh layer on the class token.
      norm_eps: epsilon of every LayerNorm.
      activation: of the feed-forward layers.
      dtype: of the activations; parameters are float32.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    max_positions: int
    token_types: int = 2
    padding_id: int | None = None
    pooler: bool = True
    norm_eps: float = 1e-12
    activation: Callable[[jax.Array], jax.Array] = functools.partial(nn.gelu, approximate=False)
    dtype: Dtype = jnp.float32

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that the position table has room for."""
        return self.max_positions - (0 if self.padding_id is None else self.padding_id + 1)

    def parts(self) -> tuple[Part, ...]:
        """embedding, layer0, layer1, ..; the last one has the pooler, which most poolings leave aside."""
        before = ("word_embedding", "token_type_embedding", "position_embedding", "embedding_norm")
        *layers, last = (f"layer{i}" for i in range(self.layers))
        return (Part("embedding", before, False), *(Part(one, (one,)) for one in layers), Part(last, (last, "pooler")))

    @nn.compact
    def __call__(
        self, token_ids: jax.Array, mask: jax.Array | None = None, token_types: jax.Array | None = None
    ) -> EncoderOutput:
        """The encoded texts, in `dtype`.

        Args:
          token_ids: [B, L] integers in 0 .. vocab_size - 1.
          mask: [B, L] bool, True = valid token; None means all are. Padding is never attended to.
          token_types: [B, L] integers, the segment of each token; None means 0.

        Raises:
          UserError: texts are longer than the position table.
        """
        batch, length = token_ids.shape
        mask = jnp.ones((batch, length), bool) if mask is None else mask.astype(bool)
        token_types = jnp.zeros_like(token_ids) if token_types is None else token_types
        positions = self._positions(token_ids)

        x = _embed(self.vocab_size, self.width, "word_embedding")(token_ids)
        x += _embed(self.token_types, self.width, "token_type_embedding")(token_types)
        x += _embed(self.max_positions, self.width, "position_embedding")(positions)
        # Tokens stay flat: XLA's CPU matmuls are faster on two axes, and only attention needs to know about texts.
        x = x.reshape(batch * length, self.width)  # [B * L, D]
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        for i in range(self.layers):
            x = checkpoint_name(x, f"layer{i}")
            layer = Layer(self.heads, self.mlp_width, self.norm_eps, self.activation, self.dtype, name=f"layer{i}")
            x = layer(x, mask)

        tokens = x.reshape(batch, length, self.width)  # [B, L, D]
        cls = tokens[:, 0]
        pooled = jnp.tanh(_dense(self.width, self.dtype, "pooler")(cls)) if self.pooler else None
        return EncoderOutput(tokens, mask, cls, masked_mean(tokens, mask), pooled)

    def _positions(self, token_ids: jax.Array) -> jax.Array:
        """[1 or B, L] row of each token in the position table."""
        length = token_ids.shape[1]
        if length > self.max_length:
            raise UserError(
                f"texts of {length} tokens, but this encoder has positions for {self.max_length}: truncate them"
            )
        if self.padding_id is None:
            return jnp.arange(length)[None]
        valid = (token_ids != self.padding_id).astype(jnp.int32)
        return jnp.cumsum(valid, axis=1) * valid + self.padding_id


class Layer(nn.Module):
    """[B * L, D] -> [B * L, D]: self-attention and feed-forward, each followed by its residual and LayerNorm.

    Attributes:
      kernel_init: of the dense layers; BERT's suits widths of hundreds.
      first_alone: -> [B, D], what the layer gives of each text's first token; the same parameters, next to no work.
    """

    heads: int
    mlp_width: int
    norm_eps: float
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype
    kernel_init: Callable = _init
    first_alone: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        width = x.shape[-1]
        attention = FirstTokenAttention if self.first_alone else SelfAttention
        attended = attention(self.heads, self.dtype, self.kernel_init, name="attention")(x, mask)
        if self.first_alone:
            x = x.reshape(*mask.shape, width)[:, 0]
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x + attended)
        hidden = self.activation(_dense(self.mlp_width, self.dtype, "mlp_in", self.kernel_init)(x))
        hidden = _dense(width, self.dtype, "mlp_out", self.kernel_init)(hidden)
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x + hidden)


def _softmax_mean(equation: str, logits: jax.Array, mask: jax.Array, values: jax.Array) -> jax.Array:
    """einsum of the softmax of logits over the valid tokens, the last axis, and values; in their dtype, the softmax in float32.

    Divided after the product: one pass less over [L, L]. On CPU attention takes 0.4 of the time of jax.nn.dot_product_attention.
    """
    logits += jnp.where(mask, 0.0, -1e9)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    total = jnp.einsum(equation, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (total / weights.sum(axis=-1, keepdims=True)).astype(values.dtype)


class SelfAttention(nn.Module):
    """[B * L, D] -> [B * L, D]: softmax(q k^T / sqrt(D / H)) v over the valid tokens; softmax in float32."""

    heads: int
    dtype: Dtype
    kernel_init: Callable = _init

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        batch, length = mask.shape
        width = x.shape[-1]

        def split(name):
            y = _dense(width, self.dtype, name, self.kernel_init)(x).reshape(batch, length, self.heads, -1)
            return y.transpose(0, 2, 1, 3)  # [B, H, L, D / H]

        query, key, value = split("query") * (width // self.heads) ** -0.5, split("key"), split("value")
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        attended = _softmax_mean("bhqk,bhkd->bhqd", logits, mask[:, None, None], value).transpose(0, 2, 1, 3)
        return _dense(width, self.dtype, "out", self.kernel_init)(attended.reshape(batch * length, width))


class FirstTokenAttention(nn.Module):
    """[B * L, D] -> [B, D]: what `SelfAttention` gives of each text's first token, from the same parameters.

    With one query a text no token needs a key or a value of its own: <q, W_k x> = <W_k^T q, x>, and the softmax drops what the
    key's bias adds; sum_j w_j (W_v x_j + b_v) = W_v sum_j w_j x_j + b_v. So both projections are done once a text and head.
    """

    heads: int
    dtype: Dtype
    kernel_init: Callable = _init

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        batch, length = mask.shape
        width = x.shape[-1]
        tokens = x.reshape(batch, length, width)
        (key, _), (value, value_bias) = (
            _Affine(width, self.dtype, self.kernel_init, name=name)() for name in ("key", "value")
        )
        key, value = (kernel.reshape(width, self.heads, -1) for kernel in (key, value))  # [D, H, D / H]
        query = _dense(width, self.dtype, "query", self.kernel_init)(tokens[:, 0]) * (width // self.heads) ** -0.5
        query = jnp.einsum("bhd,whd->bhw", query.reshape(batch, self.heads, -1), key)
        logits = jnp.einsum("bhw,blw->bhl", query, tokens, preferred_element_type=jnp.float32)
        if self.is_mutable_collection("intermediates"):  # else the weights are never made as such
            self.sow("intermediates", WEIGHTS, nn.softmax(jnp.where(mask[:, None], logits, -1e9)))  # [B, H, L]
        attended = _softmax_mean("bhl,blw->bhw", logits, mask[:, None], tokens)
        attended = jnp.einsum("bhw,whd->bhd", attended, value).reshape(batch, width) + value_bias
        return _dense(width, self.dtype, "out", self.kernel_init)(attended)


class _Affine(nn.Module):
    """(kernel [width, width], bias [width]) as `_dense` has them, for those who multiply in another order."""

    width: int
    dtype: Dtype
    kernel_init: Callable

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, (self.width, self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


def masked_mean(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, D] mean of `tokens` [B, N, D] where `mask` [B, N]; summed in float32; zeros where nothing is valid."""
    weight = mask[..., None].astype(jnp.float32)
    total = (tokens.astype(jnp.float32) * weight).sum(axis=1)
    return (total / jnp.maximum(weight.sum(axis=1), 1.0)).astype(tokens.dtype)


def _dense(width: int, dtype: Dtype, name: str, kernel_init: Callable = _init) -> nn.Dense:
    return nn.Dense(width, dtype=dtype, kernel_init=kernel_init, name=name)


class Embed(nn.Embed):
    """`nn.Embed` whose gradient is that of `gather.rows`: texts begin with one word, and end with padding."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """[*, D] the rows `inputs` [*] of the embedding."""
        return super().__call__(inputs) if self.num_embeddings == 1 else gather.rows(self.embedding, inputs)


def _embed(rows: int, width: int, name: str) -> Embed:
    return Embed(rows, width, embedding_init=_init, name=name)
