"""LEMUR: click prediction with an encoder that trains inside the ranker, and histories read from a memory bank.

L = L_ranking + lambda L_SQDC (+ alpha L_CIC, which LEMUR found to be of no use once the encoder trains jointly).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax import config, gather, losses, memory, parts, rng
from em3_jax.encoding import RawEncoder
from em3_jax.fields import Fields
from em3_jax.models.encoders.fields import EncoderSettings, FieldEncoder, TextLayout
from em3_jax.models.lemur import HISTORY_MODULES, Lemur, Representations
from em3_jax.tasks import CONTENT, Inputs, Task, gathered, standardise
from em3_jax.tasks.ranking import contrast_with_ids
from em3_jax.types import UserError

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
      forward_percent: p, of the items to encode, how many are; the others are read from the bank.
      backward_percent: q <= p, how many of them take a gradient.
      ranking_weight: of the ranking loss; 0 trains the encoder on SQDC alone, the first of two stages.
      ranking_gradient: False cuts the ranking loss off from the encoder, which then learns from SQDC alone.
      history_gradient: whether the gradient reaches the encoder through those history slots, too, whose items are encoded in
        this step; histories see the fresh representation either way.
      history_modules, short_history, query_history, decoder_layers, decoder_hidden: see `Lemur`.
      query: see `Query`; its encoder is the items' but for its depth, with parameters of its own.
      backbone, backbone_settings, loss: see `parts`.
      sqdc: see `Sqdc`.
      cic: see `tasks.ranking`; of the items encoded in the step.
    """
    parts.check_choice("config.model.encode", encode, ENCODE)
    for name in history_modules:
        parts.check_choice("config.model.history_modules", name, HISTORY_MODULES)
    if not 0 <= backward_percent <= forward_percent <= 100 or not forward_percent:
        raise UserError(
            f"config.model: forward_percent={forward_percent}, backward_percent={backward_percent}; give 0 <= backward_percent "
            "<= forward_percent <= 100, the latter not 0"
        )
    sizes = config.call(EncoderSettings, encoder, "config.model.encoder")
    if sizes.width % sizes.heads:
        raise UserError(f"config.model.encoder: {sizes.heads} heads do not divide the width {sizes.width}; change one")
    if sizes.layers < 1:
        raise UserError(f"config.model.encoder.layers={sizes.layers}; give 1 or more, or no token reads another")
    contrast = config.call(Sqdc, sqdc, "config.model.sqdc")
    cic_part = config.call(contrast_with_ids, cic, "config.model.cic", fields=fields)
    field_encoder = FieldEncoder(sizes, tuple(layouts.items()))
    asked = config.call(Query, query, "config.model.query")
    of_query = TextLayout((("query", asked.length),), (asked.length,), asked.vocabulary)
    query_encoder = (
        FieldEncoder(sizes._replace(layers=asked.layers), (("query", of_query),)) if asked.vocabulary else None
    )
    model = Lemur(
        fields=fields,
        backbone=parts.backbone(backbone, backbone_settings),
        short=short_history,
        modules=tuple(history_modules),
        decoder_layers=decoder_layers,
        decoder_hidden=decoder_hidden,
        query_history=query_history,
    )
    ranking_loss = parts.loss(loss)

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

    def fresh(params, inputs: Inputs, key: jax.Array | None) -> memory.Writes:
        """What the encoder makes of the items; of all of them without a key."""
        batch = inputs.batch
        position, mask = batch["encode_position"], batch["encode_mask"]
        count = len(position)
        forward, backward = (math.ceil(count * percent / 100) for percent in (forward_percent, backward_percent))
        if key is None:
            forward, backward = count, 0
        if backward == count:
            vector = encoded(params, inputs.tokens, inputs.tokens_mask)
            return memory.Writes(position, mask, vector, mask)
        order = memory.rank(batch["stored"], position, mask, key) if key is not None else jnp.arange(count)

        def some(params, chosen: jax.Array) -> jax.Array:
            take = lambda array: jnp.take(array, chosen, axis=0)  # noqa: E731
            return encoded(params, *jax.tree.map(take, (inputs.tokens, inputs.tokens_mask)))

        groups = [(params, order[:backward]), (jax.lax.stop_gradient(params), order[backward:forward])]
        found = jnp.concatenate([some(*group) for group in groups if len(group[1])])
        chosen = order[:forward]
        vector = jnp.zeros((count, found.shape[1]), found.dtype).at[chosen].set(found, unique_indices=True)
        return memory.Writes(position, mask, vector, mask & jnp.zeros(count, bool).at[chosen].set(True))

    def represented(writes: memory.Writes, batch) -> Representations:
        """The fresh representations in the place of the stored ones, in histories too."""
        stored: memory.Stored = batch["stored"]
        place = jnp.where(writes.encoded, writes.position, len(batch["item_id"]))
        vector = stored.vector.at[place].set(writes.vector, mode="drop")
        present = stored.present.at[place].set(True, mode="drop")
        return Representations(vector, vector if history_gradient else jax.lax.stop_gradient(vector), present, present)

    def scored(params, inputs: Inputs, items: Representations, **options):
        query = query_of(params, inputs.batch)
        return model.apply({"params": params["model"]}, inputs.rows, items, query, inputs.batch, **options)

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
                batch["group"] if contrast.mask_group else None,
                takes_part,
                scale=contrast.scale,
            )
            aux |= {"sqdc_loss": value} | accuracy
            total = total + contrast.weight * value
        if cic_part.weight:
            counted = jnp.zeros_like(batch["item_mask"]).at[writes.position].max(writes.encoded)
            some = inputs._replace(batch=batch | {"item_mask": counted}, tokens_mask={"": counted[:, None]})
            value, accuracy = cic_part.loss(
                params["cic"], some, out | {"content": items.candidate}, rng.stream(key, "negatives", step)
            )
            aux |= {"cic_loss": value, "cic_accuracy": accuracy}
            total = total + cic_part.weight * value
        writes = jax.lax.stop_gradient(writes)
        return total, aux | _staleness(stored, writes, batch, step) | {"writes": writes}

    def predict(params, inputs: Inputs) -> jax.Array:
        items = represented(fresh(params, inputs, None), inputs.batch)
        if encode == "candidates":  # what a history reads must not depend on the other candidates of the batch
            stored: memory.Stored = inputs.batch["stored"]
            items = items._replace(history=stored.vector, history_present=stored.present)
        return scored(params, inputs, items, train=False)[0]

    def lookup(params, inputs: Inputs) -> dict[str, jax.Array]:
        stored: memory.Stored = inputs.batch["stored"]
        written = (stored.present & inputs.batch["item_mask"])[:, None]
        vector = encoded(params, inputs.tokens, inputs.tokens_mask)
        return {CONTENT: vector, "bank": jnp.where(written, stored.vector, 0.0), "written": written.astype(jnp.float32)}

    def score(params, inputs: Inputs) -> jax.Array:
        known = inputs.tokens
        present = jnp.ones(known["bank"].shape[0], bool)
        items = Representations(known[CONTENT], known["bank"], present, known["written"][:, 0] > 0)
        return scored(params, inputs, items, train=False)[0]

    # Without the words of a query nothing can be scored, and services pass ids.
    can_be_served = encode == "candidates" and query_encoder is None
    served = (lookup, score) if can_be_served else (None, None)
    return Task(init, total_loss, predict, None, dict.fromkeys(raw), inputs_of, *served)


def _staleness(stored: memory.Stored, writes: memory.Writes, batch, step: jax.Array) -> dict[str, jax.Array]:
    """How old what histories read is, in steps, and the cosine of stored and fresh representations of what was encoded now."""
    slots = batch["history_mask"] & jnp.take(stored.present, batch["history_position"])
    age = jnp.where(slots, step - jnp.take(stored.written, batch["history_position"]), 0)
    again = writes.encoded & stored.present[writes.position]
    old = stored.vector[writes.position]
    norm = jnp.linalg.norm(old, axis=1) * jnp.linalg.norm(writes.vector, axis=1)
    cosine = jnp.sum(old * writes.vector, axis=1) / jnp.maximum(norm, 1e-12)
    count = again.sum()
    return {
        "staleness_steps": age.sum() / jnp.maximum(slots.sum(), 1),
        "staleness_cosine": jnp.where(count > 0, jnp.where(again, cosine, 0.0).sum() / jnp.maximum(count, 1), jnp.nan),
        "encoded_items": writes.encoded.sum().astype(jnp.float32),
    }
