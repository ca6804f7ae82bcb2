"""What of config.model the settings of LEMUR refuse together."""

from em3_jax.config import parse
from em3_jax.config.schema import lemur
from em3_jax.core.errors import UserError
from em3_jax.models.encoders.fields import EncoderSettings


def check(settings: lemur.LemurSettings) -> None:
    """Refuses shares p and q that do not go together, and a model without any loss."""
    forward, backward = settings.forward_percent, settings.backward_percent
    if backward > forward:
        raise UserError(
            f"config.model: forward_percent={forward}, backward_percent={backward}; give 0 <= "
            "backward_percent <= forward_percent <= 100, the latter not 0"
        )
    if not settings.ranking_weight and not settings.sqdc.weight:
        problem = "ranking_weight and sqdc.weight are both 0"
        raise UserError(f"config.model: {problem}; give one of them a weight")
    if settings.heads.labels and not settings.ranking_weight:
        raise UserError("config.model.heads.labels: nothing learns them with ranking_weight=0; leave one of them out")


def encoder_settings(settings: lemur.FieldEncoder) -> EncoderSettings:
    """The sizes of config.model.encoder; refuses those that do not go together."""
    if settings.width % settings.heads:
        problem = f"{settings.heads} heads do not divide the width {settings.width}"
        raise UserError(f"config.model.encoder: {problem}; change one")
    return EncoderSettings(**parse.entries(settings))
