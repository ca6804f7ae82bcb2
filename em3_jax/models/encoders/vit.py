"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929) as published checkpoints have them.

ViT itself, DINOv2 (Oquab et al. 2023, arXiv:2304.07193) with and without registers, and the vision
towers of CLIP (Radford et al. 2021, arXiv:2103.00020) and SigLIP (Zhai et al. 2023, arXiv:2303.15343).
Letters: B batch, Y and X rows and columns of the patch grid, N tokens of an image, D width, H heads.
There is no dropout and no stochastic depth.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part, between


class Vit(nn.Module):
    """The token states of a batch of images of any size: class token, registers, patches in reading order.

    Attributes:
      width: D.
      layers, heads: blocks, and attention heads of each.
      mlp_width: hidden width of the feed-forward layers.
      patch: rows and columns of pixels in a patch.
      grid: (Y, X) of the position table; it is interpolated for images of other sizes.
      antialias: whether interpolation smooths where it shrinks, as for DINOv2 with registers alone.
      class_token: whether a token that is no patch comes first.
      registers: tokens that only serve the others; they come second and have no position.
      patch_bias, qkv_bias: whether the patch embedding, and queries, keys and values, have a bias.
      layer_scale: whether each branch has a factor a number (Touvron et al. 2021, arXiv:2103.17239).
      gated: a feed-forward layer is silu(x W1) * (x W2) (Shazeer 2020, arXiv:2002.05202).
      norm_before: a LayerNorm before the blocks, as CLIP's.
      norm_of: "tokens": the last LayerNorm is of all tokens; "pooled": of what is pooled alone.
      pooler: how `EncoderOutput.pooler` is made of the tokens: "class": it is the class token;
        "dense": tanh of a layer on it; "attention": of a probe over all, as SigLIP's; "": None.
      norm_eps: epsilon of all LayerNorms.
      activation: of the feed-forward layers.
      dtype: of the activations; parameters are float32.
      first, last: names of parts, see `parts`: the one to begin with, which then reads a map in the
        place of images, and the one before which to stop, whose input is then the result; "" = the ends.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch: tuple[int, int]
    grid: tuple[int, int]
    class_token: bool = True
    registers: int = 0
    antialias: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    layer_scale: bool = False
    gated: bool = False
    norm_before: bool = False
    norm_of: str = "tokens"
    pooler: str = ""
    norm_eps: float = 1e-6
    activation: Callable[[jax.Array], jax.Array] = nn.gelu
    dtype: Any = jnp.float32
    first: str = ""
    last: str = ""

    def parts(self) -> tuple[Part, ...]:
        """embedding (of patches and positions), layer0, layer1, .., norm (and what pools)."""
        before = ("patch_embedding", "position_embedding", "class_token", "registers", "norm_before")
        layers = (Part(f"layer{i}", (f"layer{i}",)) for i in range(self.layers))
        after = Part("norm", ("norm", "head", "pooler"), False)
        return between((Part("embedding", before, False), *layers, after), self.first, self.last)

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput | jax.Array:
        """The encoded images, in `dtype`. `mean` is that of the patches alone.

        Args:
          images: [B, rows, columns, channels] float, normalised as the checkpoint expects. What is
            over when the patches have been cut is left out, below and on the right.
        """
        del given  # there is nothing to read
        x, parts = images, {part.name for part in self.parts()}
        if "embedding" in parts:
            x = self._embedded(images)
        for i in range(self.layers):
            if f"layer{i}" not in parts:
                continue
            x = checkpoint_name(x, f"layer{i}")
            x = Block(
                self.heads, self.mlp_width, self.qkv_bias, self.layer_scale, self.gated,
                self.norm_eps, self.activation, self.dtype, name=f"layer{i}",
            )(x)  # fmt: skip
        if "norm" not in parts:
            return x
        x, norm = checkpoint_name(x, "norm"), self._norm("norm")
        x = norm(x) if self.norm_of == "tokens" else x
        patches = x[:, int(self.class_token) + self.registers :]
        mean = patches.mean(axis=1, dtype=jnp.float32).astype(self.dtype)
        first = x[:, 0] if self.class_token else None
        mask = jnp.ones(x.shape[:2], bool)
        return EncoderOutput(x, mask, cls=first, mean=mean, pooler=self._pooled(x, norm))

    def _embedded(self, images: jax.Array) -> jax.Array:
        """[B, N, D] the tokens that the first block reads."""
        embed = nn.Conv(
            self.width, self.patch, self.patch, padding="VALID", use_bias=self.patch_bias,
            dtype=self.dtype, name="patch_embedding",
        )  # fmt: skip
        x = embed(images)  # [B, Y, X, D]
        grid = (x.shape[1], x.shape[2])
        x = self._with_positions(x.reshape(len(x), -1, self.width), grid)
        return self._norm("norm_before")(x) if self.norm_before else x

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name=name)

    def _with_positions(self, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """[B, N, D] the tokens of patches [B, Y * X, D], with their positions."""
        rows, columns = self.grid
        extra = int(self.class_token)
        table = self.param("position_embedding", _init, (extra + rows * columns, self.width))
        of_patches = interpolated(table[extra:].reshape(rows, columns, -1), grid, self.antialias)
        x = patches + of_patches.reshape(-1, self.width).astype(self.dtype)
        before = []
        if self.class_token:
            before.append(self.param("class_token", _init, (self.width,))[None] + table[:1])
        if self.registers:
            before.append(self.param("registers", _init, (self.registers, self.width)))
        spread = [jnp.broadcast_to(one.astype(self.dtype), (len(x), *one.shape)) for one in before]
        return jnp.concatenate([*spread, x], axis=1)

    def _pooled(self, x: jax.Array, norm: Callable[[jax.Array], jax.Array]) -> jax.Array | None:
        if self.pooler == "attention":
            parts = (self.heads, self.mlp_width, self.norm_eps, self.activation, self.dtype)
            return AttentionPooling(*parts, name="head")(x)
        if self.pooler == "dense":
            return nn.tanh(_dense(self.width, self.dtype, "pooler")(x[:, 0]))
        if self.pooler == "class":
            return x[:, 0] if self.norm_of == "tokens" else norm(x[:, 0])
        return None


class Block(nn.Module):
    """[B, N, D] -> [B, N, D]: attention and feed-forward, with LayerNorm before, residual after each."""

    heads: int
    mlp_width: int
    qkv_bias: bool
    layer_scale: bool
    gated: bool
    norm_eps: float
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]

        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.LayerNorm(self.norm_eps, dtype=self.dtype, name=name)(y)

        def scaled(name: str, y: jax.Array) -> jax.Array:
            if not self.layer_scale:
                return y
            return y * self.param(name, nn.initializers.ones, (width,)).astype(self.dtype)

        y = norm("attention_norm", x)
        query, key, value = (
            _dense(width, self.dtype, f"attention_{name}", self.qkv_bias)(y) for name in ("query", "key", "value")
        )
        y = attend(query, key, value, self.heads)
        x += scaled("attention_scale", _dense(width, self.dtype, "attention_out")(y))

        y = norm("mlp_norm", x)
        if self.gated:
            gate, y = jnp.split(_dense(2 * self.mlp_width, self.dtype, "mlp_in")(y), 2, axis=-1)
            y = nn.silu(gate) * y
        else:
            y = self.activation(_dense(self.mlp_width, self.dtype, "mlp_in")(y))
        return x + scaled("mlp_scale", _dense(width, self.dtype, "mlp_out")(y))


class AttentionPooling(nn.Module):
    """[B, N, D] -> [B, D]: attention of one learnt probe over all tokens, then a feed-forward layer."""

    heads: int
    mlp_width: int
    norm_eps: float
    activation: Callable[[jax.Array], jax.Array]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        probe = self.param("probe", _init, (width,)).astype(self.dtype)[None, None]
        projected = _dense(3 * width, self.dtype, "in")  # of query, key and value, one after the other
        query = projected(probe)[..., :width]
        key, value = jnp.split(projected(x)[..., width:], 2, axis=-1)
        query = jnp.broadcast_to(query, (len(x), 1, width))
        y = _dense(width, self.dtype, "out")(attend(query, key, value, self.heads))
        z = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(y)
        z = self.activation(_dense(self.mlp_width, self.dtype, "mlp_in")(z))
        return (y + _dense(width, self.dtype, "mlp_out")(z))[:, 0]


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> jax.Array:
    """[B, M, D] softmax(q k^T / sqrt(D / H)) v of queries [B, M, D] over keys and values [B, N, D]; f32 weights."""
    batch, _, width = query.shape

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(batch, -1, heads, width // heads)

    f32 = jnp.float32
    scores = jnp.einsum("bmhd,bnhd->bhmn", split(query), split(key), preferred_element_type=f32)
    weights = nn.softmax(scores * (width // heads) ** -0.5, axis=-1).astype(value.dtype)
    result = jnp.einsum("bhmn,bnhd->bmhd", weights, split(value), preferred_element_type=f32)
    return result.astype(value.dtype).reshape(batch, -1, width)


def interpolated(table: jax.Array, grid: tuple[int, int], antialias: bool) -> jax.Array:
    """[Y, X, D] positions for a grid: a table [Y', X', D] resized bicubically, as PyTorch does it."""
    if antialias:  # for which PyTorch has another kernel, the one that JAX has
        return jax.image.resize(table, (*grid, table.shape[2]), "cubic", antialias=True)
    for axis, size in enumerate(grid):
        if table.shape[axis] != size:
            weights = bicubic(table.shape[axis], size)
            table = jnp.moveaxis(jnp.tensordot(weights, table, (1, axis)), 0, axis)
    return table


def bicubic(size: int, wanted: int) -> np.ndarray:
    """[wanted, size] f32 weights of bicubic resizing along one axis.

    Keys' kernel with a = -0.75, pixel centres at halves, no antialiasing, and edges repeated, which
    is PyTorch's; `jax.image.resize` has a = -0.5.
    """
    a = -0.75
    place = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    first = np.floor(place).astype(int)
    result = np.zeros((wanted, size))
    for offset in range(-1, 3):
        t = np.abs(place - (first + offset))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(result, (np.arange(wanted), np.clip(first + offset, 0, size - 1)), weight)
    return result.astype(np.float32)


_init = nn.initializers.truncated_normal(0.02)


def _dense(width: int, dtype: Any, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(width, use_bias=use_bias, dtype=dtype, kernel_init=_init, name=name)
