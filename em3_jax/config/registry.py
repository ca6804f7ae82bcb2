"""The parts that a config chooses by name, or takes from a user's own file: fusion, backbone, attention score, loss.

The library's own parts come through the same door, `sections.part`, and have no other privilege.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import optax
from flax.core import FrozenDict

from em3_jax import losses
from em3_jax.config import parse, sections
from em3_jax.config.schema import ranking
from em3_jax.config.schema import retrieval as of_retrieval
from em3_jax.core.errors import UserError
from em3_jax.models import fusion as fusion_
from em3_jax.models.attention import CosineScore, DotScore, MeanScore, MLPScore
from em3_jax.models.backbones import BackboneSettings
from em3_jax.models.backbones.crossing import DCNv2, DeepFM, WideDeep
from em3_jax.models.backbones.deepctr import DeepCTR
from em3_jax.models.backbones.din import DIN
from em3_jax.models.fusion.flows import Mean, OneFlow, TwoFlow
from em3_jax.models.fusion.fq_former import FusionQFormer, MaskedFusionQFormer
from em3_jax.models.fusion.frozen import AS_THEY_ARE, Frozen
from em3_jax.models.heads import Heads
from em3_jax.models.lora import LoRA
from em3_jax.models.retrieval.bm3 import BM3
from em3_jax.models.retrieval.collaborative import BPR, LightGCN
from em3_jax.models.retrieval.em3 import EM3
from em3_jax.models.retrieval.em3_released import EM3AsReleased
from em3_jax.models.retrieval.freedom import FREEDOM
from em3_jax.models.retrieval.lattice import LATTICE
from em3_jax.models.retrieval.slmrec import SLMRec
from em3_jax.models.retrieval.vbpr import VBPR

FUSIONS = {
    "fq_former": FusionQFormer,
    "masked_fq_former": MaskedFusionQFormer,
    "one_flow": OneFlow,
    "two_flow": TwoFlow,
    "mean": Mean,
}
BACKBONES = {"din": DIN, "deepfm": DeepFM, "dcnv2": DCNv2, "wide_deep": WideDeep, "deepctr": DeepCTR}
SCORES = {"dot": DotScore, "mlp": MLPScore, "cosine": CosineScore, "mean": MeanScore}
RETRIEVALS = {
    "bpr": BPR,
    "lightgcn": LightGCN,
    "vbpr": VBPR,
    "slmrec": SLMRec,
    "lattice": LATTICE,
    "bm3": BM3,
    "freedom": FREEDOM,
    "em3": EM3,
    "em3_as_released": EM3AsReleased,
}
LOSSES = {"binary_cross_entropy": losses.binary_cross_entropy}
OPTIMIZERS = {"adam": optax.scale_by_adam}


def fusion(name: str, settings: ranking.FusionSettings, section: str = "config.model") -> nn.Module:
    """The fusion module: `fusion` of the config's section, built with its `fusion_settings`."""
    made = sections.part(f"{section}.fusion", name, FUSIONS)
    if settings.width % settings.heads:
        raise UserError(
            f"{section}.fusion_settings: {settings.heads} heads do not divide the width {settings.width}; change one"
        )
    given = parse.entries(settings)
    lora = LoRA(**parse.entries(settings.lora))
    return made(fusion_.FusionSettings(**given | {"lora": lora}))


def content_fusion(name: str, settings: ranking.FusionSettings) -> nn.Module:
    """The fusion module of a ranking model: one of `fusion`, or "as_they_are", which has no settings."""
    return Frozen(scale=1.0) if name == AS_THEY_ARE else fusion(name, settings)


def backbone(name: str, settings: ranking.BackboneSettings, heads: ranking.Heads | None = None) -> nn.Module:
    """The backbone: config.model.backbone, built with config.model.backbone_settings.

    Args:
      heads: config.model.heads; None = it has none.

    Raises:
      UserError: there are further labels, and it has no heads for them.
    """
    made = sections.part("config.model.backbone", name, BACKBONES)
    where = "config.model.backbone_settings.attention_score"
    attention_score = sections.part(where, settings.attention_score, SCORES)
    given = parse.entries(settings) | {"attention_score": attention_score, "heads": _heads(name, made, heads)}
    return made(BackboneSettings(**given))


def _heads(name: str, made: Any, heads: ranking.Heads | None) -> Heads | None:
    """What a backbone's further labels are learnt with."""
    if heads is None or not heads.labels:
        return None
    if not getattr(made, "has_heads", False):
        known = ", ".join(sorted(one for one, module in BACKBONES.items() if getattr(module, "has_heads", False)))
        raise UserError(f"config.model.heads.labels: backbone {name} has no heads for further labels; choose {known}")
    return Heads(heads.labels, heads.kind, heads.experts, heads.own_experts, tuple(heads.hidden))


def retrieval(name: str, settings: Any, num_users: int, num_items: int) -> nn.Module:
    """The retrieval model: config.model.retrieval, built with config.model.retrieval_settings.

    Settings `fusion` and `fusion_settings` become the fusion module; its width is the model's.

    Args:
      settings: a section of `schema.retrieval`; of a model of the user's own what the config says, a mapping.
    """
    made = sections.part("config.model.retrieval", name, RETRIEVALS)
    where = "config.model.retrieval_settings"
    given = dict(settings) if isinstance(settings, Mapping) else parse.entries(settings)
    if {"fusion", "fusion_settings", "width"} <= set(given):
        given["fusion"] = fusion(given["fusion"], _of_width(given.pop("fusion_settings"), given["width"], where), where)
    given = {key: FrozenDict(value) if isinstance(value, Mapping) else value for key, value in given.items()}
    return sections.call(made, given, where, num_users=num_users, num_items=num_items)


def _of_width(settings: Any, width: int, where: str) -> ranking.FusionSettings:
    """What a fusion module of that width is built from; it has no width of its own."""
    if isinstance(settings, Mapping):
        if "width" in settings:
            raise UserError(f"{where}.fusion_settings.width: is that of the model; set {where}.width")
        where = f"{where}.fusion_settings".removeprefix("config.")
        settings = parse.section(of_retrieval.ItemFusion, settings, where)
    return ranking.FusionSettings(**parse.entries(settings) | {"width": width})


def score(name: str) -> Callable:
    """Hidden width -> the score of the attention on content: config.model.content_score."""
    return sections.part("config.model.content_score", name, SCORES)


def loss(name: str) -> Callable:
    """The ranking loss, (logits [B], labels [B], weights= [B]) -> [], config.model.loss."""
    return sections.part("config.model.loss", name, LOSSES)


def optimizer(name: str) -> Callable[[], optax.GradientTransformation]:
    """() -> what makes updates of gradients, before decay and learning rate: config.optim.optimizer.

    Raises:
      UserError: there is none of that name, or it gives no optax transformation of nothing.
    """
    where = "config.optim.optimizer"
    made = sections.part(where, name, OPTIMIZERS)
    try:
        given: Any = made()
    except TypeError as error:
        given = error
    if not isinstance(given, optax.GradientTransformation):
        raise UserError(
            f"{where}={parse.shown(name)}: gives no optax transformation when it is called without arguments ({given}); "
            "the learning rate follows, so give optax.scale_by_lion, say, not optax.lion"
        )
    return made
