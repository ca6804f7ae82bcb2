"""Convolutional image encoders: what they share, and nets of inverted residuals.

MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and EfficientNet-Lite (Tan and Le 2019,
arXiv:1905.11946, without squeeze-and-excitation, and with ReLU6) differ in sizes alone. Letters:
B batch, Y and X rows and columns, C channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from em3_jax.models.encoders import PLAIN, STATISTICS, EncoderOutput, Given, Part, between
from em3_jax.models.encoders.convolution import Window, convolve

Padding = str | int
"""Zeros on each side; or "same", TensorFlow's: as many as the next multiple of the stride needs, the odd one below."""


MOMENTUM = 0.9
"""Of running statistics: this much of the old, and the rest of a step's."""


class Norm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167); see `Given.trains` for its statistics.

    Mean and variance are of the valid images, biased, over all devices: the batch is one array, wherever it lies.

    Attributes:
      epsilon: is added to the variance.
      dtype: of the result; statistics are float32.
    """

    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, given: Given = PLAIN) -> jax.Array:
        """[B, Y, X, C] in `dtype`."""
        shape, (ones, zeros) = x.shape[-1:], (nn.initializers.ones, nn.initializers.zeros)
        scale, bias = self.param("scale", ones, shape), self.param("bias", zeros, shape)
        mean, var = self.param("mean", zeros, shape), self.param("var", ones, shape)
        mean, var = jax.lax.stop_gradient((mean, var))
        if given.trains is not None and given.trains("/".join((*self.path, "scale"))):
            found = _moments(x, given.mask)
            for name, old, new in (("mean", mean, found[0]), ("var", var, found[1])):
                kept = MOMENTUM * old + (1 - MOMENTUM) * jax.lax.stop_gradient(new)
                self.put_variable(STATISTICS, name, jnp.where(found[2] > 0, kept, old))
            mean, var = found[:2]
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return x * factor.astype(self.dtype) + offset.astype(self.dtype)


def _moments(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(mean [C], variance [C], how many places [] they are of) of x [B, Y, X, C] where mask [B]; 0, 0, 0 without any."""
    x = x.astype(jnp.float32)
    weight = jnp.ones(len(x)) if mask is None else mask.astype(jnp.float32)
    count = weight.sum() * x.shape[1] * x.shape[2]
    least = jnp.maximum(count, 1.0)
    mean = jnp.einsum("b,byxc->c", weight, x) / least
    squared = jnp.square(x - mean)
    return mean, jnp.einsum("b,byxc->c", weight, squared) / least, count


class Convolution(nn.Module):
    """[B, Y, X, C] -> [B, Y', X', features] in `dtype`, without bias; the kernel is that of `flax.linen.Conv`.

    Attributes:
      features: channels of the result.
      size: rows and columns of the kernel.
      window: how it moves.
      dtype: of the result; the kernel is float32.
    """

    features: int
    size: int
    window: Window
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = 1 if self.window.depthwise else x.shape[-1]
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.window)


class ConvNorm(nn.Module):
    """[B, Y, X, C] -> [B, Y', X', features]: convolution without bias, normalisation, activation.

    Attributes:
      features: channels of the result.
      size, stride: rows and columns of the window, and of its steps.
      padding: see `Padding`.
      depthwise: each channel has a window of its own; `features` is then C.
      epsilon: of the normalisation.
      activation: of the result; None leaves it.
      dtype: of the activations; parameters are float32.
    """

    features: int
    size: int
    stride: int
    padding: Padding
    epsilon: float
    activation: Callable[[jax.Array], jax.Array] | None
    dtype: Any
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, given: Given = PLAIN) -> jax.Array:
        rows, columns = (_padding(length, self.size, self.stride, self.padding) for length in x.shape[1:3])
        window = Window(self.stride, (rows, columns), self.depthwise)
        x = Convolution(self.features, self.size, window, self.dtype, name="conv")(x)
        x = Norm(self.epsilon, self.dtype, name="norm")(x, given)
        return x if self.activation is None else self.activation(x)


