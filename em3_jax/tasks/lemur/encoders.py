"""LEMUR's encoders, of items and of queries, and which items of a step are encoded.

Letters: B examples, S distinct items of a batch, C of them that may be encoded, P that are, Q that
take a gradient, N tokens of an item, D width of a representation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax.config.schema.lemur import Query
from em3_jax.core.types import Batch
from em3_jax.models.encoders.fields import EncoderSettings, FieldEncoder, TextLayout
from em3_jax.tables import memory_bank
from em3_jax.tasks import Inputs, Params
from em3_jax.tasks.raw import RawEncoders, encoded, zero_params

Layouts = Mapping[str, Any]
"""Feature set -> how the encoder reads it, see `models.encoders.fields`."""

Content = tuple[dict[str, jax.Array], dict[str, jax.Array]]
"""(tokens {feature set: [C, N, E]}, their masks {feature set: [C, N]}) of items."""


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """From the content of items to their representations.

    Attributes:
      module: reads the tokens of all feature sets.
      converted: the encoders that read feature sets first, their weights among the parameters.
      forward_percent: p of the distinct items that may be encoded are, in percent.
      backward_percent: q of them take a gradient, in percent.
    """

    module: FieldEncoder
    converted: RawEncoders
    forward_percent: float
    backward_percent: float

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """{"encoder": of `module`, "encoders": of `converted`, if there are any, as zeros}."""
        zeros = zero_params(self.converted)
        inputs = encoded(self.converted, zeros, inputs)
        params = {"encoder": self.module.init(key, inputs.tokens, inputs.tokens_mask)["params"]}
        return params | zeros if self.converted else params

    def represent(self, params: Params, inputs: Inputs) -> jax.Array:
        """[C, D] representations of the inputs' items."""
        inputs = encoded(self.converted, params, inputs)
        variables = {"params": params["encoder"]}
        result: Any = self.module.apply(variables, inputs.tokens, inputs.tokens_mask)
        return result

    def represent_all(self, params: Params, inputs: Inputs) -> memory_bank.Writes:
        """What the encoder makes of all items that may be encoded."""
        position, mask = inputs.batch["encode_position"], inputs.batch["encode_mask"]
        return memory_bank.Writes(position, mask, self.represent(params, inputs), mask)

    def represent_some(self, params: Params, inputs: Inputs, key: jax.Array) -> memory_bank.Writes:
        """What the encoder makes of ceil(p n) of the n distinct items, ceil(q n) with a gradient.

        All of them are encoded with q = 100.

        Args:
          params: with those of `init` among them.
          inputs: whose tokens are those of the items that may be encoded.
          key: of the sample, see `memory_bank.rank`.
        """
        if self.backward_percent == 100:
            return self.represent_all(params, inputs)
        batch = inputs.batch
        position, mask = batch["encode_position"], batch["encode_mask"]
        first = memory_bank.first_places(batch["item_id"][position], mask)
        distinct = mask & (first == jnp.arange(len(first)))
        order = memory_bank.rank(batch["stored"], position, distinct, key)
        shares = (self.forward_percent, self.backward_percent)
        sample = memory_bank.sample(order, distinct.sum(), *shares)
        found, rows = self._represent_sample(params, inputs, sample, len(order))
        vector = jnp.zeros((len(order), found.shape[1]), found.dtype)
        vector = vector.at[rows].set(found, mode="drop")
        is_encoded = jnp.zeros(len(order), bool).at[rows].set(True, mode="drop")
        return memory_bank.Writes(position, mask, vector[first], mask & is_encoded[first])

    def _represent_sample(
        self, params: Params, inputs: Inputs, sample: memory_bank.Sample, count: int
    ) -> tuple[jax.Array, jax.Array]:
        """([P, D] representations, [P] i32 their rows among the C, `count` = C for padding)."""
        found, rows = [], []
        content = (inputs.tokens, inputs.tokens_mask)
        if len(sample.trained):
            found.append(self._rows(params, inputs, content, sample.trained))
            rows.append(jnp.where(sample.trained_mask, sample.trained, count))
        if len(sample.held):
            without = jax.lax.stop_gradient((params, content))
            found.append(self._rows(without[0], inputs, without[1], sample.held))
            rows.append(jnp.where(sample.held_mask, sample.held, count))
        return jnp.concatenate(found), jnp.concatenate(rows)

    def _rows(self, params: Params, inputs: Inputs, content: Content, some: jax.Array) -> jax.Array:
        """[P, D] representations of some rows [P] i32 of the content."""
        tokens, masks = jax.tree.map(lambda array: jnp.take(array, some, axis=0), content)
        return self.represent(params, inputs._replace(tokens=tokens, tokens_mask=masks))


@dataclasses.dataclass(frozen=True, eq=False)
class QueryEncoder:
    """From the words of queries to their representations.

    Attributes:
      module: reads the words.
    """

    module: FieldEncoder

    def init(self, key: jax.Array, batch: Batch) -> Params:
        """{"query_encoder": parameters of `module`}."""
        return {"query_encoder": self.module.init(key, *_words(batch))["params"]}

    def represent(self, params: Params, batch: Batch) -> jax.Array:
        """[B, D] representations of the queries: "query_tokens" [B, words] i32, 0 = no word."""
        result: Any = self.module.apply({"params": params["query_encoder"]}, *_words(batch))
        return result


def query_encoder(settings: Query | None, sizes: EncoderSettings) -> QueryEncoder | None:
    """An encoder like that of the items but for its depth; None where there are no queries."""
    if settings is None:
        return None
    layout = TextLayout((("query", settings.length),), (settings.length,), settings.vocabulary)
    module = FieldEncoder(sizes._replace(layers=settings.layers), (("query", layout),))
    return QueryEncoder(module)


def _words(batch: Batch) -> Content:
    words = batch["query_tokens"]
    return {"query": words[..., None]}, {"query": words > 0}
