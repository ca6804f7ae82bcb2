"""MobileNetV3 (Howard et al. 2019, arXiv:1905.02244).

Letters: B batch, Y and X rows and columns, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part
from em3_jax.models.encoders.cnn import ConvNorm, output


class Block(NamedTuple):
    """An inverted residual block: 1 x 1 up, depthwise, squeeze-and-excitation, 1 x 1 down.

    Attributes:
      between: channels of the depthwise convolution; nothing leads up to as many as there are.
      size, stride: of the depthwise convolution.
      squeezed: hidden width of the squeeze-and-excitation; 0 = there is none.
      features: channels of the result. The input is added where stride is 1 and it has as many.
      hard_swish: whether that is the activation; else ReLU.
    """

    between: int
    size: int
    stride: int
    squeezed: int
    features: int
    hard_swish: bool


class Excitation(nn.Module):
    """x [B, Y, X, C] scaled by channel: hard-sigmoid(W2 relu(W1 mean)).

    Attributes:
      hidden: width between.
      dtype: of the activations; parameters are float32.
    """

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mean = x.mean(axis=(1, 2), keepdims=True)
        mean = nn.relu(nn.Conv(self.hidden, (1, 1), dtype=self.dtype, name="fc1")(mean))
        return x * nn.hard_sigmoid(nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="fc2")(mean))


class MobileNetV3(nn.Module):
    """The last map of a batch of images of any size, a token a place, and its mean.

    Attributes:
      stem: channels of the first convolution, 3 x 3 with stride 2 and hard-swish.
      blocks: which follow.
      head: channels of the last convolution, 1 x 1 with hard-swish.
      epsilon: of the normalisations.
      dtype: of the activations; parameters are float32.
    """

    stem: int
    blocks: tuple[Block, ...]
    head: int
    epsilon: float = 1e-3
    dtype: Any = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """features0, the stem; features1, .., the blocks; and the last convolution, the head."""
        last = len(self.blocks) + 1
        blocks = (f"features{i}" for i in range(1, last))
        of_blocks = (Part(block, tuple(f"{block}_{k}" for k in range(4))) for block in blocks)
        stem, head = (Part(f"features{i}", (f"features{i}",), False) for i in (0, last))
        return (stem, *of_blocks, head)

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """The encoded images, in `dtype`. `mean` is over the last map.

        Args:
          images: [B, rows, columns, channels] float, normalised as the checkpoint expects.
          given: see `Given`.
        """
        x = self._conv(images, given, "features0", self.stem, 3, 2)
        for i, block in enumerate(self.blocks, 1):
            x = self._block(checkpoint_name(x, f"features{i}"), given, f"features{i}_", block)
        name = f"features{len(self.blocks) + 1}"
        return output(self._conv(checkpoint_name(x, name), given, name, self.head))

    def _block(self, x: jax.Array, given: Given, name: str, block: Block) -> jax.Array:
        """Its parts are numbered as in files, where one that is not there has no number."""
        before, number = x, 0
        activation = nn.hard_swish if block.hard_swish else nn.relu
        if block.between != x.shape[-1]:
            x = self._conv(x, given, f"{name}{number}", block.between, activation=activation)
            number += 1
        window = (block.between, block.size, block.stride)
        x = self._conv(x, given, f"{name}{number}", *window, activation, depthwise=True)
        if block.squeezed:
            number += 1
            x = Excitation(block.squeezed, self.dtype, name=f"{name}{number}")(x)
        x = self._conv(x, given, f"{name}{number + 1}", block.features, activation=None)
        return x + before if block.stride == 1 and before.shape == x.shape else x

    def _conv(
        self, x: jax.Array, given: Given, name: str, features: int, size: int = 1, stride: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = nn.hard_swish,
        depthwise: bool = False,
    ) -> jax.Array:  # fmt: skip
        options = (size // 2, self.epsilon, activation, self.dtype, depthwise)
        made = ConvNorm(features, size, stride, *options, name=name)
        result: jax.Array = made(x, given)
        return result
