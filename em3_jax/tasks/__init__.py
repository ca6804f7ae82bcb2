"""What a training run optimizes: a task is a few pure functions, and the loop knows no more than that."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.core.types import Batch
from em3_jax.features.tokens import standardise

CONTENT = "content"  # of what a service looks up: an item's content embedding


class Inputs(NamedTuple):
    """What a task sees of a batch.

    Attributes:
      rows: [R, W] distinct rows of the embedding table; None for a task without IDs.
      tokens, tokens_mask: {modality: [S, N, E]}, {modality: [S, N]} content of the distinct items; integers are raw.
      batch: the batch itself.
    """

    rows: jax.Array | None
    tokens: dict[str, jax.Array]
    tokens_mask: dict[str, jax.Array]
    batch: Batch


def gathered(rows: jax.Array | None, features: Mapping[str, tuple[jax.Array, jax.Array]], batch: Batch) -> Inputs:
    """Inputs whose content tokens come with the batch, or are gathered once per distinct item from tables on the device.

    Args:
      rows: [R, W] distinct rows of the embedding table, or None.
      features: {modality: (tokens [I, N, E], mask [I, N])}; empty where tokens come with the batch.
      batch: the batch.
    """
    if "tokens" in batch:
        masks = batch["tokens_mask"]
        tokens = {name: standardise(tokens, masks[name]) for name, tokens in batch["tokens"].items()}
    else:
        tokens = {name: jnp.take(tokens, batch["item_id"], axis=0) for name, (tokens, _) in features.items()}
        masks = {name: jnp.take(mask, batch["item_id"], axis=0) for name, (_, mask) in features.items()}
    return Inputs(rows, tokens, masks, batch)


def given(rows: jax.Array | None, features: None, batch: Batch) -> Inputs:
    """Inputs whose content tokens come with the batch and are standardised already."""
    return Inputs(rows, batch.get("tokens", {}), batch.get("tokens_mask", {}), batch)


class Task(NamedTuple):
    """A task.

    Attributes:
      init: (key, inputs) -> params.
      loss: (params, inputs, key, step) -> (loss [], named intermediates, each a scalar).
      predict: (params, inputs) -> logits [B]; of pretraining, named sums over the batch; of retrieval, all embeddings.
      embed: (params, inputs) -> [S, D] content embeddings of the inputs' items; None without content.
      encoders: feature set -> folder of the encoder that has to read it first, see `tasks.raw.with_encoders`.
      inputs: (table rows [R, W] or None, what lies on the device for the whole run, batch) -> inputs.
      lookup: (params, inputs) -> {name: [S, W] f32} all that scores need of the inputs' items, so that a service can look it up
        instead of running the model on their content; `CONTENT` is among it where there is content. None: not to be served.
      score: (params, inputs) -> logits [B] as `predict` gives, where inputs.tokens is what was looked up.
    """

    init: Callable
    loss: Callable
    predict: Callable
    embed: Callable | None
    encoders: dict[str, str]
    inputs: Callable = gathered
    lookup: Callable | None = None
    score: Callable | None = None

    @property
    def uses_content(self) -> bool:
        """Whether `inputs.tokens` is read at all."""
        return self.embed is not None
