"""Visual BPR: matrix factorisation with a second factor that reads content."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import Projections, need_features, pairwise_loss, squares, xavier


def _rows(array: jax.Array, index) -> jax.Array:
    return array[index] if isinstance(index, slice) else gather.rows(array, index)


class VBPR(nn.Module):
    """VBPR (He and McAuley 2016, arXiv:1510.01784).

        x_ui = b_i + <gamma_u, gamma_i> + <theta_u, W f_i> + <b', f_i>     (eq. 4; alpha and b_u cancel in the pairwise loss)
        L = mean of -ln sigmoid(x_ui - x_uj) + l2 |rows of gamma, theta, b of the batch|^2 + l2_content (|W|^2 + |b'|^2)

    f_i is all modalities side by side, each at length 1. As a dot product: users (gamma_u, theta_u, 1), items
    (gamma_i, W f_i, b_i + <b', f_i>).

    Attributes:
      num_users, num_items: U, I.
      width, content_width: of gamma, and of theta.
      l2, l2_content: weights of the regularisation.
    """

    num_users: int
    num_items: int
    width: int
    content_width: int
    l2: float
    l2_content: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.user_content = self.param("user_content", xavier, (self.num_users, self.content_width))
        self.item_bias = self.param("item_bias", nn.initializers.zeros, (self.num_items,))
        # W and, as its last column, b'.
        self.content = Projections(self.content_width + 1, bias=False, unit_length=True)

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        return self.towers(features, slice(None), slice(None))

    def towers(self, features: dict[str, jax.Array], user, item) -> tuple[jax.Array, jax.Array]:
        """(users, items) of some rows; of all, by `slice(None)`."""
        need_features(features, "VBPR")
        parts = self.content(features, None if isinstance(item, slice) else item)
        content = jnp.asarray(sum(parts.values()))  # [*, D + 1]
        content = content.at[:, -1].add(_rows(self.item_bias, item))
        users = _rows(self.user_embedding, user), _rows(self.user_content, user)
        one = jnp.ones((len(users[0]), 1))
        items = jnp.concatenate([_rows(self.item_embedding, item), content], axis=1)
        return jnp.concatenate([*users, one], axis=1), items

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self.towers(features, user, jnp.concatenate([positive, negative]))
        ranking = pairwise_loss(users, *jnp.split(items, 2))
        rows = [_rows(self.user_embedding, user), _rows(self.user_content, user)]
        for item in (positive, negative):
            rows += [_rows(self.item_embedding, item), _rows(self.item_bias, item)]
        norm = squares(*rows)
        kernels = jnp.asarray(sum(jnp.sum(x * x) for x in jax.tree.leaves(self.content.variables)))
        loss = ranking + self.l2 * norm + self.l2_content * kernels
        return loss, {"ranking_loss": ranking, "squared_norm": norm, "squared_norm_content": kernels}
