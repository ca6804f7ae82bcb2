"""losses: against double loops in math.exp and math.log; masked rows, zero vectors and empty batches do no harm."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax import losses

TEMPERATURE = 0.1


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _eq_1(logits, labels, weights) -> float:
    """Returns eq. (1) with weights, a loop over the rows."""
    total = sum(
        -w * (y * math.log(_sigmoid(x)) + (1 - y) * math.log(1 - _sigmoid(x)))
        for x, y, w in zip(logits, labels, weights, strict=True)
    )
    return total / sum(weights)


LOGITS = [0.3, -2.0, 1.5, 0.0, 4.0]
LABELS = [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [1, 2, 0.5, 0, 3], [0, 0, 0, 0, 1]])
def test_binary_cross_entropy_is_eq_1(weights):
    logits, labels, weight = jnp.array(LOGITS), jnp.array(LABELS), jnp.array(weights, jnp.float32)
    loss = losses.binary_cross_entropy(logits, labels, weights=weight)
    assert loss == pytest.approx(_eq_1(LOGITS, LABELS, weights), rel=1e-6)
    per_row = losses.binary_cross_entropy(logits, labels, weights=weight, reduce="none")
    assert per_row.shape == (5,)
    assert losses.binary_cross_entropy(logits, labels, weights=weight, reduce="sum") == per_row.sum()
    assert per_row.sum() / sum(weights) == pytest.approx(loss)


def test_binary_cross_entropy_where_is_weight_zero():
    logits, labels = jnp.array(LOGITS), jnp.array(LABELS)
    where = jnp.array([True, False, True, True, False])
    assert losses.binary_cross_entropy(logits, labels, where=where) == pytest.approx(
        _eq_1([0.3, 1.5, 0.0], [1, 0, 1], [1, 1, 1]), rel=1e-6
    )
    both = losses.binary_cross_entropy(logits, labels, where=where, weights=jnp.array([2.0, 5.0, 1.0, 0.0, 5.0]))
    assert both == pytest.approx(_eq_1([0.3, 1.5], [1, 0], [2, 1]), rel=1e-6)


@jax.jit
@jax.value_and_grad
def _loss_and_slopes(logits, labels, weights):
    return losses.binary_cross_entropy(logits, labels, weights=weights)


def test_binary_cross_entropy_of_large_logits_is_linear_with_slope_one():
    loss, slopes = _loss_and_slopes(np.float32([500, 300, -500, 0]), np.float32([0, 0, 1, 0]), np.float32([1, 1, 1, 0]))
    assert loss == np.float32((500 + 300 + 500) / 3)
    np.testing.assert_allclose(slopes, [1 / 3, 1 / 3, -1 / 3, 0], rtol=1e-6)


def test_binary_cross_entropy_gradient_ignores_what_padding_holds():
    logits, labels = np.float32([0.3, np.nan, np.inf, -1.0]), np.float32([1.0, np.nan, 0.0, 0.0])
    _, slopes = _loss_and_slopes(logits, labels, np.float32([1, 0, 0, 1]))
    np.testing.assert_allclose(slopes, [(_sigmoid(0.3) - 1) / 2, 0, 0, _sigmoid(-1.0) / 2], rtol=1e-6)


def test_binary_cross_entropy_of_nothing_is_zero_but_nan_is_not_hidden():
    logits, labels = np.float32([0.3, np.nan, 0.0, 0.0]), np.ones(4, np.float32)
    loss, slopes = _loss_and_slopes(logits, labels, np.zeros(4, np.float32))
    assert loss == 0
    np.testing.assert_array_equal(slopes, np.zeros(4))
    assert np.isnan(_loss_and_slopes(logits, labels, np.ones(4, np.float32))[0])


def test_binary_cross_entropy_is_f32_from_bf16():
    loss = losses.binary_cross_entropy(jnp.array(LOGITS, jnp.bfloat16), jnp.array(LABELS, jnp.bfloat16))
    assert loss.dtype == jnp.float32


def test_binary_cross_entropy_rejects_what_would_broadcast():
    with pytest.raises(ValueError, match="labels has shape"):
        losses.binary_cross_entropy(jnp.zeros((4, 1)), jnp.zeros(4))
    with pytest.raises(ValueError, match="reduce"):
        losses.binary_cross_entropy(jnp.zeros(4), jnp.zeros(4), reduce="avg")


def _items(rows: int = 9, width: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns content and ids [S, D] that agree somewhat, and a mask with holes."""
    generator = np.random.default_rng(seed)
    content = generator.normal(size=(rows, width)).astype(np.float32)
    ids = (content + generator.normal(size=(rows, width))).astype(np.float32)
    return content, ids, np.arange(rows) % 4 != 1


def _cosine(x, y) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(float(a) ** 2 for a in x)) / math.sqrt(sum(float(b) ** 2 for b in y))


