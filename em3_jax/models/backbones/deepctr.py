"""DeepCTR's ranker (Chen et al., Deep CTR Prediction in Display Advertising, ACM MM 2016, section 3).

Letters: B batch, F fields, W ID width, D content width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange
from em3_jax.models.backbones import BackboneSettings, Features
from em3_jax.models.dropout import Dropout
from em3_jax.models.heads import top


class DeepCTR(nn.Module):
    """BasicNet on the fields, CombNet on these and the candidate's picture; no history is read.

    BasicNet is one FC layer with ReLU on the one-hot basic features. A one-hot vector times a
    matrix is a row of it, so the layer is the sum of the fields' rows of the ID table, and its
    width is the table's, W; of a multi-valued field it is the mean of the rows. The fields are
    those of candidate, user and context. CombNet lays its output and the content features side by
    side, and has FC layers with ReLU and dropout, `hidden` wide, and the logit. Where the paper
    has batch normalisation these have layer normalisation (Ba et al. 2016): that of a batch needs
    running statistics, which only encoders keep, not rankers. With further labels `heads.top` is
    CombNet, without normalisation.
    """

    settings: BackboneSettings
    reads_history = False
    has_heads = True

    @nn.compact
    def __call__(self, features: Features, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, f = self.settings, features
        item = exchange.rows(f.items.sum(axis=1), f.candidate)  # [B, W]
        bias = self.param("basic_bias", nn.initializers.zeros, (item.shape[-1],))
        x = jnp.concatenate([nn.relu(item + f.others.sum(axis=1) + bias), *f.content], axis=-1)
        if s.heads is not None:
            return top(s, x, train)
        for k, width in enumerate(s.hidden):
            x = nn.LayerNorm(name=f"norm_{k}")(nn.Dense(width, name=f"comb_{k}")(x))
            x = Dropout(s.dropout)(nn.relu(x), train=train)
        return nn.Dense(1, dtype=jnp.float32, name="out")(x)[:, 0], {}
