"""Swin v1 image encoder (Liu et al. 2021, arXiv:2103.14030), in the variant that transformers checkpoints hold.

Letters: B batch, Y and X rows and columns of the patch grid, D width, H heads, W windows of an image, N = w * w patches
of a window. There is no dropout and no stochastic depth.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from em3_jax.core import gather
from em3_jax.core.errors import UserError
from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part

Dtype = Any
ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)  # on the device, or on the host

# The norms of the patch embedding and of the merges do not follow the configured epsilon in published checkpoints.
FIXED_NORM_EPS = 1e-5


class Swin(nn.Module):
    """The patch states and their mean for a batch of images of any size.

    Attributes:
      width: D of the first stage; it doubles with each stage.
      depths, heads: blocks and attention heads of each stage.
      window: patches along one side of an attention window.
      patch: rows and columns of pixels in a patch.
      mlp_ratio: hidden width of the feed-forward layers / width.
      qkv_bias: whether queries, keys and values have a bias.
      position_grid: (rows, columns) of the absolute position table; None where the encoder has none.
      norm_eps: epsilon of the LayerNorms of the blocks and of the last one.
      activation: of the feed-forward layers.
      dtype: of the activations; parameters are float32.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    patch: tuple[int, int] = (4, 4)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    position_grid: tuple[int, int] | None = None
    norm_eps: float = 1e-5
    activation: Callable[[jax.Array], jax.Array] = functools.partial(nn.gelu, approximate=False)
    dtype: Dtype = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """embedding (of patches and positions), stage0_block0, .., norm; a merge belongs to the block after it."""
        blocks = []
        for stage, depth in enumerate(self.depths):
            for i in range(depth):
                merge = (f"merge{stage - 1}",) if stage and i == 0 else ()
                blocks.append(Part(f"stage{stage}_block{i}", (*merge, f"stage{stage}_block{i}")))
        before = ("patch_embedding", "patch_norm", "position_embedding")
        return (Part("embedding", before, False), *blocks, Part("norm", ("norm",), False))

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """The encoded images, in `dtype`. `pooler` is `mean`: Swin's pooling has no parameters.

        Args:
          images: [B, rows, columns, channels] float, normalised as the checkpoint expects. Edges are padded with zeros
            to whole patches, windows and merges.

        Raises:
          UserError: the encoder has absolute positions and they are for another image size.
        """
        del given  # there is nothing to read
        x = nn.Conv(self.width, self.patch, self.patch, padding="VALID", dtype=self.dtype, name="patch_embedding")(
            pad_to_multiple(images, *self.patch)
        )  # [B, Y, X, D]
        x = nn.LayerNorm(FIXED_NORM_EPS, dtype=self.dtype, name="patch_norm")(x)
        if self.position_grid is not None:
            x += self._positions(x.shape[1:3], self.position_grid)
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            x = checkpoint_name(x, f"stage{stage}_block0")
            if stage > 0:
                x = Merge(self.dtype, name=f"merge{stage - 1}")(x)  # [B, Y / 2, X / 2, 2 * D]
            for i in range(depth):
                x = checkpoint_name(x, f"stage{stage}_block{i}") if i else x
                x = Block(
                    heads=heads,
                    window=self.window,
                    shifted=i % 2 == 1,
                    mlp_ratio=self.mlp_ratio,
                    qkv_bias=self.qkv_bias,
                    norm_eps=self.norm_eps,
                    activation=self.activation,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{i}",
                )(x)

        tokens = checkpoint_name(x.reshape(x.shape[0], -1, x.shape[-1]), "norm")  # [B, Y * X, D]
        tokens = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(tokens)
        mean = tokens.mean(axis=1, dtype=jnp.float32).astype(self.dtype)
        return EncoderOutput(tokens, jnp.ones(tokens.shape[:2], bool), cls=None, mean=mean, pooler=mean)

    def _positions(self, grid: tuple[int, int], position_grid: tuple[int, int]) -> jax.Array:
        """[Y, X, D] absolute position embeddings."""
        rows, columns = position_grid
        if grid != (rows, columns):
            height, width = rows * self.patch[0], columns * self.patch[1]
            raise UserError(
                f"images have {grid} patches, but this encoder has absolute positions: resize to {height} x {width}"
            )
        table = self.param("position_embedding", _init, (1, rows * columns, self.width))
        return table.reshape(rows, columns, self.width).astype(self.dtype)


class Block(nn.Module):
    """[B, Y, X, D] -> [B, Y, X, D]: window attention and feed-forward, with LayerNorm before, residual after each."""

    heads: int
    window: int
    shifted: bool
    mlp_ratio: float
    qkv_bias: bool
    norm_eps: float
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        _, rows, columns, width = x.shape
        window, shift = clamp_window(rows, columns, self.window, self.shifted)

        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x)
        y = pad_to_multiple(y, window, window)
        y = jnp.roll(y, (-shift, -shift), axis=(1, 2)) if shift else y
        _, below, across, _ = y.shape
        regions = shift_regions(below, across, window, shift) if shift else None
        y = WindowAttention(self.heads, self.window, self.qkv_bias, self.dtype, name="attention")(
            to_windows(y, window), regions
        )
        y = from_windows(y, below, across)
        y = jnp.roll(y, (shift, shift), axis=(1, 2)) if shift else y
        x += y[:, :rows, :columns]

        y = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x)
        y = y.reshape(-1, width)  # [B * Y * X, D]
        y = self.activation(_dense(int(self.mlp_ratio * width), self.dtype, "mlp_in")(y))
        return x + _dense(width, self.dtype, "mlp_out")(y).reshape(x.shape)


