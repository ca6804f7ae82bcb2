"""LEMUR's ranking model: what a ranker reads of the representations of a candidate and of a long history.

Han et al., LEMUR: Large scale End-to-end MUltimodal Recommendation (2025). The decoder is that of LONGER as LEMUR has it.
Letters: B batch, T history, S distinct items, R distinct table rows, W ID width, D width of a representation.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.core.fields import Fields
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.core.types import Batch
from em3_jax.models.attention import WEIGHTS, DotScore, entropies, masked_softmax
from em3_jax.models.backbones import Features
from em3_jax.models.mlp import MLP
from em3_jax.models.numbers import EmbeddedNumbers, NumberSettings
from em3_jax.models.ranking import event_embeddings, field_embeddings, other_embeddings, with_numbers

HISTORY_MODULES = ("short", "long", "similarity")


class Representations(NamedTuple):
    """What is known of the content of a batch's distinct items.

    Attributes:
      candidate: [S, D] as candidates see them.
      history: [S, D] as histories see them: in training the same numbers, perhaps without their gradient.
      present, history_present: [S] bool, False = there is none; such rows are masked.
    """

    candidate: jax.Array
    history: jax.Array
    present: jax.Array
    history_present: jax.Array


class Decoder(nn.Module):
    """Cross-attention over a long history: q_1 is made of the other features, q_{i+1} = FFN(sum_j softmax_j(<q_i, d_j>) d_j).

    Linear in T, and nothing is projected per slot.

    Attributes:
      layers: how many.
      hidden: width of the feed-forward layers.
    """

    layers: int
    hidden: int

    @nn.compact
    def __call__(self, first: jax.Array, slots: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, D] from the features [B, F] and the history's representations [B, T, D], mask [B, T]; zeros without a history."""
        width = slots.shape[-1]
        query, some = nn.Dense(width, name="first")(first), mask.any(axis=1, keepdims=True)
        for k in range(self.layers):
            weight = masked_softmax(jnp.einsum("bd,btd->bt", query, slots) / jnp.sqrt(width), mask)
            self.sow("intermediates", f"layer{k}", weight)
            read = jnp.einsum("bt,btd->bd", weight.astype(slots.dtype), slots)
            query = MLP((self.hidden,), width, name=f"ffn{k}")(read, train=False)
        return jnp.where(some, query, 0.0)


def similarities(candidate: jax.Array, slots: jax.Array, mask: jax.Array, length: jax.Array) -> jax.Array:
    """[B, 2 T] cosines of candidate and slots, as they stand in time and from the largest down; 0 where masked, which the
    sorted copy has last.

    Args:
      candidate: [B, D].
      slots, mask: [B, T, D], [B, T] bool.
      length: [B, T] of each slot's vector, so that no normalised copy of the slots is needed.
    """
    candidate = candidate * jax.lax.rsqrt(jnp.maximum(jnp.sum(candidate * candidate, axis=-1, keepdims=True), 1e-12))
    cosine = jnp.einsum("bd,btd->bt", candidate, slots) / jnp.maximum(length, 1e-6)
    ranked = -jnp.sort(jnp.where(mask, -cosine, jnp.inf), axis=1)
    return jnp.concatenate([jnp.where(mask, cosine, 0.0), jnp.where(jnp.isfinite(ranked), ranked, 0.0)], axis=1)


