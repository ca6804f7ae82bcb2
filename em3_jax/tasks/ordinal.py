"""Labels of ordered levels, such as stars: the proportional odds model, a cumulative link of one score.

McCullagh, Regression Models for Ordinal Data (1980): P(y <= level k) = sigmoid(t_k - x), with one
score x of the model's head and thresholds t that ascend and train, one less than there are levels.
Letters: B examples, K levels.
"""

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.amounts import Amount


def init(how: Amount) -> jax.Array:
    """[K - 1] f32: the first threshold, and the logarithms of the steps to the next ones, as they begin."""
    cuts = np.asarray(how.thresholds)
    return jnp.asarray(np.append(cuts[:1], np.log(np.diff(cuts))), jnp.float32)


def thresholds(params: jax.Array) -> jax.Array:
    """[K - 1] f32 ascending, of what trains."""
    return params[0] + jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.exp(params[1:]))])


def expected_level(head: jax.Array, levels: jax.Array, params: jax.Array) -> jax.Array:
    """[B] f32 mean of the levels [K] by their probabilities; it rises with the score `head` [B]."""
    above = jax.nn.sigmoid(head[:, None] - thresholds(params))  # of each level but the lowest
    # Sums of differences: a product would be rounded to bf16 on some devices.
    return levels[0] + jnp.sum(jnp.diff(levels) * above, axis=1)


def loss(
    head: jax.Array, value: jax.Array, levels: jax.Array, params: jax.Array, observed: jax.Array, weight: jax.Array
) -> jax.Array:
    """[] the mean negative log-likelihood of the levels in nats.

    Args:
      head: [B] the score x.
      value: [B] one of the levels; another counts as the last one below it.
      levels: [K] ascending.
      params: of `init`.
      observed: [B] bool.
      weight: [B].
    """
    weight = jnp.where(observed, weight, 0.0)
    head = jnp.where(weight > 0, head.astype(jnp.float32), 0.0)
    cuts = thresholds(params)
    number, count = jnp.sum(value[:, None] >= levels[1:], axis=1), len(levels)
    of = jnp.arange(count - 1)

    def cut(place: jax.Array) -> jax.Array:  # by a sum, whose gradient is no scatter
        return jnp.sum(jnp.where(place[:, None] == of, cuts, 0.0), axis=1)

    is_first, is_last = number == 0, number == count - 1
    upper, lower = cut(jnp.minimum(number, count - 2)), cut(jnp.maximum(number - 1, 0))
    below, above = jax.nn.log_sigmoid(upper - head), jax.nn.log_sigmoid(head - lower)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), of which nothing is rounded to 0.
    step = jnp.where(is_first | is_last, 1.0, upper - lower)
    between = below + above + jnp.log(-jnp.expm1(-step))
    values = -jnp.where(is_first, below, jnp.where(is_last, above, between))
    total = weight.sum()
    return jnp.where(total > 0, jnp.sum(weight * values) / jnp.where(total > 0, total, 1.0), 0.0)
