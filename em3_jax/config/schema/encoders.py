"""How encoders are run that stand in the model, before what fuses content; of all tasks alike."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from em3_jax.config.schema.types import Count, Field, Name, Size


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