def _length(x: jax.Array) -> jax.Array:
    """[S] of the rows of x [S, D]; of a zero row 0, without the NaN of its gradient."""
    squared = jnp.sum(x * x, axis=-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


class Lemur(nn.Module):
    """Click logits from IDs, the candidate's representation, the query and the history's representations.

    Attributes:
      fields: the dataset's categorical fields.
      backbone: module from `backbones.Features` to (logit [B], named scalars).
      short: the last so many events of a history are the short one, which target attention and the backbone read.
      modules: of `HISTORY_MODULES`: "short": target attention; "long": the decoder over all T; "similarity": cosines with all T.
      decoder_layers, decoder_hidden: of the decoder.
      query_history: how many of the last events stand in for the query, where the dataset has none.
      numbers, number_settings: those that are read as values, and how they are embedded.
      last: how many of the last slots hold the last events; in others the candidate may say which events they are, and
        a query that it shaped would know its document.
    """

    fields: Fields
    backbone: nn.Module
    short: int
    modules: tuple[str, ...]
    decoder_layers: int
    decoder_hidden: int
    query_history: int
    numbers: Numbers = NO_NUMBERS
    number_settings: NumberSettings = NumberSettings()
    last: int = 1 << 30

    @nn.compact
    def __call__(
        self, rows: jax.Array, items: Representations, query: jax.Array | None, batch: Batch, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(logit [B], named intermediates: "query" [B, D], "document" [B, D], "item_fields" [S, F, W], scalars).

        Args:
          rows: [R, W] the batch's distinct rows of the embedding table.
          items: representations of the batch's distinct items.
          query: [B, D] representation of the query; None without queries.
          batch: see `core/batch.py`.
        """
        embedded = field_embeddings(rows, batch["item_row"], self.fields.item)  # [S, F, W]
        others = other_embeddings(rows, batch, self.fields)
        embed = EmbeddedNumbers(self.numbers, self.number_settings, rows.shape[-1], name="numbers")
        embedded, others, values = with_numbers(embedded, others, embed(batch, rows.dtype))
        candidate, history = batch["item_position"], batch["history_position"]
        valid = batch["history_mask"]
        mask = valid & exchange.picked(items.history_present, history)
        document = exchange.rows(items.candidate, candidate)
        document = jnp.where(exchange.picked(items.present, candidate)[:, None], document, 0.0)
        # [B, T, D]; what is masked has weight 0 wherever it is read.
        slots = exchange.rows(items.history, history)
        if query is None:
            recent = min(self.query_history, self.last, slots.shape[1])
            valid_recent = mask[:, -recent:]
            total = jnp.einsum("bt,btd->bd", valid_recent.astype(slots.dtype), slots[:, -recent:])
            mean = total / jnp.maximum(valid_recent.sum(axis=1, keepdims=True), 1)
            width = slots.shape[-1]
            # Items against items at first, which even fresh representations rank well. From nothing, SQDC first gains where all
            # representations become alike, and stays there.
            query = mean + MLP((width,), width, name="recent_history")(mean, train=train)
        content = [document, query, query * document]
        scalars: dict[str, jax.Array] = {}
        if "short" in self.modules:
            latest = slots[:, -self.short :]
            weight = masked_softmax(DotScore(name="content_attention")(document, latest), mask[:, -self.short :])
            self.sow("intermediates", f"content_attention_{WEIGHTS}", weight)
            interest = jnp.einsum("bt,btd->bd", weight.astype(latest.dtype), latest)
            scalars |= entropies("content_attention", weight, mask[:, -self.short :])
            content += [interest, interest * document]
        if "long" in self.modules:
            known = exchange.rows(embedded.reshape(embedded.shape[0], -1), candidate)
            first = jnp.concatenate([known, others.reshape(known.shape[0], -1), document, query], axis=-1)
            content.append(Decoder(self.decoder_layers, self.decoder_hidden, name="decoder")(first, slots, mask))
        if "similarity" in self.modules:
            length = exchange.rows(_length(items.history), history)
            content.append(similarities(document, slots, mask, length))
        last = slice(-self.short, None)
        events = event_embeddings(rows, batch | {"history_row": batch["history_row"][:, last]}, self.fields)
        features = Features(embedded, candidate, history[:, last], valid[:, last], *events, others, tuple(content))
        features = features._replace(event_values=None if values is None else values[:, last])
        logit, of_backbone = self.backbone(features, train=train)
        share = lambda mask, valid: mask.sum() / jnp.maximum(valid.sum(), 1)  # noqa: E731
        scalars |= {
            "coverage_short": share(mask[:, -self.short :], valid[:, -self.short :]),
            "coverage_long": share(mask, valid),
        }
        return logit, {"query": query, "document": document, "item_fields": embedded} | scalars | of_backbone
