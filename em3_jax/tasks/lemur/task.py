"""LEMUR: click prediction with an encoder that trains inside the ranker, and histories read from a memory bank.

L = L_ranking + lambda L_SQDC (+ alpha L_CIC, which LEMUR found to be of no use once the encoder trains jointly).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config import registry, sections
from em3_jax.core import gather, rng
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.features.encoding import RawEncoder
from em3_jax.models.encoders.fields import EncoderSettings, FieldEncoder, TextLayout
from em3_jax.models.lemur import HISTORY_MODULES, Lemur, Representations
from em3_jax.models.similarity import cosine
from em3_jax.tables import memory_bank
from em3_jax.tasks import CONTENT, Inputs, Task, gathered, standardise
from em3_jax.tasks.ranking.task import contrast_with_ids

ENCODE = ("candidates", "all")


class Query(NamedTuple):
    """config.model.query: `layers` of the query encoder, `length` of a query in words, `vocabulary`; 0 = there are no queries."""

    layers: int
    length: int
    vocabulary: int


class Sqdc(NamedTuple):
    """config.model.sqdc: `weight` lambda, 0 leaves it out; `scale` T of the cosines; `mask_group`: rows of one query, or of one
    user where there is none, are no negatives of each other."""

    weight: float
    scale: float
    mask_group: bool


def lemur(
    fields: Fields,
    layouts: Mapping[str, Any],
    raw: Mapping[str, RawEncoder],
    *,
    encoder: Mapping[str, Any],
    encode: str,
    forward_percent: float,
    backward_percent: float,
    ranking_weight: float,
    ranking_gradient: bool,
    history_gradient: bool,
    history_modules: tuple[str, ...],
    short_history: int,
    query: Mapping[str, Any],
    query_history: int,
    decoder_layers: int,
    decoder_hidden: int,
    backbone: str,
    backbone_settings: Mapping[str, Any],
    sqdc: Mapping[str, Any],
    cic: Mapping[str, Any],
    loss: str,
) -> Task:
    """The task of config.model.

    Args:
      fields: the dataset's categorical fields.
      layouts: feature set -> how the encoder reads it, see `models.encoders.fields`.
      raw: feature set -> converted encoder that reads it first, its weights among the parameters.
      encoder: settings of `EncoderSettings`.
      encode: "candidates": histories come from the bank; "all": every distinct item is encoded in each step, the bank unused
        but for what it reports (what the bank saves; for comparison).
      forward_percent: p, of the n distinct items to encode, ceil(p n) are; the others are read from
        the bank.
      backward_percent: q <= p; ceil(q n) of them take a gradient.
      ranking_weight: of the ranking loss; 0 trains the encoder on SQDC alone, the first of two
        stages. Then the scores are what SQDC orders documents by, T s(q, d): the ranker has learnt
        nothing that could choose a step.
      ranking_gradient: False cuts the ranking loss off from the encoder, which then learns from SQDC alone.
      history_gradient: whether the gradient reaches the encoder through those history slots, too, whose items are encoded in
        this step; histories see the fresh representation either way.
      history_modules, short_history, query_history, decoder_layers, decoder_hidden: see `Lemur`.
      query: see `Query`; its encoder is the items' but for its depth, with parameters of its own.
      backbone, backbone_settings, loss: see `parts`.
      sqdc: see `Sqdc`.
      cic: see `tasks.ranking`; of the items encoded in the step.
    """
    registry.check_choice("config.model.encode", encode, ENCODE)
    for name in history_modules:
        registry.check_choice("config.model.history_modules", name, HISTORY_MODULES)
    if not 0 <= backward_percent <= forward_percent <= 100 or not forward_percent:
        raise UserError(
            f"config.model: forward_percent={forward_percent}, backward_percent={backward_percent}; give 0 <= backward_percent "
            "<= forward_percent <= 100, the latter not 0"
        )
    sizes = sections.call(EncoderSettings, encoder, "config.model.encoder")
    if sizes.width % sizes.heads:
        raise UserError(f"config.model.encoder: {sizes.heads} heads do not divide the width {sizes.width}; change one")
    if sizes.layers < 1:
        raise UserError(f"config.model.encoder.layers={sizes.layers}; give 1 or more, or no token reads another")
    contrast = sections.call(Sqdc, sqdc, "config.model.sqdc")
    if not ranking_weight and not contrast.weight:
        raise UserError("config.model: ranking_weight and sqdc.weight are both 0; give one of them a weight")
    cic_part = sections.call(contrast_with_ids, cic, "config.model.cic", fields=fields)
    field_encoder = FieldEncoder(sizes, tuple(layouts.items()))
    asked = sections.call(Query, query, "config.model.query")
    of_query = TextLayout((("query", asked.length),), (asked.length,), asked.vocabulary)
    query_encoder = (
        FieldEncoder(sizes._replace(layers=asked.layers), (("query", of_query),)) if asked.vocabulary else None
    )
    model = Lemur(
        fields=fields,
        backbone=registry.backbone(backbone, backbone_settings),
        short=short_history,
        modules=tuple(history_modules),
        decoder_layers=decoder_layers,
        decoder_hidden=decoder_hidden,
        query_history=query_history,
    )
    ranking_loss = registry.loss(loss)

    def encoded(params, tokens, masks) -> jax.Array:
        """[P, D] representations of some items."""
        tokens, masks = dict(tokens), dict(masks)
        for name, one in raw.items():
            found, masks[name] = one.encode(params["encoders"][name], tokens[name], masks[name])
            tokens[name] = standardise(found, masks[name])
        return field_encoder.apply({"params": params["encoder"]}, tokens, masks)

    def query_of(params, batch) -> jax.Array | None:
        """[B, D] representations of the queries; None without."""
        if query_encoder is None:
            return None
        words = batch["query_tokens"]
        return query_encoder.apply(
            {"params": params["query_encoder"]}, {"query": words[..., None]}, {"query": words > 0}
        )

    def inputs_of(rows, constants, batch) -> Inputs:
        """Inputs whose tokens are those of the items to encode."""
        items = batch["item_id"]
        if "encode_position" in batch:  # a pass over the catalogue is about all of its items
            items = items[batch["encode_position"]]
        return gathered(rows, constants, batch | {"item_id": items})._replace(batch=batch)

    def fresh(params, inputs: Inputs, key: jax.Array | None) -> memory_bank.Writes:
        """What the encoder makes of the items; of all of them without a key."""
        batch = inputs.batch
        position, mask = batch["encode_position"], batch["encode_mask"]
        content = (inputs.tokens, inputs.tokens_mask)
        if key is None or backward_percent == 100:
            return memory_bank.Writes(position, mask, encoded(params, *content), mask)
        first = memory_bank.first_places(batch["item_id"][position], mask)
        distinct = mask & (first == jnp.arange(len(first)))
        order = memory_bank.rank(batch["stored"], position, distinct, key)
        sample = memory_bank.sample(order, distinct.sum(), forward_percent, backward_percent)
        some = lambda params, content, rows: encoded(  # noqa: E731
            params, *jax.tree.map(lambda array: jnp.take(array, rows, axis=0), content)
        )
        found, rows = [], []
        if len(sample.trained):
            found.append(some(params, content, sample.trained))
            rows.append(jnp.where(sample.trained_mask, sample.trained, len(order)))
        if len(sample.held):
            found.append(some(*jax.lax.stop_gradient((params, content)), sample.held))
            rows.append(jnp.where(sample.held_mask, sample.held, len(order)))
        found, rows = jnp.concatenate(found), jnp.concatenate(rows)  # a masked row is len(order), and dropped
        vector = jnp.zeros((len(order), found.shape[1]), found.dtype).at[rows].set(found, mode="drop")
        is_encoded = jnp.zeros(len(order), bool).at[rows].set(True, mode="drop")
        return memory_bank.Writes(position, mask, vector[first], mask & is_encoded[first])

    def represented(writes: memory_bank.Writes, batch) -> Representations:
        """The fresh representations in the place of the stored ones, in histories too."""
        stored: memory_bank.Stored = batch["stored"]
        place = jnp.where(writes.encoded, writes.position, len(batch["item_id"]))
        vector = stored.vector.at[place].set(writes.vector, mode="drop")
        present = stored.present.at[place].set(True, mode="drop")
        return Representations(vector, vector if history_gradient else jax.lax.stop_gradient(vector), present, present)

    def scored(params, inputs: Inputs, items: Representations, **options):
        query = query_of(params, inputs.batch)
        return model.apply({"params": params["model"]}, inputs.rows, items, query, inputs.batch, **options)

    def final_score(params, inputs: Inputs, items: Representations) -> jax.Array:
        logit, out = scored(params, inputs, items, train=False)
        return logit if ranking_weight else contrast.scale * cosine(out["query"], out["document"])

    def init(key: jax.Array, inputs: Inputs):
        keys = jax.random.split(key, 4)
        tokens, masks, loaded = dict(inputs.tokens), dict(inputs.tokens_mask), {}
        for name, one in raw.items():  # pretrained weights have no place in a compiled program: see `tasks.raw`
            loaded[name] = jax.tree.map(jnp.zeros_like, one.params)
            tokens[name], masks[name] = one.encode(loaded[name], tokens[name], masks[name])
        params = {"encoder": field_encoder.init(keys[0], tokens, masks)["params"]}
        params |= {"encoders": loaded} if loaded else {}
        if query_encoder is not None:
            words = inputs.batch["query_tokens"]
            params["query_encoder"] = query_encoder.init(keys[3], {"query": words[..., None]}, {"query": words > 0})[
                "params"
            ]
        items = represented(fresh(params, inputs, None), inputs.batch)
        query = query_of(params, inputs.batch)
        made = model.init_with_output(keys[1], inputs.rows, items, query, inputs.batch, train=False)
        (logit, out), variables = made
        if logit.shape != inputs.batch["label"].shape:
            raise UserError(f"the backbone gives logits of shape {logit.shape}, not [B]; mend it")
        params["model"] = variables["params"]
        if cic_part.weight:
            params["cic"] = cic_part.init(keys[2], out | {"content": items.candidate})
        return params

    def total_loss(params, inputs: Inputs, key: jax.Array, step: jax.Array):
        batch, stored = inputs.batch, inputs.batch["stored"]
        writes = fresh(params, inputs, rng.stream(key, "encoded items", step))
        seen = writes if ranking_gradient else jax.lax.stop_gradient(writes)
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        items = represented(seen, batch)
        logit, out = scored(params, inputs, items, train=True, rngs=rngs)
        value = ranking_loss(logit, batch["label"], weights=batch["weight"])
        total = ranking_weight * value
        aux = {"ranking_loss": value} | {name: value for name, value in out.items() if value.ndim == 0}
        if contrast.weight:
            takes_part = (batch["weight"] > 0) & items.present[batch["item_position"]]
            document = gather.rows(represented(writes, batch).candidate, batch["item_position"])
            value, accuracy = losses.query_document_contrastive(
                out["query"],
                document,
                batch["label"] > 0,
                batch["item_id"][batch["item_position"]],
                batch["group"] if contrast.mask_group else None,
                takes_part,
                scale=contrast.scale,
            )
            aux |= {"sqdc_loss": value} | accuracy
            total = total + contrast.weight * value
        once = _once(writes, batch)
        if cic_part.weight:
            counted = jnp.zeros_like(batch["item_mask"]).at[writes.position].max(once)
            some = inputs._replace(batch=batch | {"item_mask": counted}, tokens_mask={"": counted[:, None]})
            value, accuracy = cic_part.loss(
                params["cic"], some, out | {"content": items.candidate}, rng.stream(key, "negatives", step)
            )
            aux |= {"cic_loss": value, "cic_accuracy": accuracy}
            total = total + cic_part.weight * value
        writes = jax.lax.stop_gradient(writes)
        return total, aux | _staleness(stored, writes, once, batch, step) | {"writes": writes}

    def predict(params, inputs: Inputs) -> jax.Array:
        items = represented(fresh(params, inputs, None), inputs.batch)
        if encode == "candidates":  # what a history reads must not depend on the other candidates of the batch
            stored: memory_bank.Stored = inputs.batch["stored"]
            items = items._replace(history=stored.vector, history_present=stored.present)
        return final_score(params, inputs, items)

    def lookup(params, inputs: Inputs) -> dict[str, jax.Array]:
        stored: memory_bank.Stored = inputs.batch["stored"]
        written = (stored.present & inputs.batch["item_mask"])[:, None]
        vector = encoded(params, inputs.tokens, inputs.tokens_mask)
        return {CONTENT: vector, "bank": jnp.where(written, stored.vector, 0.0), "written": written.astype(jnp.float32)}

    def score(params, inputs: Inputs) -> jax.Array:
        known = inputs.tokens
        present = jnp.ones(known["bank"].shape[0], bool)
        items = Representations(known[CONTENT], known["bank"], present, known["written"][:, 0] > 0)
        return final_score(params, inputs, items)

    # Without the words of a query nothing can be scored, and services pass ids.
    can_be_served = encode == "candidates" and query_encoder is None
    served = (lookup, score) if can_be_served else (None, None)
    return Task(init, total_loss, predict, None, dict.fromkeys(raw), inputs_of, *served)


def _once(writes: memory_bank.Writes, batch) -> jax.Array:
    """[C] bool, the encoded rows, an item that several shards name at one of them."""
    first = memory_bank.first_places(batch["item_id"][writes.position], writes.encoded)
    return writes.encoded & (first == jnp.arange(len(first)))


def _staleness(
    stored: memory_bank.Stored, writes: memory_bank.Writes, once: jax.Array, batch, step: jax.Array
) -> dict[str, jax.Array]:
    """How old what histories read is, in steps; the cosine of stored and fresh representations of
    what was encoded now; and how many items that were, each `once`."""
    slots = batch["history_mask"] & jnp.take(stored.present, batch["history_position"])
    age = jnp.where(slots, step - jnp.take(stored.written, batch["history_position"]), 0)
    again = once & stored.present[writes.position]
    old = stored.vector[writes.position]
    norm = jnp.linalg.norm(old, axis=1) * jnp.linalg.norm(writes.vector, axis=1)
    cosine = jnp.sum(old * writes.vector, axis=1) / jnp.maximum(norm, 1e-12)
    count = again.sum()
    return {
        "staleness_steps": age.sum() / jnp.maximum(slots.sum(), 1),
        "staleness_cosine": jnp.where(count > 0, jnp.where(again, cosine, 0.0).sum() / jnp.maximum(count, 1), jnp.nan),
        "encoded_items": once.sum().astype(jnp.float32),
    }
