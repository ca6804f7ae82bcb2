"""Content alone: the fusion module, and encoders before it, learn the category of each item.

DeepCTR (Chen et al. 2016, 3.4) trains its encoder so on 96 product categories before it sees a
click. Letters: S items of a batch, D width of an embedding, K categories, 0 among them for none.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from em3_jax.config import registry
from em3_jax.config.schema.ranking import FusionSettings
from em3_jax.core import rng
from em3_jax.features.prior import LABELS
from em3_jax.tasks import Inputs, Loss, Params
from em3_jax.tasks.pretraining.fusion import FusionTask, content

METRICS = ("category_loss", "category_accuracy")


@dataclasses.dataclass(frozen=True, eq=False)
class CategoryTask(FusionTask):
    """A linear classifier on the content embedding; items without content or category do not count.

    Attributes:
      classifier: module from content embeddings [S, D] to [S, K] scores.
    """

    classifier: nn.Module

    def init(self, key: jax.Array, inputs: Inputs) -> Params:
        of_fusion, of_classifier = jax.random.split(key)
        embedding, made = self.fusion.init_with_output(of_fusion, *content(inputs), train=False)
        scores = self.classifier.init(of_classifier, embedding)
        return {"model": {"fusion": made["params"]}, "category": scores["params"]}

    def loss(self, params: Params, inputs: Inputs, key: jax.Array, step: jax.Array) -> Loss:
        rngs = {"dropout": rng.stream(key, "dropout", step)}
        value, accuracy, _ = self._scored(params, inputs, train=True, rngs=rngs)
        return value, dict(zip(METRICS, (value, accuracy), strict=True))

    def predict(self, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
        """Means over the items that count, each [] f32: `METRICS`, and `count` of these."""
        return dict(zip((*METRICS, "count"), self._scored(params, inputs, train=False), strict=True))

    def _scored(self, params: Params, inputs: Inputs, **options: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(cross-entropy [], accuracy [], number of items [] f32)."""
        tokens, masks = content(inputs)
        embedding = self.fused(params, tokens, masks, **options)
        scores: Any = self.classifier.apply({"params": params["category"]}, embedding)
        label = inputs.tokens[LABELS][:, 0, 0]
        some = jnp.stack([mask.any(axis=1) for mask in masks.values()]).any(axis=0)
        counts = (inputs.batch["item_mask"] & some & (label > 0)).astype(jnp.float32)
        number = counts.sum()
        # 0 stands for no category, and is none of those to choose from.
        known = jnp.where(jnp.arange(scores.shape[1]) > 0, scores.astype(jnp.float32), -jnp.inf)
        each = optax.softmax_cross_entropy_with_integer_labels(known, jnp.maximum(label, 1))
        right = jnp.argmax(known, axis=1) == label
        mean = lambda one: jnp.sum(counts * one) / jnp.maximum(number, 1)  # noqa: E731
        return mean(each), mean(right), number


def category(fusion: str, settings: FusionSettings, categories: int) -> CategoryTask:
    """The task of a config.

    Args:
      fusion, settings: see `registry.fusion`.
      categories: K.
    """
    return CategoryTask(registry.fusion(fusion, settings), nn.Dense(categories, name="category"))
