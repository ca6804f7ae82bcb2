"""Losses: the ranking loss and Content-ID-Contrastive learning (CIC), as pure functions on masked rows.

The paper's total, eq. (14), is put together by the task:

    L = L_ranking + alpha * L_CIC,    L_CIC = 0.5 * (L_C2I + L_I2C)

The contract of both losses: computed in f32 from logits and cosines; a row that is masked out changes neither the
value nor a gradient, whatever it holds (NaN included); if nothing is left, the loss is 0 and its gradients are 0.
"""

from typing import Literal

import jax
import jax.numpy as jnp


def binary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    *,
    where: jax.Array | None = None,
    weights: jax.Array | None = None,
    reduce: Literal["mean", "sum", "none"] = "mean",
) -> jax.Array:
    """Returns the negative log-likelihood of clicks in nats, eq. (1), from logits.

    Eq. (1): -1/B sum_i y_i log(p_i) + (1 - y_i) log(1 - p_i), p = sigmoid(logit). With -log(p) = softplus(-logit) and
    -log(1 - p) = softplus(logit) nothing is rounded to 0 or 1 before the logarithm.

    Args:
      logits: [B] (or any shape), float.
      labels: same shape, in [0, 1].
      where: same shape, bool; False leaves a row out. None: all rows.
      weights: same shape, >= 0; weight 0 leaves a row out (the padding of a last batch). None: all ones.
      reduce: "mean" is sum(weight * loss) / sum(weight), 0 if no row is left; "sum" is its numerator; "none" gives
        weight * loss per row, 0 for the rows left out.

    Returns:
      f32, [] or the shape of `logits`.
    """
    for name, array in (("labels", labels), ("where", where), ("weights", weights)):
        if array is not None and array.shape != logits.shape:
            raise ValueError(f"{name} has shape {array.shape}, logits {logits.shape}")
    weights = jnp.ones(logits.shape, jnp.float32) if weights is None else weights.astype(jnp.float32)
    if where is not None:
        weights = jnp.where(where, weights, 0.0)
    kept = weights > 0
    # Masked before use, not only after: 0 * NaN is NaN, and so would the gradient be.
    logits = jnp.where(kept, logits.astype(jnp.float32), 0.0)
    labels = jnp.where(kept, labels.astype(jnp.float32), 0.0)
    losses = weights * (labels * jax.nn.softplus(-logits) + (1.0 - labels) * jax.nn.softplus(logits))
    match reduce:
        case "none":
            return losses
        case "sum":
            return losses.sum()
        case "mean":
            return _divide(losses.sum(), weights.sum())
    raise ValueError(f"reduce must be 'mean', 'sum' or 'none', got {reduce!r}")


