"""Image encoders that train from scratch with the ranker, by name.

Each gives one vector of a picture, DICM's one of each stored vector. Letters: B batch, Y and X rows
and columns, C channels, n stored vectors of an item, E width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part
from em3_jax.models.encoders.cnn import ConvNorm
from em3_jax.models.encoders.gates import ChannelGate, SpatialGate
from em3_jax.models.encoders.vgg import Vgg

EPSILON = 1e-5
"""Of the normalisations, added to the variance."""


class Sizes(NamedTuple):
    """What all nets are built from; each uses what it knows.

    Attributes:
      widths: C of each stage of the residual net; each but the first halves the map.
      depth: blocks of a stage.
      stem_stride: of its first convolution.
      output: E, width of the vector of a picture.
      reduction: channels / hidden width of the MLP of a channel gate.
      category_width: of the embedding of a category.
      mlp: widths of the layers of DICM's MLP.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    depth: int = 1
    stem_stride: int = 1
    output: int = 32
    reduction: int = 4
    category_width: int = 8
    mlp: tuple[int, ...] = (256, 64, 12)


class Gates(NamedTuple):
    """Which gates stand at the end of each block, see `gates`.

    Attributes:
      with_max: whether the channel gate pools the maximum too.
      spatial: whether a spatial gate follows.
      category: whether they read the category.
    """

    with_max: bool
    spatial: bool
    category: bool


SE = Gates(with_max=False, spatial=False, category=False)
CBAM = Gates(with_max=True, spatial=True, category=False)
CSCNN = Gates(with_max=True, spatial=True, category=True)
HCCM = Gates(with_max=False, spatial=False, category=True)


def one_token(vector: jax.Array) -> EncoderOutput:
    """A vector of each picture [B, E] as what encoders give."""
    mask = jnp.ones((len(vector), 1), bool)
    return EncoderOutput(vector[:, None], mask, cls=None, mean=vector, pooler=vector)


class Cnn(nn.Module):
    """A residual net, two 3 x 3 convolutions a block (He et al. 2016, 1512.03385), and gates.

    Gates, if there are any, scale what a block adds, as in SE-ResNet and CBAM. All blocks share one
    embedding of the category. The vector is a linear layer of the mean of the last map.

    Attributes:
      sizes: see `Sizes`.
      gates: None = the plain net.
      categories: how many there are, 0 = unknown among them; read where the gates read them.
      dtype: of the activations; parameters are float32.
    """

    sizes: Sizes
    gates: Gates | None = None
    categories: int = 0
    dtype: Any = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """stem, with the embedding of the category, stage0_block0, .., head."""
        stages, depth = range(len(self.sizes.widths)), range(self.sizes.depth)
        blocks = [f"stage{stage}_block{i}" for stage in stages for i in depth]
        within = ("conv0", "conv1", "shortcut", "channels", "places")
        of_blocks = (Part(block, tuple(f"{block}_{one}" for one in within)) for block in blocks)
        stem = Part("stem", ("stem", "category"), False)
        return (stem, *of_blocks, Part("head", ("head",), False))

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """One token, in `dtype`; `mean` and `pooler` are it.

        Args:
          images: [B, Y, X, C] float, pictures or the maps of a lower net.
          given: see `Given`; its category, where the gates read it.
        """
        sizes, category = self.sizes, None
        if self.gates is not None and self.gates.category:
            width = sizes.category_width
            embed = nn.Embed(self.categories, width, dtype=self.dtype, name="category")
            category = embed(given.category)
        width, stride = sizes.widths[0], sizes.stem_stride
        x = self._conv(images, given, "stem", width, stride=stride)
        for stage, width in enumerate(sizes.widths):
            for i in range(sizes.depth):
                stride, name = 2 if stage and i == 0 else 1, f"stage{stage}_block{i}"
                x = self._block(checkpoint_name(x, name), given, category, name, width, stride)
        x = checkpoint_name(x, "head")
        head = nn.Dense(sizes.output, dtype=self.dtype, name="head")
        return one_token(head(x.mean(axis=(1, 2))))

    def _block(
        self, x: jax.Array, given: Given, category: jax.Array | None, name: str, width: int,
        stride: int,
    ) -> jax.Array:  # fmt: skip
        shortcut = x
        if stride > 1 or x.shape[-1] != width:
            of = f"{name}_shortcut"
            shortcut = self._conv(x, given, of, width, size=1, stride=stride, activation=None)
        x = self._conv(x, given, f"{name}_conv0", width, stride=stride)
        x = self._conv(x, given, f"{name}_conv1", width, activation=None)
        if self.gates is not None:
            reduction, with_max = self.sizes.reduction, self.gates.with_max
            gate = ChannelGate(reduction, with_max, self.dtype, name=f"{name}_channels")
            x = x * gate(x, category)
            if self.gates.spatial:
                x = x * SpatialGate(self.dtype, name=f"{name}_places")(x, category)
        return nn.relu(x + shortcut)

    def _conv(
        self, x: jax.Array, given: Given, name: str, features: int, size: int = 3, stride: int = 1,
        activation: Callable[[jax.Array], jax.Array] | None = nn.relu,
    ) -> jax.Array:  # fmt: skip
        padding, dtype = size // 2, self.dtype
        made = ConvNorm(features, size, stride, padding, EPSILON, activation, dtype, name=name)
        result: jax.Array = made(x, given)
        return result


