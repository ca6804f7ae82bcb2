"""What the retrieval models share: the pairwise loss, L2 of a batch, modalities at one width."""

from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.core import gather
from em3_jax.core.errors import UserError
from em3_jax.models.lora import product
from em3_jax.models.similarity import unit

xavier = nn.initializers.xavier_uniform()


def pairwise_loss(user: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """[] BPR-OPT (Rendle et al. 2009): mean over the batch of -ln sigmoid(<u, i> - <u, j>).

    Args:
      user, positive, negative: [B, D] vectors u, i, j.
    """
    margin = jnp.sum(user * (positive - negative), axis=1)
    return losses.binary_cross_entropy(margin, jnp.ones_like(margin))


def rows_of(items: jax.Array, positive: jax.Array, negative: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([B, D], [B, D]) of items [I, D], by one gather: two would each repeat what is fused into them, and scatter apart."""
    of_positive, of_negative = jnp.split(gather.rows(items, jnp.concatenate([positive, negative])), 2)
    return of_positive, of_negative


def squares(*rows: jax.Array) -> jax.Array:
    """[] the squared L2 norms of the batch's vectors, [B, D] each, summed over vectors, mean over the batch."""
    return jnp.asarray(sum(jnp.sum(x * x) for x in rows)) / len(rows[0])


class Projections(nn.Module):
    """An FC layer per modality: {modality: [I, E_m]} -> {modality: [I, width]}, of the rows asked for.

    Attributes:
      width: D.
      bias: whether the layers have one.
      unit_length: whether features come in at length 1.
    """

    width: int
    bias: bool = True
    unit_length: bool = False

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], items: jax.Array | None = None) -> dict[str, jax.Array]:
        """{modality: [I, width]}, or of `items` [B] alone: {modality: [B, width]}."""
        result = {}
        for name, x in sorted(features.items()):
            kernel = self.param(f"{name}_kernel", nn.initializers.xavier_normal(), (x.shape[1], self.width))
            bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.width,)) if self.bias else 0.0
            few = items is not None and len(items) < len(x)
            x = x[items] if few else x
            y = product(unit(x) if self.unit_length else x, kernel) + bias
            result[name] = y if few or items is None else gather.rows(y, items)
        return result


def need_features(features: Mapping[str, jax.Array], model: str) -> None:
    """Refuses to build a model of content on data without."""
    if not features:
        raise UserError(f"{model} reads content, but there is none; set config.data.features")


def modality_weights(weights: Mapping[str, float], modalities: Iterable[str]) -> dict[str, float]:
    """{modality: weight} of the item graphs; an empty `weights` gives each the same."""
    modalities = sorted(modalities)
    if not modalities:
        raise UserError("the model reads item graphs, but there are none; set config.data.features")
    if not weights:
        return dict.fromkeys(modalities, 1.0 / len(modalities))
    if sorted(weights) != modalities:
        raise UserError(
            f"config.model.retrieval_settings.modality_weights names {sorted(weights)}, config.data.features {modalities}; "
            "name the same, or none for equal weights"
        )
    return dict(weights)
