"""config.model of LEMUR: its groups, and what is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from em3_jax.config import registry, sections
from em3_jax.core.errors import UserError
from em3_jax.models.encoders.fields import EncoderSettings
from em3_jax.models.lemur import HISTORY_MODULES

ENCODE = ("candidates", "all")


@dataclasses.dataclass(frozen=True)
class QuerySettings:
    """config.model.query.

    Attributes:
      layers: of the query encoder.
      length: of a query, in words.
      vocabulary: numbers that words are hashed to; 0 = there are no queries.
    """

    layers: int
    length: int
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class SqdcSettings:
    """config.model.sqdc, of the contrast of query and document.

    Attributes:
      weight: lambda; 0 leaves it out.
      scale: T, of the cosines.
      mask_group: rows of one query, or of one user where there is none, are no negatives of each
        other.
    """

    weight: float
    scale: float
    mask_group: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """config.model, without what says how the items' content is laid out.

    Attributes:
      encoder: settings of `EncoderSettings`.
      encode: "candidates": histories come from the bank; "all": every distinct item is encoded in
        each step, the bank unused but for what it reports (what the bank saves; for comparison).
      forward_percent: p; of the n distinct items to encode, ceil(p n) are; the others are read from
        the bank.
      backward_percent: q <= p; ceil(q n) of them take a gradient.
      ranking_weight: of the ranking loss; 0 trains the encoder on SQDC alone, the first of two
        stages. Then the scores are what SQDC orders documents by, T s(q, d): the ranker has learnt
        nothing that could choose a step.
      ranking_gradient: False cuts the ranking loss off from the encoder, which then learns from
        SQDC alone.
      history_gradient: whether the gradient reaches the encoder through those history slots, too,
        whose items are encoded in this step; histories see the fresh representation either way.
      history_modules, short_history, query_history, decoder_layers, decoder_hidden: see `Lemur`.
      query: settings of `QuerySettings`; the query encoder is that of the items but for its depth,
        with parameters of its own.
      backbone, backbone_settings, loss: see `registry`.
      sqdc: settings of `SqdcSettings`.
      cic: settings of `CicSettings`; of the items encoded in the step.
    """

    encoder: Mapping[str, Any]
    encode: str
    forward_percent: float
    backward_percent: float
    ranking_weight: float
    ranking_gradient: bool
    history_gradient: bool
    history_modules: tuple[str, ...]
    short_history: int
    query: Mapping[str, Any]
    query_history: int
    decoder_layers: int
    decoder_hidden: int
    backbone: str
    backbone_settings: Mapping[str, Any]
    sqdc: Mapping[str, Any]
    cic: Mapping[str, Any]
    loss: str


def check_choices(settings: ModelSettings) -> None:
    """Refuses names that are none, and shares p and q that are out of range."""
    registry.check_choice("config.model.encode", settings.encode, ENCODE)
    for name in settings.history_modules:
        registry.check_choice("config.model.history_modules", name, HISTORY_MODULES)
    forward, backward = settings.forward_percent, settings.backward_percent
    if not 0 <= backward <= forward <= 100 or not forward:
        raise UserError(
            f"config.model: forward_percent={forward}, backward_percent={backward}; give 0 <= "
            "backward_percent <= forward_percent <= 100, the latter not 0"
        )


def encoder_settings(section: Mapping[str, Any]) -> EncoderSettings:
    """The sizes that config.model.encoder gives; refuses those that do not go together."""
    sizes = sections.call(EncoderSettings, section, "config.model.encoder")
    if sizes.width % sizes.heads:
        problem = f"{sizes.heads} heads do not divide the width {sizes.width}"
        raise UserError(f"config.model.encoder: {problem}; change one")
    if sizes.layers < 1:
        key = f"config.model.encoder.layers={sizes.layers}"
        raise UserError(f"{key}; give 1 or more, or no token reads another")
    return sizes


def sqdc_settings(settings: ModelSettings) -> SqdcSettings:
    """The contrast that config.model.sqdc describes; refuses a model without any loss."""
    sqdc = sections.call(SqdcSettings, settings.sqdc, "config.model.sqdc")
    if not settings.ranking_weight and not sqdc.weight:
        problem = "ranking_weight and sqdc.weight are both 0"
        raise UserError(f"config.model: {problem}; give one of them a weight")
    return sqdc
