"""Content alone: the fusion module learns from the catalogue which views belong to one item.

No click is read. A view of an item is the embedding that the fusion module makes of a part of its
content. Two views of the same item should agree better than those of two items (InfoNCE, van den
Oord et al. 2018, arXiv:1807.03748; the loss is that of EM3, eq. 12-14). With several modalities,
one against all others, drawn anew in each step. With one, two passes under dropout (SimCSE, Gao et
al. 2021). Letters: S items of a batch, D width of an embedding.
"""

import dataclasses

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config import registry
from em3_jax.config.schema.ranking import FusionSettings
from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.tasks import Inputs, Loss, Params
from em3_jax.tasks.pretraining.fusion import FusionTask, content

METRICS = ("contrast_loss", "contrast_accuracy")


@dataclasses.dataclass(frozen=True, eq=False)
class PretrainingTask(FusionTask):
    """The task.

    Attributes:
      temperature: of the contrast.
      has_dropout: whether two passes of the fusion module differ.
    """

    temperature: float
    has_dropout: bool

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        """Fresh parameters of the fusion module.

        Raises:
          UserError: there is one modality and no dropout, so that two views would be the same.
        """
        if len(inputs.tokens) == 1 and not self.has_dropout:
            raise UserError(
                "config.model.fusion_settings.dropout is 0, but with one modality views differ by "
                "dropout alone; set 0.1"
            )
        made = self.fusion.init(key, *content(inputs), train=False)
        return {"model": {"fusion": made["params"]}}

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        drawn = rng.stream(key, "negatives", step)
        alone = jax.random.randint(drawn, (), 0, len(inputs.tokens))
        keys = jax.random.split(rng.stream(key, "dropout", step))
        value, accuracy, _ = self._contrast(params, inputs, alone, keys, train=True)
        return value, {"contrast_loss": value, "contrast_accuracy": accuracy}

    def predict(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        """Means over the modalities, each [] f32: `METRICS`, and `count` of the items compared."""
        keys = jax.random.split(jax.random.key(0))
        numbers = map(jnp.array, range(len(inputs.tokens)))
        results = [self._contrast(params, inputs, k, keys, train=False) for k in numbers]
        values = [jnp.stack(column).astype(jnp.float32) for column in zip(*results, strict=True)]
        means = (jnp.mean(jnp.nan_to_num(value)) for value in values)
        return dict(zip((*METRICS, "count"), means, strict=True))

    def _contrast(
        self, params: Params, inputs: Inputs, alone: jax.Array, keys: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(loss [], accuracy [], number of items compared []) of two views of each item.

        Args:
          alone: [] i32, number of the modality that makes one view, in the order of their names;
            the others make the other view. With one modality both views read it, under dropout.
          keys: [2] of the dropout of either view.
          train: whether there is dropout where there are several modalities.
        """
        names, valid = sorted(inputs.tokens), inputs.batch["item_mask"]
        views, (tokens, masks) = [], content(inputs)
        for side in range(2):
            mask = masks
            if len(names) > 1:
                first = side == 0
                mask = {name: mask[name] & ((alone == k) == first) for k, name in enumerate(names)}
            drop = train or len(names) == 1
            rngs = {"dropout": keys[side]}
            views.append(self.fused(params, tokens, mask, train=drop, rngs=rngs))
            valid = valid & jnp.stack([m.any(axis=1) for m in mask.values()]).any(axis=0)
        value, aux = losses.content_id_contrastive(views[0], views[1], valid, temperature=self.temperature)
        return value, aux["cic_accuracy"], valid.sum()


def pretraining(fusion: str, settings: FusionSettings, temperature: float) -> PretrainingTask:
    """The task of a config.

    Args:
      fusion, settings: see `registry.fusion`.
      temperature: of the contrast.
    """
    return PretrainingTask(registry.fusion(fusion, settings), temperature, bool(settings.dropout))