class WindowAttention(nn.Module):
    """[B, W, N, D] -> [B, W, N, D]: attention within windows, softmax(q k^T / sqrt(D / H) + bias) v (eq. 4).

    Attributes:
      heads: H.
      window: the configured window, which sets the size of the bias table. The windows seen may be smaller (a small
        image): the bias depends on the offset of two patches only, so they use the middle of the table.
    """

    heads: int
    window: int
    qkv_bias: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array, regions: np.ndarray | None) -> jax.Array:
        """Attention over the patches of each window; `regions` [W, N] numbers patches that must not see each other."""
        batch, windows, patches, width = x.shape
        flat = x.reshape(-1, width)  # [B * W * N, D]

        def split(name):
            y = _dense(width, self.dtype, name, self.qkv_bias)(flat)
            return y.reshape(batch, windows, patches, self.heads, -1).transpose(0, 1, 3, 2, 4)  # [B, W, H, N, D / H]

        query, key, value = split("query") * (width // self.heads) ** -0.5, split("key"), split("value")
        table = self.param("relative_position_bias", _init, ((2 * self.window - 1) ** 2, self.heads))
        index = relative_positions(round(patches**0.5), self.window)  # [N, N]
        bias = jnp.moveaxis(gather.rows(table, jnp.asarray(index)), -1, 0)  # [H, N, N]
        if regions is not None:
            apart = regions[:, :, None] != regions[:, None, :]  # [W, N, N]
            bias = bias + jnp.where(apart, -100.0, 0.0)[:, None]  # [W, H, N, N]
        logits = jnp.einsum("bwhqd,bwhkd->bwhqk", query, key, preferred_element_type=jnp.float32) + bias
        weights = jnp.exp(
            logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
        )  # divided by their sum after the product
        y = jnp.einsum("bwhqk,bwhkd->bwhqd", weights.astype(self.dtype), value, preferred_element_type=jnp.float32)
        y = (y / weights.sum(axis=-1, keepdims=True)).astype(self.dtype).transpose(0, 1, 3, 2, 4)
        return _dense(width, self.dtype, "out")(y.reshape(-1, width)).reshape(x.shape)


class Merge(nn.Module):
    """[B, Y, X, D] -> [B, ceil(Y / 2), ceil(X / 2), 2 * D]: 2 x 2 patches become one."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = pad_to_multiple(x, 2, 2)
        corners = [x[:, row::2, column::2] for column in range(2) for row in range(2)]  # the checkpoints' order
        x = nn.LayerNorm(FIXED_NORM_EPS, dtype=self.dtype, name="norm")(jnp.concatenate(corners, axis=-1))
        batch, rows, columns, width = x.shape
        x = _dense(width // 2, self.dtype, "reduction", use_bias=False)(x.reshape(-1, width))
        return x.reshape(batch, rows, columns, -1)


def clamp_window(rows: int, columns: int, window: int, shifted: bool) -> tuple[int, int]:
    """(window, shift) of a block: a grid no larger than the window is one unshifted window along its short side."""
    if min(rows, columns) <= window:
        return min(rows, columns), 0
    return window, window // 2 if shifted else 0


def pad_to_multiple(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """`x` [B, Y, X, D] with zeros below and right, so that Y divides by `rows` and X by `columns`."""
    below, right = -x.shape[1] % rows, -x.shape[2] % columns
    return jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))) if below or right else x


def to_windows(x: ArrayT, window: int) -> ArrayT:
    """[B, Y, X, D] -> [B, W, N, D], windows and patches in reading order."""
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // window, window, columns // window, window, width)
    return x.swapaxes(2, 3).reshape(batch, -1, window * window, width)


def from_windows(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """[B, W, N, D] -> [B, Y, X, D], the inverse of `to_windows`."""
    batch, _, patches, width = x.shape
    window = round(patches**0.5)
    x = x.reshape(batch, rows // window, columns // window, window, window, width)
    return x.swapaxes(2, 3).reshape(batch, rows, columns, width)


def shift_regions(rows: int, columns: int, window: int, shift: int) -> np.ndarray:
    """[W, N] number of the image region a patch comes from: a shifted window may hold patches from opposite edges."""

    def along(size):
        i = np.arange(size)
        return (i >= size - window).astype(np.int32) + (i >= size - shift)

    regions = 3 * along(rows)[:, None] + along(columns)[None, :]
    return to_windows(regions[None, :, :, None], window)[0, :, :, 0]


def relative_positions(window: int, table_window: int) -> np.ndarray:
    """[N, N] row of the bias table for (query, key) patches of a `window`, in a table made for `table_window`."""
    i = np.arange(window)
    offset = i[:, None] - i[None, :] + table_window - 1  # [w, w], 0 .. 2 * table_window - 2
    index = offset[:, None, :, None] * (2 * table_window - 1) + offset[None, :, None, :]  # [w, w, w, w]: qy qx ky kx
    return index.reshape(window**2, window**2)


_init = nn.initializers.truncated_normal(0.02)


def _dense(width: int, dtype: Dtype, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(width, use_bias=use_bias, dtype=dtype, kernel_init=_init, name=name)
