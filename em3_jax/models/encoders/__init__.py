"""Image and text encoders with the weights layout of published checkpoints, and the one output type they share."""

from collections.abc import Callable
from typing import NamedTuple

import jax

STATISTICS = "statistics"
"""Variable collection of running statistics that a training step found anew; each stands under its parameter's path."""


class Given(NamedTuple):
    """What an image encoder may read beside the images, and how it is run.

    Attributes:
      mask: [B] bool, False = a row that only fills, which batch statistics leave out; None = there are none.
      category: [B] i32 categories of the images' items, 0 = unknown; None where there are none.
      trains: parameter's path, as in "stem/norm/scale" -> whether it trains in this call; None = none does. Batch
        normalisations whose scale trains take the statistics of the batch, over all devices, and put new running ones
        into the collection `STATISTICS`; the others use their running ones, which keep their bits.
    """

    mask: jax.Array | None = None
    category: jax.Array | None = None
    trains: Callable[[str], bool] | None = None


PLAIN = Given()
"""Nothing beside the images; nothing trains."""


class Part(NamedTuple):
    """One of the parts that an encoder runs one after the other, from its inputs to its result: see `parts` of each.

    Its input is called by the name of the part, see `jax.ad_checkpoint.checkpoint_name`, but for that of the first one.

    Attributes:
      name: such as "stem", "block3" or "layer11".
      groups: names of the encoder's parameters, or of their groups, that belong to it; some may not be there.
      is_block: one of the blocks that `last K` of config.model.encoder_trains counts; not what embeds or finishes.
    """

    name: str
    groups: tuple[str, ...]
    is_block: bool = True


def between(parts: tuple[Part, ...], first: str, last: str) -> tuple[Part, ...]:
    """Those of an encoder's parts from `first` on to the one before `last`; "" = the ends."""
    names = [part.name for part in parts]
    return parts[names.index(first) if first else 0 : names.index(last) if last else None]


class EncoderOutput(NamedTuple):
    """What every encoder gives: all tokens, and the usual ways to make one vector of them.

    Attributes:
      tokens: [B, N, D], the last hidden states (after the final norm where the architecture has one).
      mask: [B, N] bool, True = valid token.
      cls: [B, D], the first token; None for architectures without a class token (Swin).
      mean: [B, D], mean over the valid tokens; zeros where a row has none.
      pooler: [B, D], what transformers calls `pooler_output`; None where the checkpoint has no pooler.
    """

    tokens: jax.Array
    mask: jax.Array
    cls: jax.Array | None
    mean: jax.Array
    pooler: jax.Array | None
