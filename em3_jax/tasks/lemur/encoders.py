"""LEMUR's encoders, of items and of queries, and which items of a step are encoded.

Letters: B examples, S distinct items of a batch, C of them that may be encoded, P that are, Q that
take a gradient, N tokens of an item, D width of a representation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.config.schema.lemur import Query
from em3_jax.core import exchange
from em3_jax.core.types import Batch
from em3_jax.features.augment import Drawn
from em3_jax.models.encoders.fields import EncoderSettings, FieldEncoder, TextLayout
from em3_jax.tables import memory_bank
from em3_jax.tables.memory_bank import Sample, Stored
from em3_jax.tasks import Inputs, Params
from em3_jax.tasks.raw import RawEncoders, encoded, initial_params

Layouts = Mapping[str, Any]
"""Feature set -> how the encoder reads it, see `models.encoders.fields`."""

Content = tuple[dict[str, jax.Array], dict[str, jax.Array]]
"""(tokens {feature set: [C, N, E]}, their masks {feature set: [C, N]}) of items."""


class Some(NamedTuple):
    """Representations of some of C rows.

    Attributes:
      row: [P] i32.
      mask: [P] bool, False = padding.
      vector: [P, D].
    """

    row: jax.Array
    mask: jax.Array
    vector: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class ItemEncoder:
    """From the content of items to their representations.

    Attributes:
      module: reads the tokens of all feature sets.
      converted: the encoders that read feature sets first, their weights among the parameters.
      forward_percent: p of the distinct items that may be encoded are, in percent; of several
        devices, of each one's own.
      backward_percent: q of them take a gradient, in percent.
    """

    module: FieldEncoder
    converted: RawEncoders
    forward_percent: float
    backward_percent: float

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """{"encoder": of `module`, and what `initial_params` makes of `converted`, if there are any}."""
        own = initial_params(key, self.converted)
        inputs, _ = encoded(self.converted, own, inputs)
        params = {"encoder": self.module.init(key, inputs.tokens, inputs.tokens_mask)["params"]}
        return params | own if self.converted else params

    def viewed(self, inputs: Inputs, key: jax.Array, step: jax.Array) -> Inputs:
        """The inputs with random views of pictures that an encoder of `converted` reads, see `features.augment`."""
        item = exchange.picked(exchange.own_items(inputs.batch), inputs.batch["encode_position"])
        drawn = Drawn(key, step, item)
        views = {name: one.view(inputs.tokens[name], drawn) for name, one in self.converted.items()}
        return inputs._replace(tokens=inputs.tokens | views)

    def represent(self, params: Params, inputs: Inputs) -> jax.Array:
        """[C, D] representations of the inputs' items."""
        inputs, _ = encoded(self.converted, params, inputs)
        variables = {"params": params["encoder"]}
        result: Any = self.module.apply(variables, inputs.tokens, inputs.tokens_mask)
        return result

    def attend(self, params: Params, inputs: Inputs) -> Mapping[str, Any]:
        """The weights of the encoder's attentions by the paths of their modules, and `fields.READ`."""
        inputs, _ = encoded(self.converted, params, inputs)
        variables = {"params": params["encoder"]}
        applied: Any = self.module.apply(variables, inputs.tokens, inputs.tokens_mask, mutable=["intermediates"])
        return applied[1].get("intermediates", {})

    def represent_all(self, params: Params, inputs: Inputs) -> memory_bank.Writes:
        """What the encoder makes of all items that may be encoded."""
        position, mask = inputs.batch["encode_position"], inputs.batch["encode_mask"]
        return memory_bank.Writes(position, mask, self.represent(params, inputs), mask)

    def represent_some(self, params: Params, inputs: Inputs, key: jax.Array) -> memory_bank.Writes:
        """What the encoder makes of ceil(p n) of the n distinct items, ceil(q n) with a gradient.

        Of several devices each has its own n, so that all do the same work.

        All of them are encoded with q = 100.

        Args:
          params: with those of `init` among them.
          inputs: whose tokens are those of the items that may be encoded.
          key: of the sample.
        """
        if self.backward_percent == 100:
            return self.represent_all(params, inputs)
        batch = inputs.batch
        position, mask = batch["encode_position"], batch["encode_mask"]
        item = exchange.picked(exchange.own_items(batch), position)
        chosen = (batch["stored"], position, mask, item, _drawn(batch, item, key))
        sample, first = exchange.in_block(self._sample)(*chosen)
        found = self._represent_sample(params, inputs, sample)
        vector, is_encoded = exchange.in_block(_spread)(found, first, mask)
        return memory_bank.Writes(position, mask, vector, is_encoded)

    def _sample(
        self, stored: Stored, position: jax.Array, mask: jax.Array, item: jax.Array, drawn: jax.Array
    ) -> tuple[Sample, jax.Array]:
        """(which of the C rows are encoded, [C] i32 the first row of each one's item)."""
        first = memory_bank.first_places(item, mask)
        distinct = mask & (first == jnp.arange(len(first)))
        order = memory_bank.rank(stored, position, distinct, drawn)
        shares = (self.forward_percent, self.backward_percent)
        return memory_bank.sample(order, distinct.sum(), *shares), first

    def _represent_sample(self, params: Params, inputs: Inputs, sample: Sample) -> list[Some]:
        """The representations of the rows with a gradient, and of those without."""
        found = []
        content = (inputs.tokens, inputs.tokens_mask)
        if len(sample.trained):
            vector = self._rows(params, inputs, content, sample.trained)
            found.append(Some(sample.trained, sample.trained_mask, vector))
        if len(sample.held):
            without = jax.lax.stop_gradient((params, content))
            vector = self._rows(without[0], inputs, without[1], sample.held)
            found.append(Some(sample.held, sample.held_mask, vector))
        return found

    def _rows(self, params: Params, inputs: Inputs, content: Content, some: jax.Array) -> jax.Array:
        """[P, D] representations of some rows [P] i32 of the content."""
        tokens, masks = jax.tree.map(lambda array: exchange.picked(array, some), content)
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


def _drawn(batch: Batch, item: jax.Array, key: jax.Array) -> jax.Array:
    """[C] f32 numbers for `memory_bank.rank`; in blocks an item has its own, wherever it is."""
    if "item_route" not in batch:
        return jax.random.exponential(key, item.shape)
    return jax.vmap(lambda one: jax.random.exponential(jax.random.fold_in(key, one)))(item)


def _spread(found: list[Some], first: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([C, D] the representations found at all rows of their items, [C] bool where there is one).

    Args:
      first: [C] i32 the first row of each one's item, see `memory_bank.first_places`.
      mask: [C] bool.
    """
    count = len(first)
    row = jnp.concatenate([jnp.where(some.mask, some.row, count) for some in found])
    of_rows = jnp.concatenate([some.vector for some in found])
    vector = jnp.zeros((count, of_rows.shape[1]), of_rows.dtype).at[row].set(of_rows, mode="drop")
    is_encoded = jnp.zeros(count, bool).at[row].set(True, mode="drop")
    return vector[first], mask & is_encoded[first]


def _words(batch: Batch) -> Content:
    words = batch["query_tokens"]
    return {"query": words[..., None]}, {"query": words > 0}
