"""Losses: the ranking loss, CIC and SQDC, as pure functions on masked rows.

The paper's total, eq. (14), is put together by the task:

    L = L_ranking + alpha * L_CIC,    L_CIC = 0.5 * (L_C2I + L_I2C)

LEMUR's is L = L_ranking + lambda * L_SQDC.

The contract of all losses: computed in f32 from logits and cosines; a row that is masked out changes neither the
value nor a gradient, whatever it holds (NaN included); if nothing is left, the loss is 0 and its gradients are 0.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from em3_jax.core import exchange


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

    >>> import jax.numpy as jnp
    >>> from em3_jax import losses
    >>> logits, clicks = jnp.array([0.0, 2.0, jnp.nan]), jnp.array([1.0, 0.0, 0.0])
    >>> rows = jnp.array([True, True, False])  # the last is padding, whatever it holds
    >>> print(losses.binary_cross_entropy(logits, clicks, where=rows, reduce="none").round(3))
    [0.693 2.127 0.   ]
    >>> round(float(losses.binary_cross_entropy(logits, clicks, where=rows)), 3)
    1.41
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
    weight: jax.Array | None = None,
    negatives: int | None = None,
    key: jax.Array | None = None,
    log_q: jax.Array | None = None,
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
      weight: [S] f32 >= 0, how much an item counts in the mean; of the B examples' candidates, how
        many of them it is, which is eq. (12) and (13) as they stand. None: all valid items alike.
      negatives: H, the number of negatives per item, drawn anew with each key from the other valid items, without
        replacement, the same items for both directions. None or 0: all other valid items ([S, S] similarities). If
        fewer than H others are valid, all of them.
      key: PRNG key of the draw; needed only with H negatives.
      log_q: [S] f32, log of how likely an item is in the batch, which is taken off its logits, the positive's too (Yi et
        al., Sampling-bias-corrected neural modeling, RecSys 2019, eq. 3). None: nothing is. What is nearest is of the
        cosines as they are.

    Returns:
      loss: [] f32, mean over the valid items by their weights; 0 if fewer than two are valid, or
        none of them has a weight.
      aux: {"cic_accuracy": [] f32}, the share, by weights too, of valid items strictly more similar
        to their positive than to each negative, mean of both directions; NaN where the loss is 0.

    >>> import jax.numpy as jnp
    >>> from em3_jax import losses
    >>> content, ids = jnp.eye(3), jnp.eye(3)  # each item's content points where its IDs do
    >>> mask = jnp.array([True, True, False])
    >>> loss, aux = losses.content_id_contrastive(content, ids, mask, temperature=0.1)
    >>> f"{float(loss):.1e}", float(aux["cic_accuracy"])
    ('4.6e-05', 1.0)
    >>> loss, _ = losses.content_id_contrastive(content, 0 * ids, mask, temperature=0.1)
    >>> round(float(loss), 4)  # log 2: two items, of which nothing tells which is which
    0.6931
    """
    items = content.shape[0]
    if content.ndim != 2 or ids.shape != content.shape or mask.shape != (items,):
        raise ValueError(f"want [S, D], [S, D], [S]; got {content.shape}, {ids.shape}, {mask.shape}")
    content, ids = _unit(content, mask), _unit(ids, mask)
    highest = jax.lax.Precision.HIGHEST  # 1 / tau multiplies the rounding error of a cosine
    if not negatives or negatives >= items - 2:
        c2i = jnp.einsum("sd,td->st", content, ids, precision=highest) / temperature  # [S, S]
        i2c = c2i.T
        positive = jnp.diagonal(c2i)
        valid = mask | jnp.eye(items, dtype=bool)  # a padding row keeps its own term: its logsumexp stays finite
        less = None if log_q is None else log_q[None, :]
    else:
        if key is None:
            raise ValueError(f"{negatives} random negatives need a key")
        drawn, used = in_batch_negatives(mask, negatives, key)
        positive = jnp.sum(content * ids, axis=1) / temperature  # [S]
        c2i = jnp.einsum("sd,hd->sh", content, ids[drawn], precision=highest) / temperature  # [S, H + 1]
        i2c = jnp.einsum("sd,hd->sh", ids, content[drawn], precision=highest) / temperature
        c2i, i2c = (jnp.concatenate([positive[:, None], logits], axis=1) for logits in (c2i, i2c))
        valid = jnp.concatenate([jnp.ones((items, 1), bool), used], axis=1)  # [S, 1 + H + 1], the positive first
        less = None
        if log_q is not None:
            of_drawn = jnp.broadcast_to(log_q[drawn], used.shape)
            less = jnp.concatenate([log_q[:, None], of_drawn], axis=1)
    own = 0.0 if log_q is None else log_q
    loss_c2i, hit_c2i = _contrast(c2i, positive, valid, less, own)
    loss_i2c, hit_i2c = _contrast(i2c, positive, valid, less, own)
    valid_items = mask.sum()
    loss, accuracy = 0.5 * (loss_c2i + loss_i2c), 0.5 * hit_c2i + 0.5 * hit_i2c
    count = valid_items if weight is None else jnp.where(mask, weight, 0.0).sum()
    if weight is not None:
        loss, accuracy = weight * loss, weight * accuracy
    loss = _divide(jnp.where(mask, loss, 0.0).sum(), count)
    accuracy = _divide(jnp.where(mask, accuracy, 0.0).sum(), count)
    some = (valid_items > 1) & (count > 0)
    return loss, {"cic_accuracy": jnp.where(some, accuracy, jnp.nan)}


