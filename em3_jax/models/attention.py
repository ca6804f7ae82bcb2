"""Target attention over a history (EM3 eq. 7-8; Zhou et al., Deep Interest Network, 2018).

All that can be computed once per distinct item is: projections run on the [S, D] block, and the [B, T] slots only gather.
Letters: B batch, T history, S distinct items, R distinct table rows, D width, K hidden width of the score.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


def masked_softmax(score: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, T] weights over the valid positions (eq. 8); all zero where there is none."""
    score = jnp.where(mask, score, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(score, axis=1, keepdims=True, initial=jnp.finfo(score.dtype).min))
    exponential = jnp.exp(score - top)  # exp(-inf) = 0 at masked positions
    return exponential / jnp.maximum(exponential.sum(axis=1, keepdims=True), jnp.finfo(score.dtype).tiny)


def entropy(weight: jax.Array) -> jax.Array:
    """[] mean entropy in nats of weights [B, T], over the rows that have a history."""
    row = -jnp.sum(weight * jnp.log(jnp.maximum(weight, 1e-30)), axis=1)
    some = weight.sum(axis=1) > 0
    return jnp.sum(row * some) / jnp.maximum(some.sum(), 1)


class TargetAttention(nn.Module):
    """The user's interest in a candidate: u_A = sum_i w_i h_i with w = softmax(a(c_A, h_i)) (eq. 7-8).

    Attributes:
      score: "dot", a = <W_q c, W_k h> / sqrt(D); or "mlp", a = w . relu(W [c, h, c - h, c * h] + b) as DIN has it.
      hidden: K of "mlp".
    """

    score: str = "dot"
    hidden: int = 32

    @nn.compact
    def __call__(
        self,
        items: jax.Array,
        candidate: jax.Array,
        history: jax.Array,
        mask: jax.Array,
        events: jax.Array | None = None,
        event_position: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(interest [B, D], weights [B, T]); an empty history gives zeros.

        Args:
          items: [S, D] embeddings of the distinct items.
          candidate: [B] i32 position of the candidate in `items`.
          history, mask: [B, T] i32 positions of the history in `items`; bool.
          events: [R, D] table rows with the embeddings of event fields, added to the item they belong to.
          event_position: [B, T, C] i32 positions in `events`.
        """
        slots = jnp.take(items, history, axis=0)  # [B, T, D]
        if events is not None:
            for k in range(event_position.shape[-1]):
                slots = slots + jnp.take(events, event_position[..., k], axis=0)
        score = getattr(self, f"_{self.score}")(items, candidate, history, slots, events, event_position)
        weight = masked_softmax(score, mask)
        return jnp.einsum("bt,btd->bd", weight, slots), weight

    def _dot(self, items, candidate, history, slots, events, event_position):
        width = items.shape[-1]
        # <W_q c, W_k h> = <W_k^T W_q c, h>: the key's projection moves to the candidate, so slots need none.
        query = nn.Dense(width, use_bias=False, name="query")(items)
        query = nn.Dense(width, use_bias=False, name="key")(query)
        return jnp.einsum("bd,btd->bt", jnp.take(query, candidate, axis=0), slots) / jnp.sqrt(width)

    def _mlp(self, items, candidate, history, slots, events, event_position):
        width = items.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4 * width, self.hidden))
        bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
        out = self.param("out", nn.initializers.lecun_normal(), (self.hidden, 1))
        of_candidate, of_history, of_difference, of_product = jnp.split(kernel, 4)
        # The layer is linear in c, h and c - h: those parts are projected once per distinct item.
        for_candidate = jnp.take(items @ (of_candidate + of_difference) + bias, candidate, axis=0)  # [B, K]
        for_history = jnp.take(items @ (of_history - of_difference), history, axis=0)  # [B, T, K]
        if events is not None:
            projected = events @ (of_history - of_difference)
            for k in range(event_position.shape[-1]):
                for_history = for_history + jnp.take(projected, event_position[..., k], axis=0)
        product = jnp.take(items, candidate, axis=0)[:, None, :] * slots  # [B, T, D]
        product = (product.reshape(-1, width) @ of_product).reshape(*history.shape, self.hidden)
        return (nn.relu(for_candidate[:, None, :] + for_history + product) @ out)[..., 0]
