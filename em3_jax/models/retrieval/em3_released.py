"""EM3 as its public code computes it, which differs from the paper's text; for comparison with the published logs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from em3_jax.core import gather
from em3_jax.models.dropout import Dropout
from em3_jax.models.lora import product
from em3_jax.models.retrieval import Graphs
from em3_jax.models.retrieval.common import modality_weights, need_features, pairwise_loss, rows_of, xavier
from em3_jax.models.retrieval.propagation import along_items, layer_mean

_HEADS = 4
_NEGATIVES = 16


def _uniform(fan_in: int):
    """Initializer of kernels and biases: uniform in +-1 / sqrt(fan_in)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(fan_in)

    return init


class _Linear(nn.Module):
    """[*, D] -> [*, width]; kernel and bias start uniform in +-1 / sqrt(D), or the kernel as `kernel_init` says."""

    width: int
    kernel_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init or _uniform(fan_in), (fan_in, self.width))
        bias = self.param("bias", _uniform(fan_in), (self.width,))
        return product(x.reshape(-1, fan_in), kernel).reshape(*x.shape[:-1], self.width) + bias


def _queries_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    queries, width = shape
    bound = jnp.sqrt(6.0 / (width * queries + width))  # Xavier of a [1, Q, D] array, as PyTorch counts its fans
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class ReleasedFusion(nn.Module):
    """[I, D] content: a linear layer per modality, one post-norm attention layer without FFN over queries and modalities.

        x = [q, W_m f^m + b_m ...];   y = LayerNorm(x + dropout(W_o MHSA(x) + b_o))[:Q];   c = W_c [y_1 .. y_Q] + b_c

    with 4 heads and scores over sqrt(D / 4 + 1e-5).

    Attributes:
      width: D.
      queries: Q.
      dropout: rate.
    """

    width: int
    queries: int
    dropout: float

    @nn.compact
    def __call__(self, features: dict[str, jax.Array], *, train: bool) -> jax.Array:
        size = self.width // _HEADS
        queries = self.param("queries", _queries_init, (self.queries, self.width))
        tokens = [_Linear(self.width, name=f"{name}_fc")(features[name]) for name in sorted(features)]
        items = len(tokens[0])
        asking = jnp.broadcast_to(queries, (items, *queries.shape))
        x = jnp.concatenate([asking, jnp.stack(tokens, axis=1)], axis=1)  # [I, N, D]

        def heads(name: str, x: jax.Array) -> jax.Array:
            return _Linear(self.width, name=name)(x).reshape(items, -1, _HEADS, size)

        # Only the queries' outputs are read, so only they ask.
        score = jnp.einsum("iqhd,inhd->ihqn", heads("query", asking), heads("key", x)) / jnp.sqrt(size + 1e-5)
        mixed = jnp.einsum("ihqn,inhd->iqhd", nn.softmax(score), heads("value", x))
        y = _Linear(self.width, name="output")(mixed.reshape(items, self.queries, self.width))
        y = Dropout(self.dropout)(y, train=train)
        y = nn.LayerNorm(epsilon=1e-5, name="norm")(asking + y)
        return _Linear(self.width, xavier, name="join")(y.reshape(items, -1))


def contrast_over_all(
    content: jax.Array, ids: jax.Array, temperature: float, negatives: int, key: jax.Array
) -> jax.Array:
    """[] the released CIC loss, mean over all items.

    Each item has `negatives` items drawn with replacement from all, itself included, the same for both directions:
    cross-entropy of the positive among 1 + H cosines over tau, mean of content to ID and ID to content.

    Args:
      content, ids: [I, D] after their heads.
    """
    content, ids = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-5) for x in (content, ids))
    drawn = jax.random.randint(key, (len(content), negatives), 0, len(content))  # [I, H]

    def one_way(anchor: jax.Array, other: jax.Array) -> jax.Array:
        candidates = jnp.concatenate([other[:, None], gather.rows(other, drawn)], axis=1)  # [I, 1 + H, D]
        score = jnp.einsum("id,ihd->ih", anchor, candidates) / temperature
        return jnp.mean(jax.nn.logsumexp(score, axis=1) - score[:, 0])

    return 0.5 * (one_way(content, ids) + one_way(ids, content))


class EM3AsReleased(nn.Module):
    """EM3 as released: like `retrieval.em3.EM3`, but for

    * the fusion module, see `ReleasedFusion`;
    * modalities that an item lacks, which it attends to as the FC layer's image of a zero vector;
    * one application of the item graph to either half, whatever the layers of the user-item graph;
    * CIC on what comes out of the graphs (pruned in training), over all items with 16 negatives each, see `contrast_over_all`;
    * initial values as PyTorch has them.

    Attributes:
      num_users, num_items: U, I.
      width: D of either half.
      layers: of the user-item graph.
      modality_weights: {modality: weight} of the item graphs; {} = equal.
      queries, dropout: of the fusion module.
      cic_weight, cic_temperature: of the contrast.
    """

    num_users: int
    num_items: int
    width: int
    layers: int
    modality_weights: FrozenDict
    queries: int
    dropout: float
    cic_weight: float
    cic_temperature: float

    def setup(self):
        self.user_embedding = self.param("user_embedding", xavier, (self.num_users, self.width))
        self.item_embedding = self.param("item_embedding", xavier, (self.num_items, self.width))
        self.fusion = ReleasedFusion(self.width, self.queries, self.dropout)
        self.content_head, self.id_head = _Linear(self.width), _Linear(self.width)

    def __call__(self, features: dict[str, jax.Array], graphs: Graphs, *, train: bool) -> tuple[jax.Array, jax.Array]:
        need_features(features, "EM3")
        weights = modality_weights(self.modality_weights, graphs.items)
        content = self.fusion(features, train=train)
        ids = jnp.concatenate([self.item_embedding, content], axis=1)  # [I, 2 D]
        users = jnp.concatenate([self.user_embedding, jnp.zeros_like(self.user_embedding)], axis=1)
        users, items = layer_mean(graphs.user_item, users, ids, self.layers)
        return users, items + along_items(graphs.items, weights, ids, 1)

    def loss(
        self, features: dict[str, jax.Array], graphs: Graphs, user: jax.Array, positive: jax.Array, negative: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        users, items = self(features, graphs, train=True)
        ranking = pairwise_loss(gather.rows(users, user), *rows_of(items, positive, negative))
        ids, content = jnp.split(items, 2, axis=1)
        key = self.make_rng("negatives")
        cic = contrast_over_all(self.content_head(content), self.id_head(ids), self.cic_temperature, _NEGATIVES, key)
        return ranking + self.cic_weight * cic, {"ranking_loss": ranking, "cic_loss": cic}