class DeepCtr(nn.Module):
    """DeepCTR's 17 convolutions (Chen et al. 2016, arXiv:1609.06018, section 4 and 6.1).

    One of 5 x 5, then four groups of four of 3 x 3 with half as many channels as ResNet's groups,
    each with batch normalisation and ReLU; a fully connected layer with ReLU gives the vector, 128
    wide in the paper, of crops of 112 x 112. The figure with the strides could not be read: here
    the first convolution of the net and of each group halves the map. The fully connected layer
    reads the mean of the last map, so that a picture of any size will do; the paper's reads all its
    places.

    Attributes:
      output: E, width of the vector.
      dtype: of the activations; parameters are float32.
    """

    output: int = 128
    dtype: Any = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """conv1, group1 to group4, fc."""
        groups = (tuple(f"conv{4 * group + k + 2}" for k in range(4)) for group in range(4))
        of_groups = (Part(f"group{k}", convs) for k, convs in enumerate(groups, 1))
        return (Part("conv1", ("conv1",), False), *of_groups, Part("fc", ("fc",), False))

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """One token, in `dtype`; `mean` and `pooler` are it.

        Args:
          images: [B, Y, X, channels] float.
          given: see `Given`.
        """
        x = self._conv(images, given, "conv1", 32, 5, 2)
        for k in range(16):
            x = x if k % 4 else checkpoint_name(x, f"group{k // 4 + 1}")
            x = self._conv(x, given, f"conv{k + 2}", 32 * 2 ** (k // 4), 3, 1 if k % 4 else 2)
        x = checkpoint_name(x, "fc")
        fc = nn.Dense(self.output, dtype=self.dtype, name="fc")
        return one_token(nn.relu(fc(x.mean(axis=(1, 2)))))

    def _conv(
        self, x: jax.Array, given: Given, name: str, features: int, size: int, stride: int
    ) -> jax.Array:  # fmt: skip
        padding, dtype = size // 2, self.dtype
        made = ConvNorm(features, size, stride, padding, EPSILON, nn.relu, dtype, name=name)
        result: jax.Array = made(x, given)
        return result


class VectorMlp(nn.Module):
    """The trainable end of DICM's embedding model (Ge et al. 2018, arXiv:1711.06505).

    Its input is what the frozen part of the model, VGG16 up to FC6, gives of a picture, 4096 wide;
    that is stored. PReLU between the layers, none after the last.

    Attributes:
      widths: of the layers.
      dtype: of the activations; parameters are float32.
    """

    widths: tuple[int, ...] = (256, 64, 12)
    dtype: Any = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """fc1, fc2, ..; the last one is the head."""
        last = len(self.widths)
        numbers = range(1, last + 1)
        return tuple(Part(f"fc{k}", (f"prelu{k - 1}", f"fc{k}"), k < last) for k in numbers)

    @nn.compact
    def __call__(self, vectors: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """A token of each vector, in `dtype`; `mean` and `pooler` are their mean.

        Args:
          vectors: [B, n, E] float.
          given: see `Given`; nothing of it is read.
        """
        del given
        x = vectors
        for k, width in enumerate(self.widths):
            if k:
                x = checkpoint_name(x, f"fc{k + 1}")
                x = nn.PReLU(negative_slope_init=0.25, name=f"prelu{k}")(x)
            x = nn.Dense(width, dtype=self.dtype, name=f"fc{k + 1}")(x)
        mean = x.mean(axis=1)
        return EncoderOutput(x, jnp.ones(x.shape[:2], bool), cls=None, mean=mean, pooler=mean)


class Net(NamedTuple):
    """A net that trains from scratch.

    Attributes:
      build: (sizes, how many categories there are) -> module.
      reads: "pictures"; or of a lower net that stands still what is stored, "vectors" or "maps".
      knows_category: whether it reads the item's category.
    """

    build: Callable[[Sizes, int], nn.Module]
    reads: str = "pictures"
    knows_category: bool = False


SCRATCH: dict[str, Net] = {
    "cnn": Net(lambda sizes, _: Cnn(sizes)),
    "se": Net(lambda sizes, _: Cnn(sizes, SE)),
    "cbam": Net(lambda sizes, _: Cnn(sizes, CBAM)),
    "cscnn": Net(lambda sizes, count: Cnn(sizes, CSCNN, count), knows_category=True),
    "deepctr": Net(lambda sizes, _: DeepCtr(sizes.output)),
    "vgg16": Net(lambda *_: Vgg()),
    "dicm": Net(lambda sizes, _: VectorMlp(sizes.mlp), reads="vectors"),
    # The upper part of a net whose lower part stands still: how much that is, the stored maps say.
    "hccm": Net(lambda sizes, count: Cnn(sizes, HCCM, count), reads="maps", knows_category=True),
}
"""Name -> net, of config.model.encoders.<feature set> = "cnn:<name>"."""
