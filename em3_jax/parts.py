"""The parts that a config chooses by name, or takes from a user's own file: fusion, backbone, attention score, loss.

The library's own parts come through the same door, `config.part`, and have no other privilege.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from em3_jax import config, losses
from em3_jax.models import fusion as fusion_
from em3_jax.models.attention import DotScore, MLPScore
from em3_jax.models.backbones import BackboneSettings
from em3_jax.models.backbones.crossing import DCNv2, DeepFM, WideDeep
from em3_jax.models.backbones.din import DIN
from em3_jax.models.fusion.flows import Mean, OneFlow, TwoFlow
from em3_jax.models.fusion.fq_former import FusionQFormer, MaskedFusionQFormer
from em3_jax.models.lora import STOP_GRADIENTS, LoRA
from em3_jax.types import UserError

FUSIONS = {
    "fq_former": FusionQFormer,
    "masked_fq_former": MaskedFusionQFormer,
    "one_flow": OneFlow,
    "two_flow": TwoFlow,
    "mean": Mean,
}
BACKBONES = {"din": DIN, "deepfm": DeepFM, "dcnv2": DCNv2, "wide_deep": WideDeep}
SCORES = {"dot": DotScore, "mlp": MLPScore}
LOSSES = {"binary_cross_entropy": losses.binary_cross_entropy}


def fusion(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """The fusion module: config.model.fusion, built with config.model.fusion_settings."""
    made = config.part("config.model.fusion", name, FUSIONS)
    lora = config.call(LoRA, settings["lora"], "config.model.fusion_settings.lora") if "lora" in settings else LoRA()
    check_choice("config.model.fusion_settings.lora.stop_gradient", lora.stop_gradient, STOP_GRADIENTS)
    settings = config.call(fusion_.FusionSettings, dict(settings) | {"lora": lora}, "config.model.fusion_settings")
    if settings.width % settings.heads:
        raise UserError(
            f"config.model.fusion_settings: {settings.heads} heads do not divide the width {settings.width}; change one"
        )
    return made(settings)


def backbone(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """The backbone: config.model.backbone, built with config.model.backbone_settings."""
    made = config.part("config.model.backbone", name, BACKBONES)
    where = "config.model.backbone_settings"
    settings = dict(settings)
    if "attention_score" in settings:
        settings["attention_score"] = config.part(f"{where}.attention_score", settings["attention_score"], SCORES)
    return made(config.call(BackboneSettings, settings, where))


def score(name: str) -> Callable:
    """Hidden width -> the score of the attention on content: config.model.content_score."""
    return config.part("config.model.content_score", name, SCORES)


def loss(name: str) -> Callable:
    """The ranking loss, (logits [B], labels [B], weights= [B]) -> [], config.model.loss."""
    return config.part("config.model.loss", name, LOSSES)


def check_choice(where: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of `known`."""
    if value not in known:
        raise UserError(f"{where} '{value}' is unknown; {config.nearest(value, known)}")
