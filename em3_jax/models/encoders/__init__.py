"""Image and text encoders with the weights layout of published checkpoints, and the one output type they share."""

from typing import NamedTuple

import jax


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
