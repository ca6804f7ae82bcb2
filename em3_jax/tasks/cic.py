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

BATCH, OR_BATCH = "batch", "group_or_batch"  # of config.model.cic.negatives_from


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
          out: "content" [S, D], "item_fields" [S, fields, W], "item_has_content" [S] bool and
            "item_counts" [S] bool of the items: whether it has, and this is the place that counts it.
          key: of the negatives drawn.
        """
        projected: Any = self.heads.apply({"params": params}, *self._arguments(out))
        content, ids = projected
        if self.settings.negatives_from != BATCH:
            value, accuracy = self._in_groups(content, ids, inputs.batch, out, key)
        else:
            by_samples = self.settings.over == "samples"
            weight = candidate_counts(inputs.batch, inputs.batch["weight"]) if by_samples else None
            value, accuracy = self._in_batch(content, ids, inputs.batch, out, key, weight)
        return self.settings.weight * value, {"cic_loss": value, "cic_accuracy": accuracy}

    def _in_batch(
        self,
        content: jax.Array,
        ids: jax.Array,
        batch: Batch,
        out: Intermediates,
        key: jax.Array,
        weight: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """(loss [], accuracy []) against other items of the batch; see `losses.content_id_contrastive`."""
        value, aux = losses.content_id_contrastive(
            content,
            ids,
            out["item_counts"] & batch["item_is_known"],
            temperature=self.settings.temperature,
            weight=weight,
            negatives=self.settings.negatives or None,
            key=key,
            log_q=batch.get("log_present"),
        )
        return value, aux["cic_accuracy"]

    def _in_groups(
        self, content: jax.Array, ids: jax.Array, batch: Batch, out: Intermediates, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The same against the other items of an example's group; the mean is over the examples, by their weights."""
        candidate = batch["item_position"]
        there = exchange.picked(out["item_has_content"] & batch["item_is_known"], candidate)
        weight = jnp.where(there, batch["weight"], 0.0)
        item = exchange.picked(batch["item_id"], candidate)
        loss, hit, some = losses.content_id_contrastive_in_groups(
            exchange.rows(content, candidate),
            exchange.rows(ids, candidate),
            item,
            batch["group"],
            weight,
            temperature=self.settings.temperature,
        )
        own = jnp.where(some, weight, 0.0)
        total, hits, count = (jnp.where(some, own * x, 0.0).sum() for x in (loss, hit, jnp.ones_like(loss)))
        if self.settings.negatives_from == OR_BATCH:
            alone = jnp.where(some, 0.0, weight)
            of_items = candidate_counts(batch, alone)
            value, accuracy = self._in_batch(content, ids, batch, out, key, of_items)
            # Of a batch of one item alone there is no contrast at all.
            more = jnp.where(jnp.isnan(accuracy), 0.0, alone.sum())
            total, hits, count = total + more * value, hits + more * jnp.nan_to_num(accuracy), count + more
        at_least = jnp.where(count > 0, count, 1.0)
        return total / at_least, jnp.where(count > 0, hits / at_least, jnp.nan)

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


def candidate_counts(batch: Batch, weight: jax.Array) -> jax.Array:
    """[S] f32: how many examples have the item of a row as their candidate, by their weights [B] f32.

    Rows of the same item, of a batch that has one for each slot, have the same count.
    """
    item = batch["item_id"]
    own = exchange.sums(weight, batch["item_position"], len(item))
    if "item_route" in batch:
        return exchange.total(batch, own)
    order = jnp.argsort(item)
    ascending = item[order]
    is_new = jnp.concatenate([jnp.zeros(1, bool), ascending[1:] != ascending[:-1]])
    number = jnp.cumsum(is_new)
    total = gather.sums(own[order], number, len(item))
    _, total = jax.lax.sort((order, total[number]), num_keys=1)
    return total