def _eqs_12_to_14(content, ids, negatives: dict[int, list[int]]) -> tuple[float, float]:
    """Returns L_CIC and the accuracy by loops; `negatives` names the negatives of each valid item."""
    loss = hits = 0.0
    for anchors, targets in ((content, ids), (ids, content)):
        for i, others in negatives.items():
            positive = _cosine(anchors[i], targets[i])
            similarities = [_cosine(anchors[i], targets[j]) for j in others]
            numerator = math.exp(positive / TEMPERATURE)
            loss -= math.log(numerator / (numerator + sum(math.exp(s / TEMPERATURE) for s in similarities)))
            hits += all(positive > s for s in similarities)
    return 0.5 * loss / len(negatives), 0.5 * hits / len(negatives)


_draw = jax.jit(losses.in_batch_negatives, static_argnums=1)


def _negatives(mask, negatives: int, seed: int) -> dict[int, list[int]]:
    """The negatives drawn for each valid item."""
    drawn, used = (np.asarray(x) for x in _draw(mask, negatives, jax.random.key(seed)))
    return {int(item): list(drawn[used[item]]) for item in np.flatnonzero(mask)}


class Cic(NamedTuple):
    loss: float
    accuracy: float
    grads: tuple[np.ndarray, np.ndarray]


@functools.partial(jax.jit, static_argnames="negatives")
def _jitted_cic(content, ids, mask, key, temperature, negatives):
    loss = functools.partial(losses.content_id_contrastive, temperature=temperature, negatives=negatives, key=key)
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(content, ids, mask)


def _cic(content, ids, mask, negatives=None, seed=0, temperature=TEMPERATURE) -> Cic:
    (loss, aux), grads = _jitted_cic(content, ids, mask, jax.random.key(seed), temperature, negatives)
    return Cic(float(loss), float(aux["cic_accuracy"]), tuple(np.asarray(grad) for grad in grads))


def test_cic_with_all_negatives_is_eqs_12_to_14():
    content, ids, mask = _items()
    valid = np.flatnonzero(mask)
    result = _cic(content, ids, mask)
    expected = _eqs_12_to_14(content, ids, {i: [j for j in valid if j != i] for i in valid})
    assert 0 < expected[1] < 1
    assert (result.loss, result.accuracy) == pytest.approx(expected, rel=1e-5)


def test_cic_with_drawn_negatives_is_eqs_12_to_14():
    content, ids, mask = _items()
    for seed in range(3):
        rows = _negatives(mask, 3, seed)
        result = _cic(content, ids, mask, negatives=3, seed=seed)
        expected = _eqs_12_to_14(content, ids, rows)
        assert (result.loss, result.accuracy) == pytest.approx(expected, rel=1e-5)


def test_cic_asking_for_more_negatives_than_there_are_takes_all():
    content, ids, mask = _items()  # 7 valid of 9: the seventh negative is surplus
    expected, result = _cic(content, ids, mask), _cic(content, ids, mask, negatives=7)
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(result.grads[0], expected.grads[0], atol=1e-5)


@pytest.mark.parametrize("negatives", [0, 8, 50])
def test_cic_with_as_many_negatives_as_rows_is_the_full_matrix(negatives):
    def program(negatives):
        loss = functools.partial(losses.content_id_contrastive, temperature=TEMPERATURE, negatives=negatives)
        return str(jax.make_jaxpr(loss)(*_items()))

    assert program(negatives) == program(None)


@pytest.mark.parametrize(("rows", "negatives"), [(3, 1), (9, 3), (9, 7), (33, 16)])
def test_negatives_are_distinct_valid_and_never_the_positive(rows, negatives):
    for share in (0.0, 0.1, 0.3, 0.7, 1.0):
        for seed in range(4):
            mask = np.random.default_rng(seed).random(rows) < share
            for item, others in _negatives(mask, negatives, seed).items():
                assert len(others) == len(set(others)) == min(negatives, mask.sum() - 1)
                assert item not in others
                assert mask[others].all()


def test_negatives_are_uniform_over_the_other_items():
    mask = np.array([True, False, True, True, True, False, False, True, True])  # 6 valid: 5 others each
    draws = 2000
    drawn = [_negatives(mask, 3, seed) for seed in range(draws)]
    for item in np.flatnonzero(mask):
        counts = np.bincount(np.concatenate([negatives[item] for negatives in drawn]), minlength=9)
        share = 3 / 5  # each of the 5 others is among the 3 with this probability
        deviation = math.sqrt(draws * share * (1 - share))
        others = mask & (np.arange(9) != item)
        np.testing.assert_allclose(counts[others], draws * share, atol=4.5 * deviation)
        assert counts.sum() == counts[others].sum()


