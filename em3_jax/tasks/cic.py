"""Content-ID-Contrastive learning as a part of a task (EM3, eq. 10-13).

Letters: B examples, S distinct items of a batch, F fields that stand for an item's ID, W width of
their embeddings.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config.schema.ranking import Cic
from em3_jax.core import exchange, gather
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import Fields
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.core.types import Batch
from em3_jax.models.cic import ContentIdHeads
from em3_jax.tasks import Inputs, Intermediates, Loss, Params


@dataclasses.dataclass(frozen=True, eq=False)
class ContentIdContrast:
    """The contrast of the content and the IDs of a batch's distinct items.

    Items without content and items whose own id is `unknown` in this batch are left out: they have
    nothing of their own to align.

    Attributes:
      settings: config.model.cic. Its mean is over "items", the distinct items of the batch, those
        of histories among them, or over "samples", the B examples, each with its candidate, as
        eq. 12 and 13 have it; items of histories alone are negatives only.
      heads: the projections to the common space.
      chosen: places of the ID fields among the item fields.
    """

    settings: Cic
    heads: ContentIdHeads
    chosen: tuple[int, ...]

    def init(self, key: jax.Array, out: Intermediates) -> Params:
        """Parameters of the heads; `out` as of `loss`."""
        return self.heads.init(key, *self._arguments(out))["params"]

    def loss(self, params: Params, inputs: Inputs, out: Intermediates, key: jax.Array) -> Loss:
        """(alpha L_CIC [] f32, {"cic_loss": L_CIC, "cic_accuracy": share of items found again}).

        Args:
          params: of the heads.
          inputs: of the task.
          out: "content" [S, D], "item_fields" [S, fields, W] and "item_counts" [S] bool of the
            items: whether an item has content, and this is the place that counts it.
          key: of the negatives drawn.
        """
        projected: Any = self.heads.apply({"params": params}, *self._arguments(out))
        content, ids = projected
        mask = out["item_counts"] & inputs.batch["item_is_known"]
        by_samples = self.settings.over == "samples"
        value, aux = losses.content_id_contrastive(
            content,
            ids,
            mask,
            temperature=self.settings.temperature,
            weight=candidate_counts(inputs.batch) if by_samples else None,
            negatives=self.settings.negatives or None,
            key=key,
        )
        named = {"cic_loss": value, "cic_accuracy": aux["cic_accuracy"]}
        return self.settings.weight * value, named

    def _arguments(self, out: Intermediates) -> tuple[jax.Array, jax.Array]:
        """(content [S, D], IDs [S, F * W]) that the heads read."""
        # Slices: the gradient of a gather would be a sum.
        ids = [out["item_fields"][:, k] for k in self.chosen]
        return out["content"], jnp.concatenate(ids, axis=1)


def content_id_contrast(settings: Cic, fields: Fields, numbers: Numbers = NO_NUMBERS) -> ContentIdContrast | None:
    """The contrast that config.model.cic describes; None where its weight is 0.

    Args:
      settings: config.model.cic.
      fields: the dataset's categorical fields.
      numbers: those that are read as values; an item's stand after its fields.

    Raises:
      UserError: the dataset has not one of the `id_fields`.
    """
    names = [*(field.name for field in fields.item), *(number.name for number in numbers.item)]
    for name in settings.id_fields:
        if name not in names:
            hint = nearest(name, names)
            raise UserError(f"config.model.cic.id_fields: no item field '{name}'; {hint}")
    chosen = tuple(names.index(name) for name in settings.id_fields)
    heads = ContentIdHeads(settings.width)
    return ContentIdContrast(settings, heads, chosen) if settings.weight else None


def candidate_counts(batch: Batch) -> jax.Array:
    """[S] f32: how many examples have the item of a row as their candidate, by their weights.

    Rows of the same item, of a batch that has one for each slot, have the same count.
    """
    item = batch["item_id"]
    own = exchange.sums(batch["weight"], batch["item_position"], len(item))
    if "item_route" in batch:
        return exchange.total(batch, own)
    order = jnp.argsort(item)
    ascending = item[order]
    is_new = jnp.concatenate([jnp.zeros(1, bool), ascending[1:] != ascending[:-1]])
    number = jnp.cumsum(is_new)
    total = gather.sums(own[order], number, len(item))
    _, total = jax.lax.sort((order, total[number]), num_keys=1)
    return total
