"""The ranking model (EM3, section 3.1): ID features and content features, handed to a backbone that gives the logit.

Letters: B batch, T history, S distinct items, R distinct table rows, C columns of a field group, F fields, W ID width, D width.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange, gather
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Field, Fields, columns
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.core.types import Batch
from em3_jax.models import similarity
from em3_jax.models.aggregators import Behaviours, attentive
from em3_jax.models.backbones import Features
from em3_jax.models.fusion.chunks import as_type, in_chunks
from em3_jax.models.numbers import EmbeddedNumbers, NumberSettings
from em3_jax.models.quantiser import Quantised, ResidualQuantiser, usage
from em3_jax.models.similarity import item_vectors

Positions = tuple[jax.Array | None, jax.Array | None]
"""([E, W] rows of event fields, [B, T, C] i32 positions among them); None where there are none."""
Events = tuple[jax.Array | None, jax.Array | None, jax.Array | None]
"""The same and [B, T, W] the sum of the events' embedded numbers; None without any."""

CONTENT_PARTS = ("item", "user", *similarity.PARTS)


def field_embeddings(rows: jax.Array, position: jax.Array, fields: Sequence[Field]) -> jax.Array:
    """[*, F, W] one embedding per field; multi-valued fields are the mean of their values, padding left out.

    Args:
      rows: [R, W] the distinct table rows; row 0 is padding.
      position: [*, C] i32 positions in `rows`, the fields side by side.
    """
    values = exchange.rows(rows, position)  # [*, C, W]
    parts = []
    for field, column in zip(fields, columns(tuple(fields)).values(), strict=True):
        value = values[..., column, :]
        if field.length > 1:
            valid = (position[..., column] != 0)[..., None]
            value = jnp.sum(value * valid, axis=-2, keepdims=True) / jnp.maximum(valid.sum(axis=-2, keepdims=True), 1)
        parts.append(value)
    return jnp.concatenate(parts, axis=-2)


def other_embeddings(rows: jax.Array, batch: Batch, fields: Fields) -> jax.Array:
    """[B, F, W] embeddings of the user and context fields of a batch."""
    blocks = [
        field_embeddings(rows, batch[f"{group}_row"], specs)
        for group in ("user", "context")
        if (specs := getattr(fields, group))
    ]
    return (
        jnp.concatenate(blocks, axis=1)
        if blocks
        else jnp.zeros((batch["label"].shape[0], 0, rows.shape[-1]), rows.dtype)
    )


