"""The plain multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.dropout import Dropout


class MLP(nn.Module):
    """Dense layers with ReLU and dropout between them, linear at the end.

    Attributes:
      hidden: widths of the hidden layers.
      outputs: width of the result.
      dropout: rate after each hidden layer.
    """

    hidden: Sequence[int]
    outputs: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[*, outputs] f32 from x [*, D]."""
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
            x = Dropout(self.dropout)(x, train=train)
        return nn.Dense(self.outputs, dtype=jnp.float32)(x)