def _padding(length: int, size: int, stride: int, padding: Padding) -> tuple[int, int]:
    """(before, after) zeros along an axis."""
    if isinstance(padding, int):
        return padding, padding
    total = max((-(-length // stride) - 1) * stride + size - length, 0)
    return total // 2, total - total // 2


def output(x: jax.Array) -> EncoderOutput:
    """A map [B, Y, X, C] as what encoders give: a token a place, in reading order. `pooler` is `mean`."""
    tokens = x.reshape(len(x), -1, x.shape[-1])
    mean = tokens.mean(axis=1, dtype=jnp.float32).astype(x.dtype)
    mask = jnp.ones(tokens.shape[:2], bool)
    return EncoderOutput(tokens, mask, cls=None, mean=mean, pooler=mean)


class Inverted(NamedTuple):
    """A block: expanded by a 1 x 1 convolution, a depthwise one, and a 1 x 1 one that has no activation.

    Attributes:
      expand: channels between / channels before; 1 = the first convolution is not there.
      size, stride: of the depthwise convolution.
      features: channels of the result. The input is added where stride is 1 and it has as many.
    """

    expand: float
    size: int
    stride: int
    features: int


class InvertedResiduals(nn.Module):
    """The last map of a batch of images of any size, a token a place, and its mean.

    Attributes:
      stem: channels of the first convolution, 3 x 3 with stride 2.
      blocks: which follow.
      head: channels of the last convolution, 1 x 1.
      rounded: channels -> channels, of those between.
      padding: see `Padding`; an int is that of windows of 3.
      epsilon: of the normalisations.
      activation: everywhere.
      dtype: of the activations; parameters are float32.
      first, last: names of parts, see `parts`: the one to begin with, which then reads a map in the
        place of images, and the one before which to stop, whose input is then the result; "" = the ends.
    """

    stem: int
    blocks: tuple[Inverted, ...]
    head: int
    rounded: Callable[[float], int] = int
    padding: Padding = "same"
    epsilon: float = 1e-3
    activation: Callable[[jax.Array], jax.Array] = nn.relu6
    dtype: Any = jnp.float32
    first: str = ""
    last: str = ""

    def parts(self) -> tuple[Part, ...]:
        """stem, block0, block1, .., head."""
        names = ("expand", "depthwise", "project")
        blocks = (Part(f"block{i}", tuple(f"block{i}_{name}" for name in names)) for i in range(len(self.blocks)))
        every = (Part("stem", ("stem",), False), *blocks, Part("head", ("head",), False))
        return between(every, self.first, self.last)

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput | jax.Array:
        """The encoded images, in `dtype`. `mean` is over the last map.

        Args:
          images: [B, rows, columns, channels] float, normalised as the checkpoint expects.
          given: see `Given`.
        """
        x, parts = images, {part.name for part in self.parts()}
        if "stem" in parts:
            x = self._conv(x, given, "stem", self.stem, size=3, stride=2)
        for i, block in enumerate(self.blocks):
            if f"block{i}" not in parts:
                continue
            x = checkpoint_name(x, f"block{i}")
            before, between = x, self.rounded(x.shape[-1] * block.expand)
            if block.expand != 1:
                x = self._conv(x, given, f"block{i}_expand", between)
            options: dict[str, Any] = {"size": block.size, "stride": block.stride, "depthwise": True}
            x = self._conv(x, given, f"block{i}_depthwise", between, **options)
            x = self._conv(x, given, f"block{i}_project", block.features, linear=True)
            x = x + before if block.stride == 1 and before.shape == x.shape else x
        if "head" not in parts:
            return x
        return output(self._conv(checkpoint_name(x, "head"), given, "head", self.head))

    def _conv(
        self, x: jax.Array, given: Given, name: str, features: int, size: int = 1, stride: int = 1,
        depthwise: bool = False, linear: bool = False,
    ) -> jax.Array:  # fmt: skip
        padding = size // 2 if isinstance(self.padding, int) else self.padding
        activation = None if linear else self.activation
        made = ConvNorm(
            features, size, stride, padding, self.epsilon, activation, self.dtype, depthwise, name=name
        )  # fmt: skip
        result: jax.Array = made(x, given)
        return result
