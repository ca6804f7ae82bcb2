"""What the tasks that predict clicks have in common: the logit and its loss. Letter: B examples."""

from collections.abc import Callable

import jax

from em3_jax.core.errors import UserError
from em3_jax.core.labels import LOG_KEPT
from em3_jax.core.types import Batch
from em3_jax.tasks import Intermediates, Loss

LossOfClicks = Callable[..., jax.Array]
"""(logits [B], labels [B], weights= [B]) -> [] f32, such as `losses.binary_cross_entropy`."""


def check_logit(logit: jax.Array, batch: Batch) -> None:
    """Refuses logits of another shape than [B], which would broadcast against the labels.

    Raises:
      UserError: the backbone, which may be the user's own, gives such logits.
    """
    if logit.shape != batch["label"].shape:
        raise UserError(f"the backbone gives logits of shape {logit.shape}, not [B]; mend it")


def ranking_loss(loss: LossOfClicks, logit: jax.Array, out: Intermediates, batch: Batch) -> Loss:
    """(L_ranking [] f32, what to log: "ranking_loss" and the scalars among the intermediates).

    Args:
      loss: of the config.
      logit: [B].
      out: the model's named intermediates.
      batch: with "label" [B] f32 and "weight" [B] f32, 0 = padding; where it has `LOG_KEPT`, logits of rows are those
        of the whole log less that.
    """
    logit = logit - batch[LOG_KEPT] if LOG_KEPT in batch else logit
    value = loss(logit, batch["label"], weights=batch["weight"])
    scalars = {name: one for name, one in out.items() if one.ndim == 0}
    return value, {"ranking_loss": value} | scalars
