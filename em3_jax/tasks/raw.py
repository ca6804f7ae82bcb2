"""Raw content: encoders are part of the model, before any other part of it.

Letters: S distinct items, N tokens of an item, E their width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.features.encoding import RawEncoder
from em3_jax.features.tokens import standardise
from em3_jax.models.encoders import Given
from em3_jax.tasks import Inputs, Loss, Params
from em3_jax.tasks.wrapped import WrappedTask

RawEncoders = Mapping[str, RawEncoder]
"""Feature set -> the encoder that reads it first."""

Statistics = dict[str, Mapping[str, Any]]
"""Feature set -> running statistics of its encoder, by the paths of the parameters whose place they take."""


def zero_params(encoders: RawEncoders) -> Params:
    """{"encoders": {feature set: zeros in the shapes of its encoder's parameters}}.

    Pretrained weights have no place in a compiled program: they are put in after `init`.
    """
    zeros = {name: jax.tree.map(jnp.zeros_like, one.params) for name, one in encoders.items()}
    return {"encoders": zeros}


def encoded(encoders: RawEncoders, params: Params, inputs: Inputs, train: bool = False) -> tuple[Inputs, Statistics]:
    """The inputs with tokens [S, N, E] f32, standardised, in the place of pixels and token ids.

    Args:
      encoders: feature set -> its encoder; feature sets without one hold tokens already.
      params: its "encoders" are {feature set: parameters}; not read where there are no encoders.
      inputs: {feature set: [S, M, bytes] u8 or [S, L, 1] i32} among its tokens.
      train: whether batch normalisations that train take the batch's statistics.

    Returns:
      (the inputs, {feature set: running statistics found anew}).
    """
    tokens, masks, statistics = dict(inputs.tokens), dict(inputs.tokens_mask), {}
    # Rows that only fill are an item again on one device; what a device owns in blocks is there once, and else nothing.
    counted = inputs.batch["item_mask"] if train and "item_route" not in inputs.batch else None
    for name, encoder in encoders.items():
        given = Given(mask=counted, trains=encoder.trains if train else None)
        found = encoder.encode(params["encoders"][name], tokens[name], masks[name], given)
        tokens[name], masks[name] = standardise(found.tokens, found.mask), found.mask
        if found.statistics:
            statistics[name] = found.statistics
    return inputs._replace(tokens=tokens, tokens_mask=masks), statistics


@dataclasses.dataclass(frozen=True, eq=False)
class WithEncoders(WrappedTask):
    """`task`, which reads content tokens, on raw content: in each step encoders make tokens of it.

    Attributes:
      encoders: feature set -> its encoder, whose weights are among the parameters.
    """

    encoders: RawEncoders

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Parameters of `task`, and those of the encoders as zeros, see `zero_params`."""
        zeros = zero_params(self.encoders)
        return self.task.init(key, self._encoded(zeros, inputs)) | zeros

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        inputs, statistics = encoded(self.encoders, params, inputs, train=True)
        value, aux = self.task.loss(params, inputs, key, step)
        return value, aux | ({"statistics": {"encoders": statistics}} if statistics else {})

    def predict(self, params: Params, inputs: Inputs) -> Any:
        return self.task.predict(params, self._encoded(params, inputs))

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.embed(params, self._encoded(params, inputs))

    def lookup(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        return self.task.lookup(params, self._encoded(params, inputs))

    def _encoded(self, params: Params, inputs: Inputs) -> Inputs:
        return encoded(self.encoders, params, inputs)[0]
