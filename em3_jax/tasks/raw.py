"""Raw content: encoders are part of the model, before any other part of it.

Letters: S distinct items, N tokens of an item, E their width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.core.types import Batch
from em3_jax.features.augment import Drawn
from em3_jax.features.in_model import RawEncoder
from em3_jax.features.prior import PRIOR
from em3_jax.features.tokens import standardise
from em3_jax.models import lora
from em3_jax.models.encoders import Given
from em3_jax.tasks import Inputs, Loss, Params, gathered_to_encode
from em3_jax.tasks.wrapped import WrappedTask

RawEncoders = Mapping[str, RawEncoder]
"""Feature set -> the encoder that reads it first."""

Statistics = dict[str, Mapping[str, Any]]
"""Feature set -> running statistics of its encoder, by the paths of the parameters whose place they take."""


def initial_params(key: jax.Array, encoders: RawEncoders) -> Params:
    """{"encoders": {feature set: zeros in the shapes of its encoder's parameters}}, and fresh "adapters" of some.

    Their place in a fresh state: what was loaded comes there from outside, so that it is not part of the compiled program.
    """
    zeros = {name: jax.tree.map(jnp.zeros_like, encoder.params) for name, encoder in encoders.items()}
    adapters = {
        name: lora.fresh(jax.random.fold_in(key, k), encoder.params, encoder.rank)
        for k, (name, encoder) in enumerate(sorted(encoders.items()))
        if encoder.rank
    }
    return {"encoders": zeros} | ({"adapters": adapters} if adapters else {})


def encoded(
    encoders: RawEncoders, params: Params, inputs: Inputs, train: bool = False, drawn: Drawn | None = None
) -> tuple[Inputs, Statistics]:
    """The inputs with tokens [S, N, E] f32, standardised, in the place of pixels and token ids.

    Args:
      encoders: feature set -> its encoder; feature sets without one hold tokens already.
      params: its "encoders" are {feature set: parameters}, its "adapters" those beside them; not read where
        there are no encoders.
      inputs: {feature set: [S, M, bytes] u8 or [S, L, 1] i32} among its tokens; what `prior.PRIOR` names is taken out.
      train: whether batch normalisations that train take the batch's statistics.
      drawn: what random views of pictures are a function of; None = nothing is random.

    Returns:
      (the inputs, {feature set: running statistics found anew}).
    """
    tokens, masks, statistics = dict(inputs.tokens), dict(inputs.tokens_mask), {}
    masks.pop(PRIOR, None)
    category = tokens.pop(PRIOR)[:, 0, 0] if PRIOR in tokens else None
    counted = _counted(inputs.batch) if train and encoders else None
    for name, encoder in encoders.items():
        given = Given(counted, category, encoder.trains if train else None)
        content = tokens[name] if drawn is None else encoder.view(tokens[name], drawn)
        own = lora.adapted(params["encoders"][name], params.get("adapters", {}).get(name))
        found = encoder.encode(own, content, masks[name], given)
        tokens[name], masks[name] = standardise(found.tokens, found.mask), found.mask
        if found.statistics:
            statistics[name] = found.statistics
    return inputs._replace(tokens=tokens, tokens_mask=masks), statistics


def _counted(batch: Batch) -> jax.Array | None:
    """[S] or [C] bool, which rows batch statistics count; None = all that have content.

    Rows that only fill are an item again on one device; what a device owns in blocks is there once.
    """
    if "encode_mask" in batch:
        return batch["encode_mask"]
    return None if "item_route" in batch else batch["item_mask"]


@dataclasses.dataclass(frozen=True, eq=False)
class WithEncoders(WrappedTask):
    """`task`, which reads content tokens, on raw content: in each step encoders make tokens of it.

    Where batches name items for encoding, the others have no content.

    Attributes:
      encoders: feature set -> its encoder, whose weights are among the parameters.
    """

    encoders: RawEncoders

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Inputs:
        if "encode_position" in batch:
            return gathered_to_encode(rows, constants, batch)
        inputs: Inputs = self.task.inputs(rows, constants, batch)
        return inputs

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Parameters of `task`, and those of the encoders as zeros, see `initial_params`."""
        own = initial_params(key, self.encoders)
        return self.task.init(key, self.encoded(own, inputs)) | own

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        drawn = Drawn(key, step, _items(inputs.batch)) if self.encoders else None
        inputs, statistics = encoded(self.encoders, params, inputs, train=True, drawn=drawn)
        value, aux = self.task.loss(params, _at_their_places(inputs), key, step)
        if statistics:
            aux |= {"statistics": aux.get("statistics", {}) | {"encoders": statistics}}
        return value, aux

    def predict(self, params: Params, inputs: Inputs) -> Any:
        return self.task.predict(params, self.encoded(params, inputs))

    def predict_all(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.predict_all(params, self.encoded(params, inputs))

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.embed(params, self.encoded(params, inputs))

    def codes(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.codes(params, self.encoded(params, inputs))

    def lookup(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        return self.task.lookup(params, self.encoded(params, inputs))

    def encoded(self, params: Params, inputs: Inputs) -> Inputs:
        """What `task` has as its inputs."""
        return _at_their_places(encoded(self.encoders, params, inputs)[0])


def _items(batch: Batch) -> jax.Array:
    """[S] i32 the items whose tokens are there, or [C] those of them that the batch names for encoding."""
    items = exchange.own_items(batch)
    return exchange.picked(items, batch["encode_position"]) if "encode_position" in batch else items


def _at_their_places(inputs: Inputs) -> Inputs:
    """Tokens [C, N, E] of the items that the batch names for encoding, at the places of these items, [S, N, E]."""
    batch = inputs.batch
    if "encode_position" not in batch:
        return inputs

    def spread(array: jax.Array, items: jax.Array, position: jax.Array, chosen: jax.Array) -> jax.Array:
        place = jnp.where(chosen, position, len(items))
        return jnp.zeros((len(items), *array.shape[1:]), array.dtype).at[place].set(array, mode="drop")

    def put(array: jax.Array) -> jax.Array:
        chosen = batch["encode_position"], batch["encode_mask"]
        return exchange.in_block(spread)(array, exchange.own_items(batch), *chosen)

    return inputs._replace(tokens=jax.tree.map(put, inputs.tokens), tokens_mask=jax.tree.map(put, inputs.tokens_mask))
