"""Ranking backbones behind one signature; content plugs into each of them.

Each is a Linen module with one attribute, `settings`, and `__call__(features, *, train)` -> (logit [B], named scalars).
One that reads no history says so, `reads_history = False`.

Letters: B batch, T history, S distinct items, R distinct table rows, C event fields, F fields, W ID width, D content width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from em3_jax.models.heads import Heads


class BackboneSettings(NamedTuple):
    """What all backbones are built from; each uses what it knows.

    Attributes:
      hidden: widths of the DNN.
      dropout: rate in the DNN.
      attention_score, attention_hidden: of DIN's attention, see `TargetAttention`.
      attention_layer: of DIN's attention, see `din.DIN`.
      attention_softmax: of DIN's attention, see `TargetAttention.softmax`.
      cross_layers: of DCN v2.
      heads: of further labels; None without any. Backbones that have them say so, `has_heads = True`.
    """

    hidden: tuple[int, ...]
    dropout: float
    attention_score: Callable
    attention_hidden: int
    cross_layers: int
    heads: Heads | None = None
    attention_layer: bool = True
    attention_softmax: bool = True


class Features(NamedTuple):
    """What a backbone sees of a batch.

    On several devices positions count through the block of an example's own device, so rows are
    taken by `core.exchange.rows(items, candidate)` alone, which elsewhere is `jnp.take`.

    Attributes:
      items: [S, F_i, W] field embeddings of the distinct items.
      candidate: [B] i32 position of the candidate in `items`.
      history, mask: [B, T] i32 positions of the history in `items`; bool.
      events, event_position: [E, W] table rows and [B, T, C] i32 positions of the events' own fields; None without any.
      others: [B, F_o, W] embeddings of the user and context fields.
      content: [B, D] arrays, the content features that are in use (EM3's c_A and u_A); empty without content.
      similarity: [B, T] f32 cosines of the candidate's content with the history's; None where they are not read.
      segments: (name, slots) of the parts of the history, side by side; () = it is one.
      event_values: [B, T, W] what numbers say of the events, which is added to their fields; None without any.
    """

    items: jax.Array
    candidate: jax.Array
    history: jax.Array
    mask: jax.Array
    events: jax.Array | None
    event_position: jax.Array | None
    others: jax.Array
    content: tuple[jax.Array, ...]
    segments: tuple[tuple[str, int], ...] = ()
    similarity: jax.Array | None = None
    event_values: jax.Array | None = None

    def parts(self) -> list[tuple[str, "Features"]]:
        """(name, features that have this part of the history alone) of each segment; of one history its own, by no name."""
        if not self.segments:
            return [("", self)]
        result, start = [], 0
        for name, length in self.segments:
            part = slice(start, start + length)
            position = None if self.event_position is None else self.event_position[:, part]
            history, mask = self.history[:, part], self.mask[:, part]
            near = None if self.similarity is None else self.similarity[:, part]
            values = None if self.event_values is None else self.event_values[:, part]
            own = self._replace(history=history, mask=mask, event_position=position, similarity=near, segments=())
            own = own._replace(event_values=values)
            result.append((name, own))
            start += length
        return result