def content_id_contrastive(
    content: jax.Array,
    ids: jax.Array,
    mask: jax.Array,
    *,
    temperature: float | jax.Array,
    negatives: int | None = None,
    key: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the CIC loss of a batch's distinct items, eqs. (12) to (14), and how often the positive is the nearest.

    With s the cosine similarity, tau the temperature, C_i content and I_i ids of item i, and j over its negatives:

    (12)  L_C2I = -1/B sum_i log( exp(s(C_i, I_i) / tau) / (exp(s(C_i, I_i) / tau) + sum_j exp(s(C_i, I_ij^-) / tau)) )
    (13)  L_I2C = the same with C and I exchanged
    (14)  L_CIC = 0.5 * (L_C2I + L_I2C)

    Because items are distinct, a negative is never the positive's own item. A zero vector has cosine 0 with everything
    and gets no gradient.

    Args:
      content: [S, D] float, C of eq. (10): the content embedding after its FC head.
      ids: [S, D] float, I of eq. (11): the concatenated ID embeddings after theirs.
      mask: [S] bool, True = an item; True may stand anywhere.
      temperature: tau.
      negatives: H, the number of negatives per item, drawn anew with each key from the other valid items, without
        replacement, the same items for both directions. None or 0: all other valid items ([S, S] similarities). If
        fewer than H others are valid, all of them.
      key: PRNG key of the draw; needed only with H negatives.

    Returns:
      loss: [] f32, mean over the valid items; 0 if fewer than two are valid.
      aux: {"cic_accuracy": [] f32}, the share of valid items strictly more similar to their positive than to each
        negative, mean of both directions; NaN if fewer than two are valid.
    """
    items = content.shape[0]
    if content.ndim != 2 or ids.shape != content.shape or mask.shape != (items,):
        raise ValueError(f"want [S, D], [S, D], [S]; got {content.shape}, {ids.shape}, {mask.shape}")
    content, ids = _unit(content, mask), _unit(ids, mask)
    highest = jax.lax.Precision.HIGHEST  # 1 / tau multiplies the rounding error of a cosine
    if not negatives or negatives >= items - 1:
        c2i = jnp.einsum("sd,td->st", content, ids, precision=highest) / temperature  # [S, S]
        i2c = c2i.T
        positive = jnp.diagonal(c2i)
        valid = mask | jnp.eye(items, dtype=bool)  # a padding row keeps its own term: its logsumexp stays finite
    else:
        if key is None:
            raise ValueError(f"{negatives} random negatives need a key")
        rows, valid = in_batch_negatives(mask, negatives, key)
        rows = jnp.concatenate([jnp.arange(items)[:, None], rows], axis=1)  # [S, 1 + H], the positive first
        valid = jnp.concatenate([jnp.array([True]), valid])  # [1 + H]
        c2i = jnp.einsum("sd,shd->sh", content, ids[rows], precision=highest) / temperature  # [S, 1 + H]
        i2c = jnp.einsum("sd,shd->sh", ids, content[rows], precision=highest) / temperature
        positive = c2i[:, 0]
    loss_c2i, hit_c2i = _contrast(c2i, positive, valid)
    loss_i2c, hit_i2c = _contrast(i2c, positive, valid)
    count = mask.sum()
    loss = _divide(jnp.where(mask, 0.5 * (loss_c2i + loss_i2c), 0.0).sum(), count)
    accuracy = _divide(jnp.where(mask, 0.5 * hit_c2i + 0.5 * hit_i2c, 0.0).sum(), count)
    return loss, {"cic_accuracy": jnp.where(count > 1, accuracy, jnp.nan)}


def in_batch_negatives(mask: jax.Array, negatives: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns rows of `negatives` distinct other valid items for each valid item: random cyclic offsets.

    The n valid items are numbered 0 .. n - 1 in order, and item r gets the items (r + o_j) mod n, where o_1 .. o_H are
    distinct random offsets in [1, n), the same for all items. An offset is never 0, so no item is its own negative;
    for each item alone the H negatives are uniform without replacement. Shapes are static and nothing is rejected.

    Args:
      mask: [S] bool, True = an item.
      negatives: H, at most S - 1.
      key: PRNG key.

    Returns:
      rows: [S, H] i32, in [0, S); for padding rows and surplus terms (see `valid`) they mean nothing.
      valid: [H] bool, False for the terms beyond the n - 1 others that exist.
    """
    items = mask.shape[0]
    if not 1 <= negatives < items:
        raise ValueError(f"cannot draw {negatives} negatives from {items - 1} other items")
    count = mask.sum()
    offsets = 1 + jax.random.permutation(key, items - 1)
    # A random order of [1, S) restricted to [1, n) is a random order of [1, n): move the others to the end.
    offsets = offsets[jnp.argsort(offsets >= count, stable=True)][:negatives]
    row_of_rank = jnp.argsort(~mask, stable=True)  # the valid rows first, in their order
    rank = jnp.cumsum(mask) - 1
    rows = row_of_rank[(rank[:, None] + offsets) % jnp.maximum(count, 1)]  # [S, H]
    return rows, offsets < count


def _contrast(logits: jax.Array, positive: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns each item's -log softmax at its positive and whether the positive alone has the largest logit.

    Args:
      logits: [S, K], similarities / tau; among them the positive's.
      positive: [S], the positive's logit.
      valid: [S, K] or [K] bool, terms of the sum; always True for the positive.

    Returns:
      losses [S] f32, hits [S] bool.
    """
    losses = jax.nn.logsumexp(jnp.where(valid, logits, -jnp.inf), axis=-1) - positive
    return losses, (valid & (logits >= positive[:, None])).sum(axis=-1) == 1


def _unit(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the rows of `x` ([S, D]) scaled to length 1, in f32; masked and zero rows give 0 with gradient 0."""
    x = jnp.where(mask[:, None], x.astype(jnp.float32), 0.0)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    nonzero = squared > 1e-12  # the gradient grows as 1 / length: below 1e-6 there is no direction left to follow
    return jnp.where(nonzero, x * jax.lax.rsqrt(jnp.where(nonzero, squared, 1.0)), 0.0)


def _divide(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count, 0 if count is 0; a NaN in `total` is not hidden."""
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0.0)
