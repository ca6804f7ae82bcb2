"""Click prediction, the paper's task: L = L_ranking + alpha L_CIC (eq. 14)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config import registry, sections
from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.core.types import Batch
from em3_jax.models.cic import ContentIdHeads
from em3_jax.models.fusion.frozen import Frozen
from em3_jax.models.ranking import CONTENT_PARTS, RankingModel
from em3_jax.models.similarity import item_vectors
from em3_jax.tasks import CONTENT, Inputs, Task

CONTRAST_OVER = ("items", "samples")
SOURCES = ("none", "pre_extracted", "end_to_end", "raw")


def ranking(
    fields: Fields,
    *,
    content: str,
    content_parts: tuple[str, ...],
    content_score: str,
    content_hidden: int,
    content_events: bool = False,
    encoders: Mapping[str, str],
    fusion: str,
    fusion_settings: Mapping[str, Any],
    fusion_chunk: int,
    backbone: str,
    backbone_settings: Mapping[str, Any],
    cic: Mapping[str, Any],
    loss: str,
    precision: str = "f32",
) -> Task:
    """The task of config.model.

    Args:
      fields: the dataset's categorical fields.
      content: "none" (IDs alone), "pre_extracted" (the feature sets' vectors as they are), "end_to_end" (the fusion module
        trains with the ranker), or "raw" (encoders are part of the model; `tasks.raw.with_encoders` puts them before it).
      content_parts, content_score, content_hidden, content_events: see `RankingModel`.
      encoders: feature set -> folder of its encoder, for "raw"; "" = not used.
      fusion, fusion_settings, backbone, backbone_settings, loss: see `parts`.
      fusion_chunk: see `RankingModel`.
      cic: settings of `contrast_with_ids`; weight 0 leaves CIC out.
      precision: "f32", or "bf16": activations alone; parameters, table rows, logits and losses stay f32, and so do
        the sums of gradients by row, see `gather`.
    """
    registry.check_choice("config.model.precision", precision, ("f32", "bf16"))
    lowered = _to_bfloat16 if precision == "bf16" else lambda tree: tree
    encoders = _check_content(content, content_parts, encoders)
    fusion_module = registry.fusion(fusion, fusion_settings)
    fusion_module = {"none": None, "pre_extracted": Frozen()}.get(content, fusion_module)
    contrast = sections.call(contrast_with_ids, cic, "config.model.cic", fields=fields)
    model = RankingModel(
        fields=fields,
        backbone=registry.backbone(backbone, backbone_settings),
        fusion=fusion_module,
        fusion_chunk=fusion_chunk,
        content_score=registry.score(content_score),
        content_hidden=content_hidden,
        content_events=content_events,
        content_parts=tuple(content_parts),
    )
    ranking_loss = registry.loss(loss)
    if fusion_module is None or not contrast.weight:
        contrast = None

    def init(key: jax.Array, inputs: Inputs):
        (logit, out), variables = model.init_with_output(key, *inputs, train=False)
        if logit.shape != inputs.batch["label"].shape:
            raise UserError(f"the backbone gives logits of shape {logit.shape}, not [B]; mend it")
        params = {"model": variables["params"]}
        if contrast:
            params["cic"] = contrast.init(key, out)
        return params

    def apply(params, inputs: Inputs, **options):
        inputs = inputs._replace(rows=lowered(inputs.rows))  # tokens follow
        return model.apply({"params": lowered(params["model"])}, *inputs, **options)

    def total_loss(params, inputs: Inputs, key: jax.Array, step: jax.Array):
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        logit, out = apply(params, inputs, train=True, rngs=rngs)
        batch = inputs.batch
        total = ranking_loss(logit, batch["label"], weights=batch["weight"])
        aux = {"ranking_loss": total} | {name: value for name, value in out.items() if value.ndim == 0}
        if contrast:
            value, accuracy = contrast.loss(lowered(params["cic"]), inputs, out, rng.stream(key, "negatives", step))
            aux |= {"cic_loss": value, "cic_accuracy": accuracy}
            total = total + contrast.weight * value
        return total, aux

    def predict(params, inputs: Inputs) -> jax.Array:
        return apply(params, inputs, train=False)[0]

    def embed(params, inputs: Inputs) -> jax.Array:
        return model.apply({"params": params["model"]}, inputs.tokens, inputs.tokens_mask, method="embed")

    def lookup(params, inputs: Inputs) -> dict[str, jax.Array]:
        if fusion_module is None:
            return {}
        low = jnp.bfloat16 if precision == "bf16" else jnp.float32  # as `predict` has it
        tokens, params = (inputs.tokens, inputs.tokens_mask), {"params": lowered(params["model"])}
        vectors = {CONTENT: model.apply(params, *tokens, low, method="embed").astype(jnp.float32)}
        if "similarity" in content_parts:
            vectors |= {name: item_vectors(tokens, inputs.tokens_mask[name]) for name, tokens in inputs.tokens.items()}
        return vectors

    def score(params, inputs: Inputs) -> jax.Array:
        known = dict(inputs.tokens)
        rows = lowered(inputs.rows)
        embedding = known.pop(CONTENT).astype(rows.dtype) if fusion_module else None
        tokens = {name: vector[:, None] for name, vector in known.items()}
        masks = {name: jnp.ones(vector.shape[:2], bool) for name, vector in tokens.items()}
        inputs = Inputs(rows, tokens, masks, inputs.batch)
        return model.apply({"params": lowered(params["model"])}, *inputs, train=False, embedding=embedding)[0]

    return Task(init, total_loss, predict, embed if fusion_module else None, encoders, lookup=lookup, score=score)


def _to_bfloat16(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


def _check_content(content: str, content_parts: tuple[str, ...], encoders: Mapping[str, str]) -> dict[str, str]:
    """The encoders in use; refuses settings that contradict each other."""
    registry.check_choice("config.model.content", content, SOURCES)
    if not content_parts:
        raise UserError(
            "config.model.content_parts is empty; name some of item, user, similarity, or set config.model.content=none"
        )
    for part in content_parts:
        registry.check_choice("config.model.content_parts", part, CONTENT_PARTS)
    encoders = {name: folder for name, folder in encoders.items() if folder and content != "none"}
    if content == "raw" and not encoders:
        raise UserError(
            "config.model.encoders: names no encoder, but config.model.content is raw; give the encoder folder of each raw "
            "feature set, or set config.model.content=end_to_end"
        )
    if content != "raw" and encoders:
        raise UserError(
            f"config.model.encoders.{min(encoders)}: config.model.content '{content}' runs no encoder; leave it out, or set "
            "config.model.content=raw"
        )
    return encoders


class Contrast(NamedTuple):
    """CIC as a part of a task: init (key, out) -> params; loss (params, inputs, out, key) -> (loss, accuracy); its weight."""

    init: Callable
    loss: Callable
    weight: float


def contrast_with_ids(
    fields: Fields,
    *,
    weight: float,
    temperature: float,
    negatives: int,
    width: int,
    id_fields: tuple[str, ...],
    over: str = "items",
) -> Contrast:
    """CIC between the distinct items of a batch (eq. 10-13).

    Items without content and items whose own id is `unknown` in this batch are left out: they have nothing of their own to
    align.

    Args:
      weight: alpha.
      temperature: tau.
      negatives: H; 0 = all other items of the batch.
      width: of the common space.
      id_fields: item fields whose embeddings make id_i.
      over: what the mean is over. "items": the distinct items of the batch, those of histories
        among them. "samples": the B examples, each with its candidate, as eq. 12 and 13 have it;
        items of histories alone are negatives only.
    """
    registry.check_choice("config.model.cic.over", over, CONTRAST_OVER)
    names = [field.name for field in fields.item]
    for name in id_fields:
        if name not in names:
            raise UserError(f"config.model.cic.id_fields: no item field '{name}'; {sections.nearest(name, names)}")
    chosen = [names.index(name) for name in id_fields]
    heads = ContentIdHeads(width)

    def arguments(out):
        ids = [out["item_fields"][:, k] for k in chosen]  # slices: a gather's gradient would be a sum
        return out["content"], jnp.concatenate(ids, axis=1)  # [S, F * W]

    def init(key, out):
        return heads.init(key, *arguments(out))["params"]

    def loss(params, inputs: Inputs, out, key):
        projected = heads.apply({"params": params}, *arguments(out))
        has_content = jnp.stack([mask.any(axis=1) for mask in inputs.tokens_mask.values()]).any(axis=0)
        mask = inputs.batch["item_mask"] & inputs.batch["item_is_known"] & has_content
        counted = candidate_counts(inputs.batch) if over == "samples" else None
        value, aux = losses.content_id_contrastive(
            *projected, mask, temperature=temperature, weight=counted, negatives=negatives or None, key=key
        )
        return value, aux["cic_accuracy"]

    return Contrast(init, loss, weight)


def candidate_counts(batch: Batch) -> jax.Array:
    """[S] f32: how many examples have the item of a row as their candidate, by their weights.

    Rows of the same item, which shards have named apart, have the same count.
    """
    item = batch["item_id"]
    own = jnp.zeros(len(item), jnp.float32).at[batch["item_position"]].add(batch["weight"])
    order = jnp.argsort(item)
    ascending = item[order]
    is_new = jnp.concatenate([jnp.zeros(1, bool), ascending[1:] != ascending[:-1]])
    number = jnp.cumsum(is_new)
    total = jax.ops.segment_sum(own[order], number, len(item), indices_are_sorted=True)
    return jnp.zeros_like(own).at[order].set(total[number], unique_indices=True)