def content_id_contrastive_in_groups(
    content: jax.Array,
    ids: jax.Array,
    item: jax.Array,
    group: jax.Array,
    weight: jax.Array,
    *,
    temperature: float | jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the terms of the CIC loss of a batch's examples whose negatives are the other items of their groups.

    Eq. (12) to (14), see `content_id_contrastive`, of the candidate i of each example, j over the examples of its group
    whose candidates are other items; one that is there twice counts twice.

    Args:
      content, ids: [B, D] float, C and I of the examples' candidates.
      item: [B] i32, the candidates.
      group: [B] i32, such as sessions.
      weight: [B] f32 >= 0; an example of weight 0 takes no part, nor is it a negative.
      temperature: tau.

    Returns:
      loss: [B] f32, of each example; of any value where it has no negative.
      hit: [B] f32, the share of both directions in which its positive is nearer than all negatives.
      some: [B] bool, it takes part and has a negative.

    >>> import jax.numpy as jnp
    >>> from em3_jax import losses
    >>> item, session = jnp.array([0, 1, 2]), jnp.array([7, 7, 8])
    >>> vectors, weight = jnp.eye(3), jnp.ones(3)
    >>> _, hit, some = losses.content_id_contrastive_in_groups(
    ...     vectors, vectors, item, session, weight, temperature=0.1
    ... )
    >>> some.tolist()  # the third is alone in its session
    [True, True, False]
    >>> hit[:2].tolist()
    [1.0, 1.0]
    """
    if content.ndim != 2 or ids.shape != content.shape or {x.shape for x in (item, group, weight)} != {ids.shape[:1]}:
        raise ValueError(f"want [B, D], [B, D], [B], [B], [B]; got {content.shape}, {ids.shape}, {weight.shape}")
    mask = weight > 0
    both = exchange.in_block(functools.partial(_in_groups, temperature))
    loss, hit, some = both(_unit(content, mask), _unit(ids, mask), mask, item, group)
    return loss, hit, some & mask


def _in_groups(
    temperature: Any, content: jax.Array, ids: jax.Array, mask: jax.Array, item: jax.Array, group: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`content_id_contrastive_in_groups` of a device's own examples against those of all devices."""
    (contents, every_ids, masks, items, groups), _ = exchange.of_all(content, ids, mask, item, group)
    highest = jax.lax.Precision.HIGHEST
    positive = jnp.sum(content * ids, axis=1) / temperature
    valid = masks & (group[:, None] == groups) & (item[:, None] != items)
    with_own = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)  # the positive first
    loss, hit = jnp.zeros_like(positive), jnp.zeros_like(positive)
    for one, others in ((content, every_ids), (ids, contents)):
        logits = jnp.einsum("id,jd->ij", one, others, precision=highest) / temperature
        value, is_hit = _contrast(jnp.concatenate([positive[:, None], logits], axis=1), positive, with_own)
        loss, hit = loss + 0.5 * value, hit + 0.5 * is_hit
    return loss, hit, valid.any(axis=1)


