"""Convolutional nets: ResNet as Hugging Face and as torchvision write it, MobileNetV2, EfficientNet-Lite.

MobileNetV3 and VGG as torchvision writes them.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core.errors import UserError
from em3_jax.features.families.checks import (
    FLAG,
    ID,
    NUMBER,
    SIZE,
    SIZES,
    Config,
    Kind,
    Where,
    activation,
    one_of,
    value,
)
from em3_jax.features.families.family import LEAVES, NORMS, Family, image_example
from em3_jax.models.encoders.cnn import Inverted, InvertedResiduals
from em3_jax.models.encoders.mobilenet_v3 import Block, MobileNetV3
from em3_jax.models.encoders.resnet import ResNet
from em3_jax.models.encoders.vgg import Vgg

_COUNTERS = r".*num_batches_tracked"

# ---- ResNet ------------------------------------------------------------------------------------------


def _build_resnet(config: Config, where: Where, pooler: bool, dtype: Any) -> ResNet:
    del pooler  # a mean, without parameters
    of = functools.partial(value, config, where)
    widths, depths = of("hidden_sizes", SIZES), of("depths", SIZES)
    if not depths or len(depths) != len(widths):
        raise UserError(f"{where}: depths {depths} and hidden_sizes {widths} do not fit; mend one of them")
    return ResNet(
        stem=of("embedding_size", SIZE, 64),
        depths=tuple(depths),
        widths=tuple(widths),
        bottleneck=of("layer_type", one_of("bottleneck", "basic"), "bottleneck") == "bottleneck",
        first_strides=of("downsample_in_first_stage", FLAG, False),
        stride_first=of("downsample_in_bottleneck", FLAG, False),
        activation=activation(config, where, "relu"),
        dtype=dtype,
    )


RESNET = Family(
    modality="image",
    build=_build_resnet,
    example=image_example,
    names=(
        (r"^stem/", "embedder.embedder/"),
        (r"^stage(\d+)_block(\d+)_conv(\d)/", r"encoder.stages.\1.layers.\2.layer.\3/"),
        (r"^stage(\d+)_block(\d+)_shortcut/", r"encoder.stages.\1.layers.\2.shortcut/"),
        (r"/conv/", ".convolution/"),
        (r"/norm/", ".normalization/"),
        *NORMS,
        *LEAVES,
    ),
    aliases=(
        (r"^resnet\.", ""),
        # torchvision's names; its layers and convolutions count from 1.
        (r"^conv1\.", "embedder.embedder.convolution."),
        (r"^bn1\.", "embedder.embedder.normalization."),
        (r"^layer([1-9])\.", lambda found: f"encoder.stages.{int(found[1]) - 1}.layers."),
        (r"\.conv([1-3])\.", lambda found: f".layer.{int(found[1]) - 1}.convolution."),
        (r"\.bn([1-3])\.", lambda found: f".layer.{int(found[1]) - 1}.normalization."),
        (r"\.downsample\.0\.", ".shortcut.convolution."),
        (r"\.downsample\.1\.", ".shortcut.normalization."),
    ),
    ignorable=rf"{_COUNTERS}|(classifier|fc)\..*",
)

# ---- Nets of inverted residuals ----------------------------------------------------------------------

_NORM_NAMES = ((r"/conv/", ".convolution/"), (r"/norm/", ".normalization/"), *NORMS, *LEAVES)
_V2 = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_LITE = (
    (1, 1, 3, 1, 16), (2, 6, 3, 2, 24), (2, 6, 5, 2, 40), (3, 6, 3, 2, 80),
    (3, 6, 5, 1, 112), (4, 6, 5, 2, 192), (1, 6, 3, 1, 320),
)  # fmt: skip
_LITE_SIZES = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 280), (1.4, 1.8, 300))
LITE_IMAGE_SIZES = tuple(size for _, _, size in _LITE_SIZES)
"""Rows and columns of the images that each variant of EfficientNet-Lite was trained on."""


def rounded(channels: float, divisor: int = 8, least: int | None = None) -> int:
    """The multiple of `divisor` next to a number of channels, not more than a tenth below it."""
    least = divisor if least is None else least
    result = max(least, int(channels + divisor / 2) // divisor * divisor)
    return result + divisor if result < 0.9 * channels else result


def _build_mobilenet_v2(config: Config, where: Where, pooler: bool, dtype: Any) -> InvertedResiduals:
    del pooler
    of = functools.partial(value, config, where)
    of("output_stride", one_of(32), 32)
    of("first_layer_is_expansion", one_of(True), True)
    expand, factor = of("expand_ratio", NUMBER, 6.0), of("depth_multiplier", NUMBER, 1.0)
    channels = functools.partial(rounded, divisor=of("depth_divisible_by", SIZE, 8), least=of("min_depth", SIZE, 8))
    blocks = [Inverted(1, 3, 1, channels(16 * factor))]
    for features, repeats, stride in _V2:
        each = [stride, *(repeats - 1) * [1]]
        blocks += [Inverted(expand, 3, one, channels(features * factor)) for one in each]
    fine = of("finegrained_output", FLAG, True) and factor < 1
    return InvertedResiduals(
        stem=channels(32 * factor),
        blocks=tuple(blocks),
        head=1280 if fine else channels(1280 * factor),
        rounded=channels,
        padding="same" if of("tf_padding", FLAG, True) else 1,
        epsilon=of("layer_norm_eps", NUMBER, 1e-3),
        activation=activation(config, where, "relu6"),
        dtype=dtype,
    )


MOBILENET_V2 = Family(
    modality="image",
    build=_build_mobilenet_v2,
    example=image_example,
    names=(
        (r"^stem/", "conv_stem.first_conv/"),
        (r"^block0_depthwise/", "conv_stem.conv_3x3/"),
        (r"^block0_project/", "conv_stem.reduce_1x1/"),
        (r"^block(\d+)_", lambda found: f"layer.{int(found[1]) - 1}."),
        (r"\.expand/", ".expand_1x1/"),
        (r"\.depthwise/", ".conv_3x3/"),
        (r"\.project/", ".reduce_1x1/"),
        (r"^head/", "conv_1x1/"),
        *_NORM_NAMES,
    ),
    aliases=((r"^mobilenet_v2\.", ""),),
    ignorable=rf"{_COUNTERS}|classifier\..*",
)


def _build_efficientnet_lite(config: Config, where: Where, pooler: bool, dtype: Any) -> InvertedResiduals:
    del pooler
    variant = Kind("0, 1, 2, 3 or 4", lambda v: ID.holds(v) and v < len(_LITE_SIZES))
    width, depth, _ = _LITE_SIZES[value(config, where, "variant", variant)]
    blocks = []
    for stage, (repeats, expand, size, stride, features) in enumerate(_LITE):
        ends = stage in (0, len(_LITE) - 1)  # which do not grow in depth
        each = [stride, *((repeats if ends else math.ceil(repeats * depth)) - 1) * [1]]
        blocks += [Inverted(expand, size, one, rounded(features * width)) for one in each]
    return InvertedResiduals(
        stem=32, blocks=tuple(blocks), head=1280, epsilon=1e-3, activation=nn.relu6, dtype=dtype
    )  # fmt: skip


EFFICIENTNET_LITE = Family(
    modality="image",
    build=_build_efficientnet_lite,
    example=image_example,
    names=(
        (r"^stem/conv/", "_conv_stem/"),
        (r"^stem/norm/", "_bn0/"),
        (r"^head/conv/", "_conv_head/"),
        (r"^head/norm/", "_bn1/"),
        (r"^block(\d+)_expand/conv/", r"_blocks.\1._expand_conv/"),
        (r"^block(\d+)_expand/norm/", r"_blocks.\1._bn0/"),
        (r"^block(\d+)_depthwise/conv/", r"_blocks.\1._depthwise_conv/"),
        (r"^block(\d+)_depthwise/norm/", r"_blocks.\1._bn1/"),
        (r"^block(\d+)_project/conv/", r"_blocks.\1._project_conv/"),
        (r"^block(\d+)_project/norm/", r"_blocks.\1._bn2/"),
        *NORMS,
        *LEAVES,
    ),
    aliases=(),
    ignorable=rf"{_COUNTERS}|_fc\..*",
)

# ---- MobileNetV3 -------------------------------------------------------------------------------------

# (size, channels between, features, squeeze-and-excitation, hard-swish, stride) of each block: tables
# 1 and 2 of the paper.
_V3 = {
    "large": (
        (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2),
        (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1),
        (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
        (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
    ),
    "small": (
        (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2),
        (5, 240, 40, 1, 1, 1), (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1),
        (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1),
    ),
}  # fmt: skip


def _build_mobilenet_v3(config: Config, where: Where, pooler: bool, dtype: Any) -> MobileNetV3:
    del pooler
    of = functools.partial(value, config, where)
    factor = of("width_mult", NUMBER, 1.0)
    blocks = []
    for size, wide, features, squeezes, hard_swish, stride in _V3[of("variant", one_of(*_V3))]:
        between = rounded(wide * factor)
        squeezed = rounded(between // 4) if squeezes else 0
        made = Block(between, size, stride, squeezed, rounded(features * factor), bool(hard_swish))
        blocks.append(made)
    head = 6 * blocks[-1].features
    return MobileNetV3(rounded(16 * factor), tuple(blocks), head, dtype=dtype)


MOBILENET_V3 = Family(
    modality="image",
    build=_build_mobilenet_v3,
    example=image_example,
    names=(
        (r"^features(\d+)_(\d)/fc", r"features.\1.block.\2.fc"),
        (r"^features(\d+)_(\d)/", r"features.\1.block.\2/"),
        (r"^features(\d+)/", r"features.\1/"),
        (r"/conv/", ".0/"),
        (r"/norm/", ".1/"),
        *NORMS,
        *LEAVES,
    ),
    aliases=(),
    ignorable=rf"{_COUNTERS}|classifier\..*",
)

# ---- VGG ---------------------------------------------------------------------------------------------


def _build_vgg(config: Config, where: Where, pooler: bool, dtype: Any) -> Vgg:
    of = functools.partial(value, config, where)
    depths, widths = of("depths", SIZES, Vgg.depths), of("hidden_sizes", SIZES, Vgg.widths)
    of("batch_norm", one_of(False), False)
    if not depths or len(depths) != len(widths):
        raise UserError(f"{where}: depths {depths} and hidden_sizes {widths} do not fit; mend one of them")
    fc6 = of("intermediate_size", SIZE, Vgg.fc6)
    return Vgg(tuple(depths), tuple(widths), fc6 if pooler else 0, dtype)


def _vgg_example(module: Vgg, config: Config) -> jax.Array:
    """[1, side, side, channels]: of smaller pictures the last map would have no place."""
    side = 2 ** len(module.depths)
    return jnp.zeros((1, side, side, value(config, "config.json", "num_channels", SIZE, 3)))


VGG = Family(
    modality="image",
    build=_build_vgg,
    example=_vgg_example,
    # The first fully connected layer, FC6, is what stands in the place of a pooler.
    names=((r"^features(\d+)/", r"features.\1/"), (r"^fc6/", "pooler.dense/"), *LEAVES),
    aliases=((r"^classifier\.0\.", "pooler.dense."),),
    ignorable=r"classifier\..*",
)
