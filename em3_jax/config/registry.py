"""The parts that a config chooses by name, or takes from a user's own file: fusion, backbone, attention score, loss.

The library's own parts come through the same door, `sections.part`, and have no other privilege.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from flax.core import FrozenDict

from em3_jax import losses
from em3_jax.config import sections
from em3_jax.core.errors import UserError
from em3_jax.models import fusion as fusion_
from em3_jax.models.attention import CosineScore, DotScore, MeanScore, MLPScore
from em3_jax.models.backbones import BackboneSettings
from em3_jax.models.backbones.crossing import DCNv2, DeepFM, WideDeep
from em3_jax.models.backbones.din import DIN
from em3_jax.models.fusion.flows import Mean, OneFlow, TwoFlow
from em3_jax.models.fusion.fq_former import FusionQFormer, MaskedFusionQFormer
from em3_jax.models.lora import STOP_GRADIENTS, LoRA
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
BACKBONES = {"din": DIN, "deepfm": DeepFM, "dcnv2": DCNv2, "wide_deep": WideDeep}
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


def fusion(name: str, settings: Mapping[str, Any], section: str = "config.model") -> nn.Module:
    """The fusion module: `fusion` of the config's section, built with its `fusion_settings`."""
    made = sections.part(f"{section}.fusion", name, FUSIONS)
    where = f"{section}.fusion_settings"
    lora = sections.call(LoRA, settings["lora"], f"{where}.lora") if "lora" in settings else LoRA()
    check_choice(f"{where}.lora.stop_gradient", lora.stop_gradient, STOP_GRADIENTS)
    chosen = sections.call(fusion_.FusionSettings, dict(settings) | {"lora": lora}, where)
    if chosen.width % chosen.heads:
        raise UserError(f"{where}: {chosen.heads} heads do not divide the width {chosen.width}; change one")
    return made(chosen)


def backbone(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """The backbone: config.model.backbone, built with config.model.backbone_settings."""
    made = sections.part("config.model.backbone", name, BACKBONES)
    where = "config.model.backbone_settings"
    settings = dict(settings)
    if "attention_score" in settings:
        settings["attention_score"] = sections.part(f"{where}.attention_score", settings["attention_score"], SCORES)
    return made(sections.call(BackboneSettings, settings, where))


def retrieval(name: str, settings: Mapping[str, Any], num_users: int, num_items: int) -> nn.Module:
    """The retrieval model: config.model.retrieval, built with config.model.retrieval_settings.

    Settings `fusion` and `fusion_settings` become the fusion module; its width is the model's.
    """
    made = sections.part("config.model.retrieval", name, RETRIEVALS)
    where = "config.model.retrieval_settings"
    settings = {key: FrozenDict(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    if {"fusion", "fusion_settings", "width"} <= set(settings):
        given = settings.pop("fusion_settings")
        if "width" in given:
            raise UserError(f"{where}.fusion_settings.width: is that of the model; set {where}.width")
        settings["fusion"] = fusion(settings["fusion"], dict(given) | {"width": settings["width"]}, where)
    return sections.call(made, settings, where, num_users=num_users, num_items=num_items)


def score(name: str) -> Callable:
    """Hidden width -> the score of the attention on content: config.model.content_score."""
    return sections.part("config.model.content_score", name, SCORES)


def loss(name: str) -> Callable:
    """The ranking loss, (logits [B], labels [B], weights= [B]) -> [], config.model.loss."""
    return sections.part("config.model.loss", name, LOSSES)


def check_choice(where: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of `known`."""
    if value not in known:
        raise UserError(f"{where} '{value}' is unknown; {sections.nearest(value, known)}")
