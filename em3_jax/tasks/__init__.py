"""What a training run optimizes: a task is a few pure functions, and the loop knows no more of it.

Letters: B examples, S distinct items of a batch, I items of the dataset, R distinct table rows,
N tokens of an item, E their width, W width of an embedding, D of a content embedding.
"""

import abc
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.core.labels import Labels
from em3_jax.core.types import Batch
from em3_jax.features.tokens import standardise
from em3_jax.tables import slabs

CONTENT = "content"  # of what a service looks up: an item's content embedding

Params = dict[str, Any]
"""Dense parameters: a part's name, such as "model", "encoder" or "cic" -> its tree of arrays."""

Intermediates = Mapping[str, jax.Array]
"""What a model computes on the way to the logits, by name: "content" [S, D], scalars [], ..."""

Logged = dict[str, Any]
"""Name -> scalar [] of a step, to be logged.

Not logged, if among them: "writes", for the memory bank, and "statistics", a tree of parameters that no
gradient moves, to be put in the place of those of the same paths.
"""

Loss = tuple[jax.Array, Logged]
"""(loss [] f32, what to log)."""

TokenTable = tuple[slabs.Table, slabs.Table | slabs.Within]
"""(tokens [I, N, E], mask [I, N] bool) of all items."""


class Inputs(NamedTuple):
    """What a task sees of a batch.

    Attributes:
      rows: [R, W] f32 distinct rows of the embedding table, on several devices in the task's
        `rows_dtype`; None for a task without IDs.
      tokens: {modality: [S, N, E]} content of the distinct items; integers are raw content.
      tokens_mask: {modality: [S, N] bool}, False = there is no such token.
      batch: the batch itself.
    """

    rows: jax.Array | None
    tokens: dict[str, jax.Array]
    tokens_mask: dict[str, jax.Array]
    batch: Batch


def gathered(rows: jax.Array | None, features: Mapping[str, TokenTable], batch: Batch) -> Inputs:
    """Inputs whose tokens come with the batch, or are gathered from tables, once per distinct item.

    Args:
      rows: [R, W] distinct rows of the embedding table, or None.
      features: {modality: tokens and mask of all items}; empty where tokens come with the batch.
      batch: the batch.
    """
    if "tokens" in batch:
        masks = batch["tokens_mask"]
        tokens = {name: standardise(found, masks[name]) for name, found in batch["tokens"].items()}
        return Inputs(rows, tokens, masks, batch)
    look_up = functools.partial(exchange.from_table, batch=batch)
    tokens = {name: slabs.items(table, look_up) for name, (table, _) in features.items()}
    masks = {}
    for name, (_, mask) in features.items():
        if isinstance(mask, slabs.Within):
            tokens[name], masks[name] = mask.parted(tokens[name])
        else:
            masks[name] = slabs.items(mask, look_up)
    return Inputs(rows, tokens, masks, batch)


def gathered_to_encode(rows: jax.Array | None, features: Mapping[str, TokenTable], batch: Batch) -> Inputs:
    """`gathered`, but the tokens are those of the items that the batch names for encoding, [C, N, E]."""
    position = batch["encode_position"]
    if route := batch.get("item_route"):
        some = {"item_route": route._replace(owned=exchange.picked(route.owned, position))}
    else:
        some = {"item_id": batch["item_id"][position]}
    return gathered(rows, features, batch | some)._replace(batch=batch)


class Task(abc.ABC):
    """The contract between a task and the loop.

    A task is a frozen dataclass of modules and settings. Its methods are pure functions, which
    the loop compiles; parameters, inputs and randomness are arguments. Every task has `init`,
    `loss` and `predict`. The others are abilities: the properties say which of them a task has,
    and to call one that it has not raises NotImplementedError.
    """

    @property
    def uses_content(self) -> bool:
        """Whether the tokens of items are read at all."""
        return False

    @property
    def rows_dtype(self) -> Any:
        """What `loss` and `predict` read rows of the embedding table in.

        They travel in it between devices. An f32 row that is rounded first, or after it has come, is
        the same.
        """
        return jnp.float32

    @property
    def embeds(self) -> bool:
        """Whether the task has `embed`: one content embedding for each item."""
        return False

    @property
    def can_be_served(self) -> bool:
        """Whether the task has `lookup` and `score`, which a service needs."""
        return False

    @property
    def labels(self) -> Labels:
        """Further labels that the task has `predict_all` for, beside the first."""
        return Labels()

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Any:
        """What the other methods take as `inputs`.

        Args:
          rows: [R, W] the batch's distinct rows of the embedding table, f32, or on several devices
            in `rows_dtype`; None without IDs.
          constants: what lies on the device for the whole run, such as tables of tokens.
          batch: the batch, with what the memory bank holds of its items where there is one.
        """
        return gathered(rows, constants, batch)

    @abc.abstractmethod
    def init(self, key: jax.Array, inputs: Any) -> Params:
        """Fresh parameters, f32; `inputs` says the shapes."""

    @abc.abstractmethod
    def loss(self, params: Params, inputs: Any, key: jax.Array, step: jax.Array) -> Loss:
        """(loss [] f32, what to log).

        Args:
          params: of `init`.
          inputs: of `inputs`.
          key: the run's root key; what is drawn is a function of it, a purpose's name and the step.
          step: [] i32, number of steps done before this one.
        """

    @abc.abstractmethod
    def predict(self, params: Params, inputs: Any) -> Any:
        """Logits [B] f32; in pretraining, means over the batch; in retrieval, all embeddings."""

    def predict_all(self, params: Params, inputs: Any) -> jax.Array:
        """Logits [B, 1 + H] f32 of all labels, the first one's as `predict` gives them; scores of amounts."""
        raise NotImplementedError(f"{type(self).__name__} has one label")

    def embed(self, params: Params, inputs: Any) -> jax.Array:
        """[S, D] content embeddings of the inputs' items."""
        raise NotImplementedError(f"{type(self).__name__} embeds no items")

    def codes(self, params: Params, inputs: Any) -> jax.Array:
        """[S, L] i32 codes of the inputs' items; only of a model with a quantiser."""
        raise NotImplementedError(f"{type(self).__name__} has no codes")

    def lookup(self, params: Params, inputs: Any) -> dict[str, jax.Array]:
        """{name: [S, W] f32} all that scores need of the inputs' items beside their ids.

        A service looks it up instead of running the model on their content. `CONTENT` is among it
        where the task has content embeddings.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot be served")

    def score(self, params: Params, inputs: Inputs) -> jax.Array:
        """Logits [B] as `predict` gives them, where `inputs.tokens` is what was looked up."""
        raise NotImplementedError(f"{type(self).__name__} cannot be served")

    def score_all(self, params: Params, inputs: Inputs) -> jax.Array:
        """Logits [B, 1 + H] as `predict_all` gives them, where `inputs.tokens` is what was looked up."""
        raise NotImplementedError(f"{type(self).__name__} has one label")
