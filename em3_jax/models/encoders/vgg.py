"""VGG without normalisation (Simonyan and Zisserman 2015, arXiv:1409.1556), up to FC6.

Letters: B batch, Y and X rows and columns, C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from em3_jax.core.errors import UserError
from em3_jax.models.encoders import PLAIN, EncoderOutput, Given, Part
from em3_jax.models.encoders.cnn import output

SIDE = 7
"""Rows and columns that the fully connected layer reads: those of pictures of 224 x 224."""

# Without normalisation the signal has to keep its size by itself.
_init = nn.initializers.he_normal()


class Vgg(nn.Module):
    """The last map of a batch of images of any size, a token a place, and FC6.

    Stages of 3 x 3 convolutions with ReLU, each with a maximum over 2 x 2 after it.

    Attributes:
      depths: convolutions of each stage; as they stand, VGG16's.
      widths: channels of each stage.
      fc6: width of the first fully connected layer, with ReLU, over the last map averaged to 7 x 7,
        as torchvision does; 0 = it is not there. DICM's frozen part is VGG16 up to here.
      dtype: of the activations; parameters are float32.
    """

    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    fc6: int = 4096
    dtype: Any = jnp.float32

    def parts(self) -> tuple[Part, ...]:
        """stage0, stage1, .. and, if it is there, fc6."""
        first = [sum(2 * depth + 1 for depth in self.depths[:k]) for k in range(len(self.depths))]
        stages = tuple(
            Part(f"stage{k}", tuple(f"features{start + 2 * i}" for i in range(depth)))
            for k, (start, depth) in enumerate(zip(first, self.depths, strict=True))
        )
        return (*stages, Part("fc6", ("fc6",), False)) if self.fc6 else stages

    @nn.compact
    def __call__(self, images: jax.Array, given: Given = PLAIN) -> EncoderOutput:
        """The encoded images, in `dtype`. `mean` is over the last map, `pooler` is FC6.

        Args:
          images: [B, rows, columns, channels] float, 2 ** stages rows and columns or more.
          given: see `Given`; nothing of it is read.

        Raises:
          UserError: the images are so small that nothing is left of them.
        """
        del given
        rows, columns = (length >> len(self.depths) for length in images.shape[1:3])
        if not rows or not columns:
            least = 2 ** len(self.depths)
            raise UserError(
                f"pictures of {images.shape[1]} x {images.shape[2]}: this VGG halves them "
                f"{len(self.depths)} times; give {least} x {least} or more"
            )
        x, number = images, 0
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            x = checkpoint_name(x, f"stage{stage}") if stage else x
            for _ in range(depth):
                name, dtype = f"features{number}", self.dtype
                conv = nn.Conv(width, (3, 3), kernel_init=_init, dtype=dtype, name=name)
                x, number = nn.relu(conv(x)), number + 2  # a file counts the activations too
            x, number = nn.max_pool(x, (2, 2), (2, 2)), number + 1
        found = output(x)
        if not self.fc6:
            return found
        # The order of files: C, Y, X.
        flat = averaged(checkpoint_name(x, "fc6"), SIDE).transpose(0, 3, 1, 2).reshape(len(x), -1)
        fc6 = nn.Dense(self.fc6, kernel_init=_init, dtype=self.dtype, name="fc6")
        return found._replace(pooler=nn.relu(fc6(flat)))


def averaged(x: jax.Array, side: int) -> jax.Array:
    """[B, side, side, C] means over parts of a map [B, Y, X, C], as AdaptiveAvgPool2d of torch.

    Parts overlap where `side` does not divide the map: part i of Y rows is those from
    floor(i Y / side) to ceil((i + 1) Y / side).
    """

    def weights(length: int) -> np.ndarray:
        place, part = np.arange(length), np.arange(side)[:, None]
        inside = (place >= part * length // side) & (place < -(-(part + 1) * length // side))
        return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)

    if x.shape[1:3] == (side, side):
        return x
    rows, columns = (jnp.asarray(weights(length), x.dtype) for length in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("py,qx,byxc->bpqc", rows, columns, x, precision=highest)
