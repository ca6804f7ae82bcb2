"""ResNet v1 (He et al. 2015, arXiv:1512.03385): the stride is that of the 3 x 3 convolution, or of the first one."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part, between
from em3_jax.models.encoders.cnn import ConvNorm, output


class ResNet(nn.Module):
    """The last map of a batch of images of any size, a token a place, and its mean.

    Attributes:
      stem: channels of the first convolution, 7 x 7 with stride 2, which a 3 x 3 maximum follows.
      depths, widths: blocks, and channels of their results, of each stage.
      bottleneck: blocks of three convolutions, of which two are 1 x 1 and the middle ones have a
        quarter of the channels; else of two.
      first_strides: whether the first stage halves the map too.
      stride_first: of a bottleneck, the first convolution has the stride, as in the paper.
      epsilon: of the normalisations.
      activation: after the stem and after each block; within blocks it is ReLU, as in transformers.
      dtype: of the activations; parameters are float32.
      first, last: names of parts, see `parts`: the one to begin with, which then reads a map in the
        place of images, and the one before which to stop, whose input is then the result; "" = the ends.
    """

    stem: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = True
    first_strides: bool = False
    stride_first: bool = False
    epsilon: float = 1e-5
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Any = jnp.float32
    first: str = ""
    last: str = ""

    def parts(self) -> tuple[Part, ...]:
        """stem, stage0_block0, stage0_block1, ..; there is no head."""
        blocks = (f"stage{stage}_block{i}" for stage, depth in enumerate(self.depths) for i in range(depth))
        within = ("conv0", "conv1", "conv2", "shortcut")
        of_blocks = (Part(block, tuple(f"{block}_{one}" for one in within)) for block in blocks)
        return between((Part("stem", ("stem",), False), *of_blocks), self.first, self.last)

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput | jax.Array:
        """The encoded images, in `dtype`. `mean` is over the last map.

        Args:
          images: [B, rows, columns, channels] float, normalised as the checkpoint expects.
          given: see `Given`.
        """
        x, parts = images, {part.name for part in self.parts()}
        if "stem" in parts:
            x = self._conv(x, given, "stem", self.stem, 7, 2, activation=self.activation)
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for i in range(depth):
                if f"stage{stage}_block{i}" not in parts:
                    continue
                stride = 2 if i == 0 and (stage or self.first_strides) else 1
                x = checkpoint_name(x, f"stage{stage}_block{i}")
                x = self._block(x, given, f"stage{stage}_block{i}", width, stride)
        return x if self.last else output(x)

    def _block(self, x: jax.Array, given: Given, name: str, width: int, stride: int) -> jax.Array:
        shortcut = x
        if stride > 1 or x.shape[-1] != width:
            shortcut = self._conv(x, given, f"{name}_shortcut", width, 1, stride, activation=None)
        if self.bottleneck:
            first, second = (stride, 1) if self.stride_first else (1, stride)
            x = self._conv(x, given, f"{name}_conv0", width // 4, 1, first)
            x = self._conv(x, given, f"{name}_conv1", width // 4, 3, second)
            x = self._conv(x, given, f"{name}_conv2", width, 1, activation=None)
        else:
            x = self._conv(x, given, f"{name}_conv0", width, 3, stride)
            x = self._conv(x, given, f"{name}_conv1", width, 3, activation=None)
        return self.activation(x + shortcut)

    def _conv(
        self, x: jax.Array, given: Given, name: str, features: int, size: int, stride: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = nn.relu,
    ) -> jax.Array:  # fmt: skip
        made = ConvNorm(features, size, stride, size // 2, self.epsilon, activation, self.dtype, name=name)
        result: jax.Array = made(x, given)
        return result