def query_document_contrastive(
    query: jax.Array,
    document: jax.Array,
    anchor: jax.Array,
    item: jax.Array,
    group: jax.Array | None,
    mask: jax.Array,
    *,
    scale: float | jax.Array,
    log_q: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns LEMUR's session-masked query-to-document contrast (SQDC), and how often it is right.

    With s the cosine similarity, T the scale (an inverse temperature), y_i the click, k_i the item
    whose document d_i is, and g_i the query or session of row i:

        L_SQDC = -1/n sum_{i: y_i = 1} log( exp(T s(q_i, d_i)) / sum_j A_ij exp(T s(q_i, d_j)) )
        A_ij = 0 if i != j and (g_i = g_j or k_i = k_j), else 1

    The paper sums where this takes the mean over the n anchors, so that lambda does not depend on
    the batch size. Its A masks groups alone; where popular items are shown to several queries of a
    batch, the document that was clicked would be a negative of itself.

    Args:
      query: [B, D] float.
      document: [B, D] float, of the row's candidate.
      anchor: [B] bool, the clicked rows.
      item: [B] i32, of the row's candidate; rows of one item are no negatives of each other.
      group: [B] i32, rows of one group are no negatives of each other; None: all are.
      mask: [B] bool, rows that take part at all.
      scale: T.
      log_q: [B] f32, log of how many candidates of a batch are the row's, on average, which is taken off its document's
        logits (Yi et al. 2019, eq. 3); None: nothing is.

    Returns:
      loss: [] f32; 0 if there is no anchor.
      aux: {"sqdc_accuracy": [] f32}, the share of anchors nearer to their document than to each negative; NaN without any.

    >>> import jax.numpy as jnp
    >>> from em3_jax import losses
    >>> query, document = jnp.eye(2), jnp.eye(2)
    >>> clicked, item, every = jnp.array([True, False]), jnp.array([4, 9]), jnp.ones(2, bool)
    >>> rows = query, document, clicked, item
    >>> loss, _ = losses.query_document_contrastive(*rows, None, every, scale=1.0)
    >>> round(float(loss), 4)  # log(1 + e^-1): one negative, of cosine 0
    0.3133
    >>> session = jnp.array([3, 3])  # of one session: no negative is left
    >>> float(losses.query_document_contrastive(*rows, session, every, scale=1.0)[0])
    0.0
    """
    shapes = [x.shape for x in (query, document, anchor, item, mask)]
    if query.ndim != 2 or shapes != [query.shape] * 2 + [(len(query),)] * 3:
        raise ValueError(f"want [B, D], [B, D], [B], [B], [B]; got {shapes}")
    groups = () if group is None else (group,)
    corrections = () if log_q is None else (log_q[:, None],)
    against_all = exchange.in_block(functools.partial(_against_all, scale, len(corrections)))
    loss, hit = against_all(_unit(query, mask), _unit(document, mask), *corrections, mask, item, *groups)
    anchor &= mask
    count = anchor.sum()
    accuracy = _divide(jnp.where(anchor, hit, False).sum().astype(jnp.float32), count)
    loss = _divide(jnp.where(anchor, loss, 0.0).sum(), count)
    return loss, {"sqdc_accuracy": jnp.where(count > 0, accuracy, jnp.nan)}


def _against_all(
    scale: Any, corrected: int, query: jax.Array, document: jax.Array, *rest: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """([B] losses, [B] bool hits) of a device's own queries against the documents of all devices.

    Args:
      scale: T, a number.
      corrected: 1 where log-Q comes first in `rest`, else 0.
      query, document: [B, D] f32, of length 1.
      rest: [B, 1] f32 log-Q; [B] bool the mask; names, each [B] i32; rows of one name are no negatives of each other.
    """
    names = rest[corrected + 1 :]
    (documents, *found), first = exchange.of_all(document, *rest)
    log_q, (masks, *every) = found[:corrected], found[corrected:]
    logits = scale * jnp.einsum("id,jd->ij", query, documents, precision=jax.lax.Precision.HIGHEST)
    number = jnp.arange(len(query))
    itself = first + number[:, None] == jnp.arange(len(documents))
    valid = masks
    for own, of_all in zip(names, every, strict=True):
        valid = valid & (own[:, None] != of_all)
    own = jax.lax.dynamic_slice_in_dim(logits, first, len(query), axis=1)
    if not log_q:
        return _contrast(logits, jnp.diagonal(own), valid | itself)
    return _contrast(logits, jnp.diagonal(own), valid | itself, log_q[0][:, 0], rest[0][:, 0])


def in_batch_negatives(mask: jax.Array, negatives: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns H + 1 drawn items and which H of them are the negatives of each item.

    One draw without replacement serves all items, so similarities are a matrix product and not a gather of S x H rows
    (four times the whole step's time on CPU). An item that was drawn itself leaves itself out; any other leaves out the
    last one drawn. So nobody is its own negative, and for each item alone its H are uniform among the others.

    Args:
      mask: [S] bool, True = an item.
      negatives: H, at most S - 2.
      key: PRNG key.

    Returns:
      drawn: [H + 1] i32, in [0, S), distinct.
      used: [S, H + 1] bool, H per valid item (fewer where the batch has fewer others).

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from em3_jax import losses
    >>> drawn, used = losses.in_batch_negatives(jnp.ones(5, bool), 2, jax.random.key(0))
    >>> drawn.shape, used.sum(axis=1).tolist()
    ((3,), [2, 2, 2, 2, 2])
    >>> bool((used & (drawn == jnp.arange(5)[:, None])).any())  # whether an item is its own negative
    False
    """
    items = mask.shape[0]
    if not 1 <= negatives < items - 1:
        raise ValueError(f"cannot draw {negatives} negatives and a spare from {items} items")
    chance = jnp.where(mask, jax.random.uniform(key, (items,)), -1.0)
    chance, drawn = exchange.largest(chance, negatives + 1)
    itself = drawn == jnp.arange(items)[:, None]  # [S, H + 1]
    last = jnp.arange(negatives + 1) == negatives
    used = jnp.where(itself.any(axis=1, keepdims=True), ~itself, ~last)
    return drawn, used & (chance >= 0)


def _contrast(
    logits: jax.Array,
    positive: jax.Array,
    valid: jax.Array,
    less: jax.Array | None = None,
    own: jax.Array | float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns each item's -log softmax at its positive and whether the positive alone has the largest logit.

    Args:
      logits: [S, K], similarities / tau; among them the positive's.
      positive: [S], the positive's logit.
      valid: [S, K] or [K] bool, terms of the sum; always True for the positive.
      less, own: [S, K] or [1, K], [S] what is taken off the logits, and the positive's, in the losses; None = nothing.

    Returns:
      losses [S] f32, hits [S] bool.
    """
    corrected, true = (logits, positive) if less is None else (logits - less, positive - own)
    losses = jax.nn.logsumexp(jnp.where(valid, corrected, -jnp.inf), axis=-1) - true
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
