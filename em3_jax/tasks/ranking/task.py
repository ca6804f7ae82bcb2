"""Click prediction, the task of EM3: L = L_ranking + alpha L_CIC (eq. 14).

Letters: B examples, S distinct items of a batch, W width of what is looked up of an item, D of its
content embedding.
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.config import parse, registry
from em3_jax.config.schema.ranking import RankingSettings
from em3_jax.core import rng
from em3_jax.core.amounts import Amount
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.core.labels import Labels
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.models import similarity
from em3_jax.models.aggregators import AGGREGATORS, ATTEND
from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.frozen import Frozen
from em3_jax.models.numbers import NumberSettings
from em3_jax.models.quantiser import ResidualQuantiser
from em3_jax.models.ranking import CONTENT_PARTS, RankingModel
from em3_jax.models.similarity import item_vectors
from em3_jax.tasks import CONTENT, Inputs, Intermediates, Loss, Params, Task
from em3_jax.tasks.cic import ContentIdContrast, content_id_contrast
from em3_jax.tasks.clicks import LossOfClicks, check_logit, ranking_loss
from em3_jax.tasks.heads import FurtherLabels, further_labels

PRECISIONS = {"f32": jnp.float32, "bf16": jnp.bfloat16}

Attended = tuple[jax.Array, Mapping[str, Any]]
Applied = tuple[jax.Array, Intermediates]
"""(logit [B], named intermediates) of the model."""


@dataclasses.dataclass(frozen=True, eq=False)
class RankingTask(Task):
    """The task.

    Attributes:
      model: from IDs and content to logits.
      loss_of_clicks: see `clicks.ranking_loss`.
      contrast: CIC; None without content, and where its weight is 0.
      encoders: feature set -> folder of the encoder that has to read it first.
      dtype: of the activations.
      commitment: weight of the loss that keeps content near its codes, if the model has a quantiser.
      further: the labels that are learnt besides; None without any.
    """

    model: RankingModel
    loss_of_clicks: LossOfClicks
    contrast: ContentIdContrast | None
    encoders: Mapping[str, str]
    dtype: Any
    commitment: float = 0.0
    further: FurtherLabels | None = None

    @property
    def labels(self) -> Labels:
        return Labels() if self.further is None else self.further.names

    @property
    def uses_content(self) -> bool:
        return self.model.fusion is not None

    @property
    def rows_dtype(self) -> Any:
        return self.dtype

    @property
    def embeds(self) -> bool:
        return self.uses_content

    @property
    def can_be_served(self) -> bool:
        return True

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        (logit, out), variables = self.model.init_with_output(key, *inputs, train=False)
        check_logit(logit, inputs.batch)
        params = {"model": variables["params"]}
        if self.contrast is not None:
            params["cic"] = self.contrast.init(key, out)
        if self.further is not None and (own := self.further.init()):
            params["heads"] = own
        return params

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        logit, out = self._apply(params, inputs, train=True, rngs=rngs)
        total, aux = ranking_loss(self.loss_of_clicks, logit, out, inputs.batch)
        if self.further is not None:
            total, of_labels = self.further.loss(params.get("heads", {}), total, logit, out, inputs.batch)
            aux |= of_labels
        if self.contrast is not None:
            of_heads, drawn = self._lowered(params["cic"]), rng.stream(key, "negatives", step)
            value, of_contrast = self.contrast.loss(of_heads, inputs, out, drawn)
            total, aux = total + value, aux | of_contrast
        if self.model.quantiser is not None:
            total += self.commitment * out["quantiser_loss"]
            moved = {name: out[f"moved_{name}"] for name in params["model"]["quantiser"]}
            aux |= {"statistics": {"model": {"quantiser": moved}}}
        return total, aux

    def predict(self, params: Params, inputs: Inputs) -> jax.Array:
        return self._first(params, self._apply(params, inputs, train=False)[0])

    def _first(self, params: Params, logit: jax.Array) -> jax.Array:
        """[B] what is said of the first label."""
        return logit if self.further is None else self.further.first_score(params, logit)

    def predict_all(self, params: Params, inputs: Inputs) -> jax.Array:
        assert self.further is not None  # or there is one label
        return self.further.beside(params, *self._apply(params, inputs, train=False))

    def attend(self, params: Params, inputs: Inputs) -> Attended:
        """([B] what `predict` gives, the weights of the model's attentions by the paths of their modules)."""
        applied: Any = dataclasses.replace(self, model=self.whole)._apply(
            params, inputs, train=False, mutable=["intermediates"]
        )
        (logit, _), kept = applied
        return self._first(params, logit), kept.get("intermediates", {})

    @property
    def whole(self) -> RankingModel:
        """The model without chunks, which save memory in training: out of them come no weights of attentions."""
        fusion: Any = self.model.fusion
        settings = getattr(fusion, "settings", None)
        if isinstance(settings, FusionSettings):
            fusion = fusion.clone(settings=settings._replace(layer_chunk=0))
        return self.model.clone(fusion=fusion, fusion_chunk=0)

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        content = (inputs.tokens, inputs.tokens_mask)
        result: Any = self.model.apply({"params": params["model"]}, *content, method="embed")
        return result

    def codes(self, params: Params, inputs: Inputs) -> jax.Array:
        content = (inputs.tokens, inputs.tokens_mask)
        lowered = self._variables(params)
        result: Any = self.model.apply(lowered, *content, self.dtype, method="codes")
        return result

    def lookup(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        """The content embedding and, for `similarity.PARTS`, a vector of each modality."""
        if not self.uses_content:
            return {}
        tokens, masks = inputs.tokens, inputs.tokens_mask
        lowered = self._variables(params)
        embedding: Any = self.model.apply(lowered, tokens, masks, self.dtype, method="embed")
        found = {CONTENT: embedding.astype(jnp.float32)}
        if any(name in self.model.content_parts for name in similarity.PARTS):
            found |= {name: item_vectors(one, masks[name]) for name, one in tokens.items()}
        return found

    def score(self, params: Params, inputs: Inputs) -> jax.Array:
        return self._first(params, self._scored(params, inputs)[0])

    def score_all(self, params: Params, inputs: Inputs) -> jax.Array:
        assert self.further is not None  # or there is one label
        return self.further.beside(params, *self._scored(params, inputs))

    def _scored(self, params: Params, inputs: Inputs) -> Applied:
        """The model on what was looked up."""
        known = dict(inputs.tokens)
        rows = self._lowered(inputs.rows)
        embedding = known.pop(CONTENT).astype(rows.dtype) if self.uses_content else None
        tokens = {name: vector[:, None] for name, vector in known.items()}
        masks = {name: jnp.ones(vector.shape[:2], bool) for name, vector in tokens.items()}
        inputs = Inputs(rows, tokens, masks, inputs.batch)
        result: Any = self.model.apply(self._variables(params), *inputs, train=False, embedding=embedding)
        return result

    def _apply(self, params: Params, inputs: Inputs, **options: Any) -> Applied:
        """The model, computed in `dtype`."""
        inputs = inputs._replace(rows=self._lowered(inputs.rows))  # tokens follow
        variables = self._variables(params)
        result: Any = self.model.apply(variables, *inputs, **options)
        return result

    def _variables(self, params: Params) -> dict[str, Any]:
        """The model's parameters in `dtype`, but for codebooks: they are running means, which stay f32."""
        kept = {name: one for name, one in params["model"].items() if name == "quantiser"}
        return {"params": self._lowered(params["model"]) | kept}

    def _lowered(self, tree: Any) -> Any:
        """A tree of f32 arrays in `dtype`."""
        if self.dtype == jnp.float32:
            return tree
        return jax.tree.map(lambda leaf: leaf.astype(self.dtype), tree)


def ranking(
    fields: Fields,
    settings: RankingSettings,
    amounts: Mapping[str, Amount] = types.MappingProxyType({}),
    segments: Sequence[tuple[str, int]] = (),
    numbers: Numbers = NO_NUMBERS,
    first: str = "",
) -> RankingTask:
    """The task of a config.

    Args:
      fields: the dataset's categorical fields.
      amounts: the labels that are amounts, as they begin.
      segments: (name, slots) of the parts of a history; () = it is one.
      numbers: those that are read as values.
      first: the name of the first label, if that is an amount.
      settings: config.model. Of `content`, "none" is IDs alone, "pre_extracted" the feature sets'
        vectors as they are, "end_to_end" a fusion module that trains with the ranker, and "raw"
        has encoders in the model, which `raw.WithEncoders` puts before it.

    Raises:
      UserError: a setting contradicts another, or the dataset.
    """
    encoders = _check_content(settings)
    fusion = _fusion(settings)
    backbone = registry.backbone(settings.backbone, settings.backbone_settings, settings.heads)
    if settings.similar_attention and (fusion is None or not getattr(backbone, "reads_similarity", False)):
        raise UserError(
            "config.model.similar_attention: is of DIN's attention on IDs, and reads content; set config.model.backbone=din "
            "and a config.model.content, or leave it out"
        )
    contrast = content_id_contrast(settings.cic, fields, numbers)
    ranker = RankingModel(
        fields=fields,
        backbone=backbone,
        fusion=fusion,
        fusion_chunk=settings.fusion_chunk,
        content_score=registry.score(settings.content_score),
        content_hidden=settings.content_hidden,
        content_events=settings.content_events,
        content_parts=tuple(settings.content_parts),
        content_aggregator=AGGREGATORS[settings.content_aggregator],
        quantiser=_quantiser(settings),
        segments=tuple(segments),
        similar_attention=settings.similar_attention,
        numbers=numbers,
        number_settings=NumberSettings(**parse.entries(settings.number_settings)),
    )
    return RankingTask(
        model=ranker,
        loss_of_clicks=registry.loss(settings.loss),
        contrast=None if fusion is None else contrast,
        encoders=encoders,
        dtype=PRECISIONS[settings.precision],
        commitment=settings.quantiser.commitment,
        further=further_labels(settings.heads, amounts, first),
    )


def _quantiser(settings: RankingSettings) -> ResidualQuantiser | None:
    """What makes codes of content; None where there is none, or it is read as it is."""
    own = settings.quantiser
    if not own.levels:
        return None
    if settings.content in ("none", "pre_extracted"):
        raise UserError(
            f"config.model.quantiser.levels={own.levels}: config.model.content '{settings.content}' has no embedding that "
            "the click trains; set config.model.content=end_to_end, or make codes with `em3 codes` for config.data.codes"
        )
    return ResidualQuantiser(own.levels, own.size)


def _fusion(settings: RankingSettings) -> nn.Module | None:
    """The fusion module; None for IDs alone. Its settings are checked whatever the content."""
    made = registry.content_fusion(settings.fusion, settings.fusion_settings)
    return {"none": None, "pre_extracted": Frozen()}.get(settings.content, made)


def _check_content(settings: RankingSettings) -> dict[str, str]:
    """The encoders in use; refuses settings that contradict each other."""
    content = settings.content
    if not settings.content_parts:
        known = ", ".join(CONTENT_PARTS)
        hint = f"name some of {known}, or set config.model.content=none"
        raise UserError(f"config.model.content_parts is empty; {hint}")
    aggregator = settings.content_aggregator
    if settings.content_events and aggregator not in ATTEND:
        raise UserError(
            f"config.model.content_events: content_aggregator '{aggregator}' reads no event fields, "
            f"those that attend do ({', '.join(ATTEND)}); leave it out, or choose one of these"
        )
    given = settings.encoders.items()
    encoders = {name: folder for name, folder in given if folder and content != "none"}
    if content == "raw" and not encoders:
        raise UserError(
            "config.model.encoders: names no encoder, but config.model.content is raw; give the "
            "encoder folder of each raw feature set, or set config.model.content=end_to_end"
        )
    if content != "raw" and encoders:
        raise UserError(
            f"config.model.encoders.{min(encoders)}: config.model.content '{content}' runs no "
            "encoder; leave it out, or set config.model.content=raw"
        )
    used = [name for name in ("encoder_prior", "encoder_trains") if getattr(settings, name)]
    if content not in ("raw", "none") and used:
        raise UserError(
            f"config.model.{used[0]}: config.model.content '{content}' runs no encoder; leave it "
            "out, or set config.model.content=raw"
        )
    return encoders