@pytest.mark.parametrize("negatives", [None, 3])
def test_cic_does_not_see_masked_rows(negatives):
    content, ids, mask = _items()
    expected = _cic(content, ids, mask, negatives)
    for rubbish in (0.0, 1e30, np.nan):
        content[~mask], ids[~mask] = rubbish, -rubbish
        result = _cic(content, ids, mask, negatives)
        assert result.loss == expected.loss
        for got, want in zip(result.grads, expected.grads, strict=True):
            np.testing.assert_array_equal(got, want)
            np.testing.assert_array_equal(got[~mask], 0)


def test_cic_does_not_depend_on_row_order_padding_or_length_of_vectors():
    content, ids, mask = _items()
    expected = _cic(content, ids, mask)
    order = np.random.default_rng(1).permutation(len(mask))
    lengths = np.random.default_rng(2).uniform(0.01, 100, (9, 1)).astype(np.float32)
    front = ((5, 0), (0, 0))  # five rows of padding before the items
    for result in (
        _cic(content[order], ids[order], mask[order]),
        _cic(content * lengths, ids / lengths, mask),
        _cic(np.pad(content, front), np.pad(ids, front), np.pad(mask, (5, 0))),
    ):
        assert (result.loss, result.accuracy) == pytest.approx((expected.loss, expected.accuracy), rel=1e-5)


def test_cic_by_weight_is_the_mean_over_samples_of_eqs_12_and_13():
    """Each example with its candidate as positive; items of histories alone are negatives only."""
    content, ids, mask = _items()
    valid = np.flatnonzero(mask)
    candidates = [0, 0, 0, 2, 2, 8, 4]  # of B examples; items 3, 6 and 7 are in histories alone
    weight = jnp.array(np.bincount(candidates, minlength=len(mask)), jnp.float32)
    loss = functools.partial(losses.content_id_contrastive, temperature=TEMPERATURE, weight=weight)
    value, aux = loss(content, ids, mask)
    of_item = {i: _eqs_12_to_14(content, ids, {i: [j for j in valid if j != i]}) for i in set(candidates)}
    expected = np.mean([of_item[i] for i in candidates], axis=0)
    assert (value, aux["cic_accuracy"]) == pytest.approx(tuple(expected), rel=1e-5)
    assert value != pytest.approx(_cic(content, ids, mask).loss, rel=1e-3)
    # What is masked has no say, whatever its weight, and neither has anything without weights.
    masked = loss(content, ids, mask & (np.arange(len(mask)) != 2), weight=weight)[0]
    others = [j for j in valid if j != 2]
    kept = [_eqs_12_to_14(content, ids, {i: [j for j in others if j != i]})[0] for i in candidates if i != 2]
    assert masked == pytest.approx(np.mean(kept), rel=1e-5)
    nothing = loss(content, ids, mask, weight=jnp.zeros(len(mask)))
    assert nothing[0] == 0 and np.isnan(nothing[1]["cic_accuracy"])


@pytest.mark.parametrize("negatives", [None, 3])
@pytest.mark.parametrize("valid", [0, 1, 2, 9])
def test_cic_gradients_are_finite_for_zero_vectors_and_empty_masks(negatives, valid):
    content, ids, _ = _items()
    content[0], ids[1], content[2], ids[2] = 0, 0, 0, 0
    result = _cic(content, ids, np.arange(9) < valid, negatives)
    assert math.isfinite(result.loss)
    assert all(np.isfinite(grad).all() for grad in result.grads)
    np.testing.assert_array_equal(result.grads[0][0], 0)
    if valid < 2:
        assert result.loss == 0
        assert math.isnan(result.accuracy)
        assert not any(grad.any() for grad in result.grads)


def test_cic_in_groups_is_eqs_12_to_14_of_each_example_against_the_others_of_its_group():
    """One that is there twice counts twice, its own item never; of weight 0 is no negative; alone there is no loss."""
    content, ids, _ = _items(8)
    item, group = np.array([0, 1, 1, 2, 0, 3, 4, 4]), np.array([7, 7, 7, 7, 7, 9, 8, 8])
    content, ids = content[item], ids[item]
    weight = np.array([1, 2, 1, 0, 1, 1, 1, 1], np.float32)
    content[3] = ids[3] = np.nan
    loss, hit, some = losses.content_id_contrastive_in_groups(
        content, ids, item, group, weight, temperature=TEMPERATURE
    )
    negatives = {0: [1, 2], 1: [0, 4], 2: [0, 4], 4: [1, 2]}
    np.testing.assert_array_equal(np.flatnonzero(some), [*negatives])  # of 5 nothing else, of 6 and 7 one item
    for k, others in negatives.items():
        assert (loss[k], hit[k]) == pytest.approx(_eqs_12_to_14(content, ids, {k: others}), rel=1e-5)


