"""A fusion module of your own in the place of the Fusion-Q-Former; the library stays untouched.

    em3 prepare synthetic --interactions 4000 --users 120 --items 150 \
        --out runs/examples/planted --overwrite
    em3 train --config=configs/em3_synthetic.py --config.data.root=runs/examples/planted \
        --config.model.fusion=examples/own_fusion:GatedFusion --config.train.epochs=3 \
        --workdir=runs/examples/gated
    em3 eval --workdir=runs/examples/gated

The config names a file without ".py" and what stands in it. Backbones, attention scores and losses
come through the same door (docs/models.md).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.fusion import FusionSettings

Arrays = dict[str, jax.Array]  # of each modality


class GatedFusion(nn.Module):
    """The mean of each modality's tokens, weighted by a gate that sees all of them.

    Args:
      settings: config.model.fusion_settings; D is its width.
    """

    settings: FusionSettings

    @nn.compact
    def __call__(self, tokens: Arrays, mask: Arrays, *, train: bool) -> jax.Array:
        """tokens[name] [S, N, E] f32, mask[name] [S, N] bool of S distinct items -> [S, D] f32."""
        means, present = [], []
        for name in sorted(tokens):
            valid = mask[name][..., None]
            mean = jnp.where(valid, tokens[name], 0).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
            means.append(nn.Dense(self.settings.width, name=name)(mean))
            present.append(mask[name].any(axis=1))
        gate = nn.Dense(len(means), name="gate")(jnp.concatenate(means, axis=-1))
        gate += 1e9 * (jnp.stack(present, axis=1) - 1.0)  # a missing modality weighs nothing
        return jnp.einsum("sm,smd->sd", nn.softmax(gate), jnp.stack(means, axis=1))