def with_numbers(
    items: jax.Array, others: jax.Array, numbers: Mapping[str, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """([S, F, W] items and [B, F, W] others with their numbers as further fields, [B, T, W] what numbers say of events).

    Args:
      items, others: of the categorical fields.
      numbers: group -> vectors, see `EmbeddedNumbers`; {} = none are read as values.
    """
    if "item" in numbers:
        items = jnp.concatenate([items, numbers["item"]], axis=1)
    more = [numbers[group] for group in ("user", "context") if group in numbers]
    others = jnp.concatenate([others, *more], axis=1) if more else others
    return items, others, numbers["event"].sum(axis=2) if "event" in numbers else None


def event_embeddings(rows: jax.Array, batch: Batch, fields: Fields) -> Positions:
    """The table rows of the history's event fields and the position of each event among them.

    Of small vocabularies, the few rows by themselves: all B x T events name one of these, and so
    `exchange.rows` gathers and sums them as a product. A batch has all of them, at the table's end.

    Args:
      rows: [R, W] the distinct table rows.
      batch: see `core/batch.py`; a request names rows of the table and has no "row_id".
      fields: the dataset's.
    """
    if not fields.event:
        return None, None
    position = batch["history_row"]
    count = sum(field.size - 1 for field in fields.event)
    if count >= gather.FEW or "row_id" not in batch:
        return rows, position
    event = fields.num_rows - count + jnp.arange(count)

    def few(rows: jax.Array, row_id: jax.Array, position: jax.Array) -> Positions:
        place = jnp.argmax(row_id == event[:, None], axis=1)  # [E] in the block
        among = sum(jnp.where(position == place[k], k + 1, 0) for k in range(count))
        return gather.rows(rows, jnp.pad(place, (1, 0))), jnp.asarray(among)  # the padding row first

    return exchange.in_block(few)(rows, batch["row_id"], position)


class RankingModel(nn.Module):
    """Click logits from IDs and, if there is a fusion module, from content (eq. 1, 6-8).

    Attributes:
      fields: the dataset's categorical fields.
      backbone: module from `backbones.Features` to (logit [B], named scalars).
      fusion: module from content tokens to item embeddings [S, D]; None is the ID-only model.
      fusion_chunk: most items that it sees at once in training, see `fusion.chunks`; 0 = all.
      content_score, content_hidden: of the attention on content, see `TargetAttention`.
      content_events: whether that attention reads the history's event fields, as the one on IDs does.
      content_parts: "item": the candidate's content c_A; "user": the user's content interest u_A; both: their product too;
      content_aggregator: how the history's content becomes u_A, see `aggregators`; each of its channels that is as wide as
        c_A has a product with it.
      segments: see `backbones.Features`.
      similar_attention: whether the backbone's attention reads the cosines of content embeddings (SA-TA: semantic-aware
        target attention, Wu et al., MUSE, 2025).
      numbers, number_settings: those that are read as values, and how they are embedded.
    """

    fields: Fields
    backbone: nn.Module
    fusion: nn.Module | None
    fusion_chunk: int
    content_score: Callable
    content_hidden: int
    content_events: bool
    content_parts: Sequence[str]
    content_aggregator: Callable = attentive
    quantiser: ResidualQuantiser | None = None
    segments: Sequence[tuple[str, int]] = ()
    similar_attention: bool = False
    numbers: Numbers = NO_NUMBERS
    number_settings: NumberSettings = NumberSettings()

    @nn.compact
    def __call__(
        self,
        rows: jax.Array,
        tokens: dict[str, jax.Array],
        tokens_mask: dict[str, jax.Array],
        batch: Batch,
        *,
        train: bool,
        embedding: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(logit [B], named intermediates).

        Args:
          rows: [R, W] the batch's distinct rows of the embedding table.
          tokens, tokens_mask: {modality: [S, N, E]}, {modality: [S, N]} of the distinct items, on several devices of those that
            each owns, see `core.exchange`; unused without fusion.
          batch: see `core/batch.py`.
          embedding: [S, D] content embeddings where they are known already; then `similarity.PARTS` alone read the tokens.
        """
        items = field_embeddings(rows, batch["item_row"], self.fields.item)  # [S, F, W]
        others = other_embeddings(rows, batch, self.fields)
        embed = EmbeddedNumbers(self.numbers, self.number_settings, rows.shape[-1], name="numbers")
        items, others, values = with_numbers(items, others, embed(batch, rows.dtype))
        events = (*event_embeddings(rows, batch, self.fields), values)
        content: tuple[jax.Array, ...] = ()
        out: dict[str, jax.Array] = {}

        def fused(fusion: nn.Module, inputs: tuple) -> jax.Array:
            tokens, mask = inputs
            return fusion(as_type(tokens, rows.dtype), mask, train=train)

        if self.fusion is not None:
            coded = None
            if embedding is None:
                embedding = in_chunks(self.fusion, self.fusion_chunk, fused, (tokens, tokens_mask))
                if self.quantiser is not None:
                    coded = self.quantiser(embedding, _counted(tokens_mask, batch, len(embedding)))
                    embedding = coded.vectors
            content, out = self._content(embedding, tokens, tokens_mask, batch, events, items, coded)
        near = None
        if self.similar_attention and "content" in out:
            near = similarity.with_history(
                similarity.unit(out["content"].astype(jnp.float32)), batch["item_position"], batch["history_position"]
            )
        features = Features(
            items, batch["item_position"], batch["history_position"], batch["history_mask"], *events[:2], others, content,
            tuple((name, length) for name, length in self.segments), near, values,
        )  # fmt: skip
        logit, scalars = self.backbone(features, train=train)
        return logit, {"item_fields": items} | out | scalars

    def _content(
        self,
        embedding: jax.Array,
        tokens,
        tokens_mask,
        batch: Batch,
        events: Events,
        ids: jax.Array,
        coded: Quantised | None,
    ) -> tuple[tuple[jax.Array, ...], dict[str, jax.Array]]:
        """(content features, each [B, D]; named intermediates)."""
        items = next(iter(tokens.values()), batch["item_id"]).shape[0]  # is open in an exported program
        if embedding.ndim != 2 or embedding.shape[0] != items:
            raise UserError(f"the fusion module gives shape {embedding.shape}, not [S, D] with S = {items}; mend it")
        candidate, history, mask = batch["item_position"], batch["history_position"], batch["history_mask"]
        units = {}
        near = [part for name, part in similarity.PARTS.items() if name in self.content_parts]
        if near:
            units = {name: item_vectors(tokens[name], tokens_mask[name]) for name in sorted(tokens)}
        flag = has_content(tokens_mask, items)[:, None].astype(embedding.dtype)
        of_codes = [] if coded is None else [coded.errors[:, None], coded.codes.astype(jnp.float32)]
        (embedding, flag, *others), counts = exchange.to_examples(batch, embedding, flag, *units.values(), *of_codes)
        vectors = others[: len(units)]
        has = flag[:, 0] > 0
        out, parts = {"content": embedding, "item_counts": counts & has, "item_has_content": has}, []
        if coded is not None:
            out |= self._of_codes(*others[len(units) :], counts=out["item_counts"])
            out |= {f"moved_{name}": value for name, value in coded.moved.items()}
        if "item" in self.content_parts:
            parts.append(exchange.rows(embedding, candidate))
        if "user" in self.content_parts:
            read = events if self.content_events and any(one is not None for one in events) else ()
            seen = Behaviours(embedding, candidate, history, mask, read, ids)
            interests, scalars = self.content_aggregator(seen, self.content_score, self.content_hidden)
            out |= scalars
            own = parts.copy()
            parts += interests
            parts += [c * u for c in own for u in interests if u.shape == c.shape]
        for part in near:
            for unit in vectors:
                similar = part(unit, candidate, history, mask)
                parts.append(similar.astype(embedding.dtype))
        return tuple(parts), out

    def _of_codes(self, errors: jax.Array, codes: jax.Array, *, counts: jax.Array) -> dict[str, jax.Array]:
        """{"quantiser_loss": []}, and how many of the codes are in use; each distinct item with content counts once."""
        assert self.quantiser is not None
        error = jnp.sum(jnp.where(counts, errors[:, 0], 0.0)) / jnp.maximum(counts.sum(), 1)
        return {"quantiser_loss": error} | usage(codes.astype(jnp.int32), counts, self.quantiser.size)

    def embed(
        self, tokens: dict[str, jax.Array], tokens_mask: dict[str, jax.Array], dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """[S, D] content embeddings of items (eq. 6), as at prediction."""
        embedding, coded = self._embedded(tokens, tokens_mask, dtype)
        return embedding if coded is None else coded.vectors

    def codes(self, tokens: dict[str, jax.Array], tokens_mask: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
        """[S, L] i32 codes of items, as at prediction."""
        coded = self._embedded(tokens, tokens_mask, dtype)[1]
        assert coded is not None  # a model without a quantiser is not asked for any
        return coded.codes

    def _embedded(
        self, tokens: dict[str, jax.Array], tokens_mask: dict[str, jax.Array], dtype: jnp.dtype
    ) -> tuple[jax.Array, Quantised | None]:
        """(what the fusion module gives, and what the quantiser makes of it, if there is one)."""
        assert self.fusion is not None  # a model of IDs alone is not asked for any
        embedding = self.fusion(as_type(tokens, dtype), tokens_mask, train=False)
        if self.quantiser is None:
            return embedding, None
        return embedding, self.quantiser(embedding, has_content(tokens_mask, len(embedding)))


def has_content(tokens_mask: dict[str, jax.Array], items: int) -> jax.Array:
    """[S] bool: the item has a token; all have where no tokens are told of."""
    some = [found.any(axis=1) for found in tokens_mask.values()]
    return jnp.stack(some).any(axis=0) if some else jnp.ones(items, bool)


def _counted(tokens_mask: dict[str, jax.Array], batch: Batch, items: int) -> jax.Array:
    """[S] bool: the item has content, and its place does not only fill the batch.

    In blocks a device owns an item once, and what fills has no content.
    """
    found = has_content(tokens_mask, items)
    return found if "item_route" in batch else found & batch["item_mask"]
