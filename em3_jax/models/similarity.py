"""How near a candidate's content is to the history's, as plain numbers: nothing is learnt, so nothing can be learnt by heart."""

import jax
import jax.numpy as jnp

from em3_jax.core import exchange, gather
from em3_jax.core.maxima import largest


def unit(x: jax.Array) -> jax.Array:
    """Rows of `x` [*, D] at length 1; zero rows stay zero, with gradient 0."""
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    nonzero = squared > 1e-12
    return jnp.where(nonzero, x * jax.lax.rsqrt(jnp.where(nonzero, squared, 1.0)), 0.0)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """[*] cosine of the rows of x and y [*, D]."""
    return jnp.sum(unit(x) * unit(y), axis=-1)


def item_vectors(tokens: jax.Array, tokens_mask: jax.Array) -> jax.Array:
    """[S, E] what items are compared by: the direction of the sum of their valid tokens; zeros without any.

    Args:
      tokens, tokens_mask: [S, N, E], [S, N] content of the distinct items.
    """
    total = jnp.where(tokens_mask[..., None], tokens.astype(jnp.float32), 0.0).sum(axis=1)
    return total * jax.lax.rsqrt(jnp.maximum(jnp.sum(total * total, axis=-1, keepdims=True), 1e-12))


def history_similarity(unit: jax.Array, candidate: jax.Array, history: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, 2] mean and largest cosine between the candidate and the items of the history; zeros without any.

    Args:
      unit: [S, E] of the distinct items, see `item_vectors`.
      candidate: [B] i32 position of the candidate among them.
      history, mask: [B, T] i32 positions of the history; bool.
    """
    cosine = with_history(unit, candidate, history)
    mean = jnp.sum(cosine, axis=1, where=mask) / jnp.maximum(mask.sum(axis=1), 1)
    most = largest(cosine, 1, mask, initial=-1.0)
    return jnp.stack([mean, jnp.where(mask.any(axis=1), most, 0.0)], axis=1)


TIERS = 8
"""N of SimTier."""
MOST_PER_SLOT = 64  # distinct items for each slot of the history, up to which a product is faster


def history_tiers(unit: jax.Array, candidate: jax.Array, history: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, N] share of the history whose cosine with the candidate lies in each tier; zeros without any.

    SimTier (Sheng et al., Enhancing Taobao Display Advertising with Multimodal Representations, CIKM
    2024, section 4.2.1): the N tiers cut [-1, 1] evenly. The paper counts; shares do not grow
    with the length of the history.

    Args: as of `history_similarity`.
    """
    cosine = with_history(unit, candidate, history)
    tier = jnp.clip(jnp.floor((cosine + 1) / 2 * TIERS), 0, TIERS - 1).astype(jnp.int32)
    counts = jnp.sum(jax.nn.one_hot(tier, TIERS), axis=1, where=mask[..., None])
    return counts / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def with_history(unit: jax.Array, candidate: jax.Array, history: jax.Array) -> jax.Array:
    """[B, T] cosine of the candidate with each item of the history.

    On CPUs the candidates' with all distinct items, of which the history's are then picked: a
    product of matrices, where gathering T vectors for each example moves B T E numbers through
    memory to use each once. Where items are many beside T, and on devices with a memory as fast as
    their arithmetic wants it, the vectors are gathered.
    """

    def gathered(unit: jax.Array, candidate: jax.Array, history: jax.Array) -> jax.Array:
        return jnp.einsum("be,bte->bt", gather.rows(unit, candidate), gather.rows(unit, history))

    def picked(unit: jax.Array, candidate: jax.Array, history: jax.Array) -> jax.Array:
        return jnp.take_along_axis(gather.rows(unit, candidate) @ unit.T, history, axis=1)

    def in_block(unit: jax.Array, candidate: jax.Array, history: jax.Array) -> jax.Array:
        if not isinstance(unit.shape[0], int) or unit.shape[0] > MOST_PER_SLOT * history.shape[1]:
            return gathered(unit, candidate, history)
        return jax.lax.platform_dependent(unit, candidate, history, cpu=picked, default=gathered)

    return exchange.in_block(in_block)(unit, candidate, history)


PARTS = {"similarity": history_similarity, "simtier": history_tiers}
"""Part of content -> what it gives of the vectors of each modality: nothing of them is learnt."""
