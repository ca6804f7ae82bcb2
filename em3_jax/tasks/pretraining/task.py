"""Content alone: the fusion module learns from the catalogue which views belong to one item, without a click.

A view of an item is the embedding that the fusion module makes of a part of its content. Two views of the same item should agree
better than those of two items (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748; the loss is that of eq. 12-14). With several
modalities, one against all others, drawn anew in each step. With one, two passes under dropout (SimCSE, Gao et al. 2021).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config import registry
from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.models.fusion.chunks import as_type
from em3_jax.tasks import Inputs, Task

METRICS = ("contrast_loss", "contrast_accuracy")


def pretraining(*, fusion: str, fusion_settings: Mapping[str, Any], temperature: float) -> Task:
    """The task.

    Args:
      fusion, fusion_settings: see `parts.fusion`.
      temperature: of the contrast.
    """
    module = registry.fusion(fusion, fusion_settings)

    def contrast(params, inputs: Inputs, alone: jax.Array, keys: jax.Array, train: bool):
        """(loss, accuracy, items compared) of modality number `alone` against the others."""
        names, views, valid = sorted(inputs.tokens), [], inputs.batch["item_mask"]
        tokens = as_type(inputs.tokens)
        for side in range(2):
            mask = inputs.tokens_mask
            if len(names) > 1:
                mask = {name: mask[name] & ((alone == k) == (side == 0)) for k, name in enumerate(names)}
            drop = train or len(names) == 1
            rngs = {"dropout": keys[side]}
            variables = {"params": params["model"]["fusion"]}
            views.append(module.apply(variables, tokens, mask, train=drop, rngs=rngs))
            valid = valid & jnp.stack([m.any(axis=1) for m in mask.values()]).any(axis=0)
        value, aux = losses.content_id_contrastive(*views, valid, temperature=temperature)
        return value, aux["cic_accuracy"], valid.sum()

    def init(key: jax.Array, inputs: Inputs):
        if len(inputs.tokens) == 1 and not dict(fusion_settings).get("dropout"):
            raise UserError(
                "config.model.fusion_settings.dropout is 0, but with one modality views differ by dropout alone; set 0.1"
            )
        return {
            "model": {"fusion": module.init(key, as_type(inputs.tokens), inputs.tokens_mask, train=False)["params"]}
        }

    def loss(params, inputs: Inputs, key: jax.Array, step: jax.Array):
        alone = jax.random.randint(rng.stream(key, "negatives", step), (), 0, len(inputs.tokens))
        keys = jax.random.split(rng.stream(key, "dropout", step))
        value, accuracy, _ = contrast(params, inputs, alone, keys, True)
        return value, {"contrast_loss": value, "contrast_accuracy": accuracy}

    def predict(params, inputs: Inputs) -> dict[str, jax.Array]:
        """Means over the modalities: the two metrics, and `count`, how many items were compared."""
        keys = jax.random.split(jax.random.key(0))
        results = [contrast(params, inputs, jnp.array(k), keys, False) for k in range(len(inputs.tokens))]
        values = [jnp.stack(column).astype(jnp.float32) for column in zip(*results, strict=True)]
        return dict(zip((*METRICS, "count"), (jnp.mean(jnp.nan_to_num(value)) for value in values), strict=True))

    def embed(params, inputs: Inputs) -> jax.Array:
        variables = {"params": params["model"]["fusion"]}
        return module.apply(variables, as_type(inputs.tokens), inputs.tokens_mask, train=False)

    return Task(init, loss, predict, embed, {})
