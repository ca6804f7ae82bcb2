"""The FC heads of Content-ID-Contrastive learning (EM3 eq. 10-11); the loss itself is in `losses.py`."""

import flax.linen as nn
import jax


class ContentIdHeads(nn.Module):
    """Content and ID embeddings of the same items in one vector space.

    Attributes:
      width: D of the common space.
    """

    width: int

    @nn.compact
    def __call__(self, content: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(C, I) [S, width] each, from content [S, D] and the items' concatenated ID embeddings [S, F * W]."""
        return nn.Dense(self.width, name="content")(content), nn.Dense(self.width, name="ids")(ids)
