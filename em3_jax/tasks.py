"""What a training run optimizes: a task is three pure functions, and the loop knows no more than that."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax import config, losses, rng
from em3_jax.fields import Fields
from em3_jax.models.cic import ContentIdHeads
from em3_jax.models.fq_former import FusionQFormer
from em3_jax.models.ranking import RankingModel
from em3_jax.types import Batch, UserError


class Task(NamedTuple):
    """A task.

    Attributes:
      init: (key, inputs) -> params.
      loss: (params, inputs, key, step) -> (loss [], named intermediates, each a scalar).
      predict: (params, inputs) -> logits [B].
      uses_content: whether `inputs.tokens` is read at all.
    """

    init: Callable
    loss: Callable
    predict: Callable
    uses_content: bool


class Inputs(NamedTuple):
    """What a task sees of a batch.

    Attributes:
      rows: [R, W] distinct rows of the embedding table.
      tokens, tokens_mask: {modality: [S, N, E]}, {modality: [S, N]} content of the distinct items.
      batch: the batch itself.
    """

    rows: jax.Array
    tokens: dict[str, jax.Array]
    tokens_mask: dict[str, jax.Array]
    batch: Batch


CONTENT = ("none", "end_to_end")
SCORES = ("dot", "mlp")


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"config.model.{name} '{value}' is unknown; {config.nearest(value, known)}")


def ranking(
    fields: Fields, *, content: str, fusion: Mapping[str, Any], cic: Mapping[str, Any], **model_settings: Any
) -> Task:
    """Click prediction: L = L_ranking + alpha L_CIC (eq. 14).

    Args:
      fields: the dataset's categorical fields.
      content: "none" (IDs alone) or "end_to_end" (the fusion module trains with the ranker).
      fusion: settings of `FusionQFormer`.
      cic: settings of `_cic`; weight 0 leaves CIC out.
      model_settings: settings of `RankingModel`.
    """
    _check_choice("content", content, CONTENT)
    for name in ("attention_score", "content_score"):
        if name in model_settings:
            _check_choice(name, model_settings[name], SCORES)
    fusion_module = config.call(FusionQFormer, fusion, "config.model.fusion")
    if fusion_module.width % fusion_module.heads:
        raise UserError(
            f"config.model.fusion: {fusion_module.heads} heads do not divide the width {fusion_module.width}; change one"
        )
    contrast = config.call(_cic, cic, "config.model.cic", fields=fields)
    if content == "none":
        fusion_module = None
    model = config.call(RankingModel, model_settings, "config.model", fields=fields, fusion=fusion_module)
    if fusion_module is None or not contrast.weight:
        contrast = None

    def init(key: jax.Array, inputs: Inputs):
        (_, out), variables = model.init_with_output(key, *inputs, train=False)
        params = {"model": variables["params"]}
        if contrast:
            params["cic"] = contrast.init(key, out)
        return params

    def loss(params, inputs: Inputs, key: jax.Array, step: jax.Array):
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        logit, out = model.apply({"params": params["model"]}, *inputs, train=True, rngs=rngs)
        batch = inputs.batch
        total = losses.binary_cross_entropy(logit, batch["label"], weights=batch["weight"])
        aux = {"ranking_loss": total} | {name: value for name, value in out.items() if value.ndim == 0}
        if contrast:
            value, accuracy = contrast.loss(params["cic"], inputs, out, rng.stream(key, "negatives", step))
            aux |= {"cic_loss": value, "cic_accuracy": accuracy}
            total = total + contrast.weight * value
        return total, aux

    def predict(params, inputs: Inputs) -> jax.Array:
        return model.apply({"params": params["model"]}, *inputs, train=False)[0]

    return Task(init, loss, predict, uses_content=fusion_module is not None)


class _Cic(NamedTuple):
    init: Callable
    loss: Callable
    weight: float


def _cic(
    fields: Fields, *, weight: float, temperature: float, negatives: int, width: int, id_fields: tuple[str, ...]
) -> _Cic:
    """CIC over the distinct items of a batch (eq. 10-13).

    Items without content and items whose own id is `unknown` in this batch are left out: they have nothing of their own to
    align.

    Args:
      weight: alpha.
      temperature: tau.
      negatives: H; 0 = all other items of the batch.
      width: of the common space.
      id_fields: item fields whose embeddings make id_i.
    """
    names = [field.name for field in fields.item]
    for name in id_fields:
        if name not in names:
            raise UserError(f"config.model.cic.id_fields: no item field '{name}'; {config.nearest(name, names)}")
    chosen = jnp.array([names.index(name) for name in id_fields])
    heads = ContentIdHeads(width)

    def arguments(out):
        ids = out["item_fields"][:, chosen]  # [S, F, W]
        return out["content"], ids.reshape(len(ids), -1)

    def init(key, out):
        return heads.init(key, *arguments(out))["params"]

    def loss(params, inputs: Inputs, out, key):
        projected = heads.apply({"params": params}, *arguments(out))
        has_content = jnp.stack([mask.any(axis=1) for mask in inputs.tokens_mask.values()]).any(axis=0)
        mask = inputs.batch["item_mask"] & inputs.batch["item_is_known"] & has_content
        value, aux = losses.content_id_contrastive(
            *projected, mask, temperature=temperature, negatives=negatives or None, key=key
        )
        return value, aux["cic_accuracy"]

    return _Cic(init, loss, weight)