def test_cic_gradient_matches_finite_differences():
    content, ids, mask = _items()
    gradient = _cic(content, ids, mask).grads[0]
    valid = np.flatnonzero(mask)
    negatives = {i: [j for j in valid if j != i] for i in valid}
    step = 1e-4
    for row, column in ((0, 0), (2, 3), (7, 1)):
        shift = np.zeros(content.shape)
        shift[row, column] = step
        up, down = (_eqs_12_to_14(content + sign * shift, ids, negatives)[0] for sign in (1, -1))
        assert gradient[row, column] == pytest.approx((up - down) / (2 * step), rel=1e-4)


def test_cic_is_stable_at_a_tiny_temperature():
    mask = np.arange(9) < 4
    content = np.eye(9, 4, dtype=np.float32)
    ids = np.pad(np.roll(np.eye(4, dtype=np.float32), 1, axis=0), ((0, 5), (0, 0)))
    # Every positive at cosine 0, one negative at cosine 1: the loss is 1 / tau, and exp(1 / tau) would overflow.
    result = _cic(content, ids, mask, temperature=1e-4)
    assert result.loss == pytest.approx(1e4)
    assert result.accuracy == 0
    assert all(np.isfinite(grad).all() for grad in result.grads)


def test_cic_accuracy_of_a_collapsed_model_is_zero():
    same = np.ones((9, 4), np.float32)
    assert _cic(same, same, np.ones(9, bool)).accuracy == 0


def test_cic_rejects_wrong_shapes_and_a_draw_without_key():
    content, ids, mask = _items()
    with pytest.raises(ValueError, match="want"):
        _cic(content, ids[:, :3], mask)
    with pytest.raises(ValueError, match="need a key"):
        losses.content_id_contrastive(content, ids, mask, temperature=TEMPERATURE, negatives=2)
    with pytest.raises(ValueError, match="cannot draw"):
        losses.in_batch_negatives(mask, 9, jax.random.key(0))


def reference_sqdc(query, document, anchor, item, group, mask, scale):
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    query, document, total, count = unit(query.astype(np.float64)), unit(document.astype(np.float64)), 0.0, 0
    for i in np.flatnonzero(anchor & mask):
        terms = [
            np.exp(scale * query[i] @ document[j])
            for j in range(len(query))
            if i == j or (mask[j] and item[i] != item[j] and (group is None or group[i] != group[j]))
        ]
        total -= np.log(np.exp(scale * query[i] @ document[i]) / np.sum(terms))
        count += 1
    return total / count


@pytest.mark.parametrize("masked", [True, False])
def test_sqdc_is_its_formula(masked):
    """On a batch that shows the same documents to several queries."""
    random = np.random.default_rng(0)
    query, of_item = random.normal(size=(2, 12, 5)).astype(np.float32)
    item = random.integers(0, 5, 12).astype(np.int32)
    document, anchor, mask = of_item[item], random.random(12) < 0.5, random.random(12) < 0.8
    group = random.integers(0, 4, 12) if masked else None
    value, aux = losses.query_document_contrastive(query, document, anchor, item, group, mask, scale=20.0)
    reference = lambda item: reference_sqdc(query, document, anchor, item, group, mask, 20.0)  # noqa: E731
    np.testing.assert_allclose(value, reference(item), rtol=1e-5)
    assert reference(np.arange(12)) > reference(item)  # repeats would have been negatives of themselves
    assert 0 <= float(aux["sqdc_accuracy"]) <= 1


def test_a_document_is_no_negative_of_itself_however_often_it_is_shown():
    """Queries that point at their documents: all anchors are right, and the loss is that of each document once."""
    document = jnp.eye(3)[jnp.asarray([0, 1, 0, 0, 2])]
    item, every = jnp.asarray([7, 8, 7, 7, 9]), jnp.ones(5, bool)
    value, aux = losses.query_document_contrastive(document, document, every, item, None, every, scale=2.0)
    others = np.array([2, 4, 2, 2, 4])
    np.testing.assert_allclose(value, np.mean(np.log1p(others * np.exp(-2.0))), rtol=1e-5)
    assert float(aux["sqdc_accuracy"]) == 1


def test_sqdc_without_an_anchor_is_zero_and_masked_rows_may_hold_anything():
    none, item = jnp.zeros(4, bool), jnp.arange(4)
    query, document = jnp.ones((4, 3)).at[3].set(jnp.nan), jnp.ones((4, 3))
    value, aux = losses.query_document_contrastive(query, document, none, item, None, jnp.ones(4, bool), scale=1.0)
    assert float(value) == 0 and np.isnan(aux["sqdc_accuracy"])
    mask = jnp.asarray([True, True, True, False])
    loss = lambda q: losses.query_document_contrastive(q, document, mask, item, None, mask, scale=1.0)[0]  # noqa: E731
    assert np.isfinite(jax.grad(loss)(query)).all()
