"""What a training run optimizes: a task is three pure functions, and the loop knows no more than that."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax import config, encoding, losses, rng
from em3_jax.fields import Fields
from em3_jax.models import fusion as fusion_
from em3_jax.models.cic import ContentIdHeads
from em3_jax.models.fusion.flows import Mean, OneFlow, TwoFlow
from em3_jax.models.fusion.fq_former import FusionQFormer, MaskedFusionQFormer
from em3_jax.models.lora import STOP_GRADIENTS, LoRA
from em3_jax.models.ranking import RankingModel
from em3_jax.types import Batch, UserError


class Task(NamedTuple):
    """A task.

    Attributes:
      init: (key, inputs) -> params.
      loss: (params, inputs, key, step) -> (loss [], named intermediates, each a scalar).
      predict: (params, inputs) -> logits [B].
      uses_content: whether `inputs.tokens` is read at all.
      encoders: feature set -> folder of the encoder that has to read it first, see `with_encoders`.
    """

    init: Callable
    loss: Callable
    predict: Callable
    uses_content: bool
    encoders: dict[str, str]


class Inputs(NamedTuple):
    """What a task sees of a batch.

    Attributes:
      rows: [R, W] distinct rows of the embedding table.
      tokens, tokens_mask: {modality: [S, N, E]}, {modality: [S, N]} content of the distinct items; integers are raw.
      batch: the batch itself.
    """

    rows: jax.Array
    tokens: dict[str, jax.Array]
    tokens_mask: dict[str, jax.Array]
    batch: Batch


def is_raw(tokens: jax.Array) -> bool:
    """Whether these are pixels or token ids, which an encoder has to read first."""
    return jnp.issubdtype(tokens.dtype, jnp.integer)


@jax.jit
def standardise(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Tokens [..., E] with mean 0 and variance 1 over E, zero where masked, in their own dtype; raw ones as they are.

    Encoders differ in scale by orders of magnitude. Without affine parameters this belongs to the data: tables on the
    device are standardised once, when they are placed there, and not in every step.
    """
    if is_raw(tokens):
        return tokens
    x = tokens.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return jnp.where(mask[..., None], x, 0.0).astype(tokens.dtype)


CONTENT = ("none", "end_to_end", "raw")
SCORES = ("dot", "mlp")
FUSIONS = {
    "fq_former": FusionQFormer,
    "masked_fq_former": MaskedFusionQFormer,
    "one_flow": OneFlow,
    "two_flow": TwoFlow,
    "mean": Mean,
}


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"config.model.{name} '{value}' is unknown; {config.nearest(value, known)}")


def ranking(
    fields: Fields,
    *,
    content: str,
    encoders: Mapping[str, str],
    fusion: str,
    fusion_settings: Mapping[str, Any],
    cic: Mapping[str, Any],
    **model_settings: Any,
) -> Task:
    """Click prediction: L = L_ranking + alpha L_CIC (eq. 14).

    Args:
      fields: the dataset's categorical fields.
      content: "none" (IDs alone), "end_to_end" (the fusion module trains with the ranker), or "raw" (encoders are part of
        the model; `with_encoders` puts them before it).
      encoders: feature set -> folder of its encoder, for "raw"; "" = not used.
      fusion: a key of `FUSIONS`.
      fusion_settings: of `fusion.FusionSettings`.
      cic: settings of `_cic`; weight 0 leaves CIC out.
      model_settings: settings of `RankingModel`.
    """
    _check_choice("content", content, CONTENT)
    for name in ("attention_score", "content_score"):
        if name in model_settings:
            _check_choice(name, model_settings[name], SCORES)
    encoders = {name: folder for name, folder in encoders.items() if folder and content != "none"}
    if content == "raw" and not encoders:
        raise UserError(
            "config.model.encoders: names no encoder, but config.model.content is raw; give the encoder folder of each raw "
            "feature set, or set config.model.content=end_to_end"
        )
    if content == "end_to_end" and encoders:
        raise UserError(
            f"config.model.encoders.{min(encoders)}: config.model.content 'end_to_end' runs no encoder; leave it out, or set "
            "config.model.content=raw"
        )
    fusion_module = _fusion(fusion, fusion_settings)
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

    return Task(init, loss, predict, uses_content=fusion_module is not None, encoders=encoders)


def _fusion(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """The fusion module `name`, see `FUSIONS`."""
    _check_choice("fusion", name, tuple(FUSIONS))
    lora = config.call(LoRA, settings["lora"], "config.model.fusion_settings.lora") if "lora" in settings else LoRA()
    _check_choice("fusion_settings.lora.stop_gradient", lora.stop_gradient, STOP_GRADIENTS)
    made = config.call(fusion_.FusionSettings, dict(settings) | {"lora": lora}, "config.model.fusion_settings")
    if made.width % made.heads:
        raise UserError(
            f"config.model.fusion_settings: {made.heads} heads do not divide the width {made.width}; change one"
        )
    return FUSIONS[name](made)


def with_encoders(task: Task, encoders: Mapping[str, encoding.RawEncoder]) -> Task:
    """`task` on raw content: in each step encoders make tokens of it, and their weights are among the parameters.

    Args:
      task: a task on content tokens.
      encoders: feature set -> its encoder; other feature sets hold tokens already. `init` gives params["encoders"][name]
        as zeros: pretrained weights have no place in a compiled program.
    """

    def encoded(params, inputs: Inputs) -> Inputs:
        tokens, masks = dict(inputs.tokens), dict(inputs.tokens_mask)
        for name, encoder in encoders.items():
            found, masks[name] = encoder.encode(params["encoders"][name], tokens[name], masks[name])
            tokens[name] = standardise(found, masks[name])
        return inputs._replace(tokens=tokens, tokens_mask=masks)

    def init(key: jax.Array, inputs: Inputs):
        zeros = {"encoders": {name: jax.tree.map(jnp.zeros_like, encoder.params) for name, encoder in encoders.items()}}
        return task.init(key, encoded(zeros, inputs)) | zeros

    return task._replace(
        init=init,
        loss=lambda params, inputs, key, step: task.loss(params, encoded(params, inputs), key, step),
        predict=lambda params, inputs: task.predict(params, encoded(params, inputs)),
    )


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
