"""How encoders are run that stand in the model, before what fuses content; of all tasks alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from em3_jax.config.schema.types import Count, Field, Name, Size, SomeSizes


@dataclass(frozen=True, kw_only=True)
class Cnn:
    """What image encoders from scratch, "cnn:<name>", are built from; each uses what it knows."""

    widths: SomeSizes = (16, 32, 64)  # channels of each stage; each but the first halves the map
    depth: Size = 1  # blocks of a stage
    stem_stride: Size = 1  # stride of the first convolution
    output: Size = 32  # E, width of the vector of a picture; 128 in DeepCTR
    reduction: Size = 4  # channels / hidden width of a channel attention
    category_width: Size = 8  # width of the embedding of a category, in cscnn and hccm
    mlp: SomeSizes = (256, 64, 12)  # widths of the layers of dicm


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """What all models that have encoders say of them."""

    # raw feature set -> how much of its encoder trains: none, head, last K (blocks), adapters or
    # all; of one that is not named, config.optim.multipliers alone say
    encoder_trains: Mapping[str, Name] = field(default_factory=dict)
    encoder_rank: Size = 4  # rank of the adapters of encoder_trains=adapters
    # most images or texts that a device encodes at once, computed again in the backward pass; 0 =
    # all, kept; batch statistics are then those of a chunk
    encoder_chunk: Count = 0
    # item field whose values encoders may read beside the images, such as category
    encoder_prior: Field = ""
    cnn: Cnn = Cnn()
