"""What a user's past items make of their content (DICM: Ge et al., Image Matters, CIKM 2018, 4.3).

Each aggregator is a function of what the ranker knows to (channels, named scalars): a channel is
[B, D], as wide as an item's content embedding, but for that of `concat`. It is called within the
ranker's own scope, and what it has to learn belongs to the ranker.

Letters: B batch, T history, S distinct items, F item fields, W ID width, D content width.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.core.maxima import largest
from em3_jax.models.attention import TargetAttention, entropies, gather_slots

Channels = tuple[jax.Array, ...]
Aggregated = tuple[Channels, dict[str, jax.Array]]


class Behaviours(NamedTuple):
    """What there is to aggregate, and who may ask for it.

    Attributes:
      items: [S, D] content embeddings of the distinct items.
      candidate: [B] i32 position of the candidate in `items`.
      history, mask: [B, T] i32 positions of the history in `items`; bool.
      events: of the events' own fields, see `TargetAttention`; empty where they are not read.
      ids: [S, F, W] field embeddings of the distinct items.
    """

    items: jax.Array
    candidate: jax.Array
    history: jax.Array
    mask: jax.Array
    events: tuple[jax.Array | None, ...]
    ids: jax.Array


def attentive(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """Target attention; the candidate's content asks (EM3, eq. 7-8; DICM's AttentiveAggregator)."""
    attention = TargetAttention(score, hidden, events_weigh=True, name="content_attention")
    place = (seen.items, seen.candidate, seen.history, seen.mask)
    interest, weight = attention(*place, *seen.events)
    return (interest,), entropies("content_attention", weight, seen.mask)


def multi_query(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """Two channels of attention (DICM's MultiQueryAttentiveAggregator).

    In the first the candidate's content asks, as in `attentive`, in the second its IDs do: one FC
    layer brings its field embeddings to the width of the content.
    """
    (interest,), scalars = attentive(seen, score, hidden)
    ids = exchange.rows(seen.ids.reshape(seen.ids.shape[0], -1), seen.candidate)  # [B, F W]
    query = nn.Dense(seen.items.shape[-1], name="content_id_query")(ids)
    name = "content_attention_of_ids"
    attention = TargetAttention(score, hidden, events_weigh=True, name=name)
    events, position, values = seen.events or (None, None, None)
    place = (seen.items, seen.candidate, seen.history, seen.mask)
    of_ids, weight = attention(*place, events, position, values, query)
    return (interest, of_ids), scalars | entropies(name, weight, seen.mask)


def sum_(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """The sum over the history, zeros where it is empty. `score` and `hidden` are not used."""
    return (_total(seen),), {}


def mean(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """The mean over the history, zeros where it is empty. `score` and `hidden` are not used."""
    count = jnp.maximum(seen.mask.sum(axis=1, keepdims=True), 1)
    return (_total(seen) / count.astype(seen.items.dtype),), {}


def max_(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """Of each component the largest value in the history, 0 where that is empty.

    `score` and `hidden` are not used.
    """
    slots = gather_slots(seen.items, seen.history)
    some = seen.mask.any(axis=1, keepdims=True)
    return (jnp.where(some, largest(slots, 1, seen.mask[..., None]), 0.0).astype(slots.dtype),), {}


def concat(seen: Behaviours, score: Callable, hidden: int) -> Aggregated:
    """[B, T D] the slots side by side, newest last; a slot without an event is zeros.

    The one aggregator for which the order of events counts. `score` and `hidden` are not used.
    """
    slots = gather_slots(seen.items, seen.history)
    slots = jnp.where(seen.mask[..., None], slots, 0.0)
    return (slots.reshape(slots.shape[0], slots.shape[1] * slots.shape[2]),), {}


def _total(seen: Behaviours) -> jax.Array:
    slots = gather_slots(seen.items, seen.history)
    return jnp.einsum("bt,btd->bd", seen.mask.astype(slots.dtype), slots)


AGGREGATORS = {
    "attentive": attentive,
    "multi_query": multi_query,
    "sum": sum_,
    "mean": mean,
    "max": max_,
    "concat": concat,
}
ATTEND = ("attentive", "multi_query")
"""Those with a score, which read events too."""
