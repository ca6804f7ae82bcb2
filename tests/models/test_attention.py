"""Target attention against its equations, written out slot by slot in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.attention import DotScore, MLPScore, TargetAttention, entropies, entropy, masked_softmax

B, T, S, R, D, K = 5, 4, 7, 6, 8, 3
SCORES = {"dot": DotScore, "mlp": MLPScore}
EMPTY = 2  # the example without a history


def make_arguments(events: bool) -> list:
    """(items, candidate, history, mask[, events, event_position]) with one empty history and one full."""
    random = np.random.default_rng(0)
    mask = random.random((B, T)) < 0.6
    mask[0], mask[EMPTY] = True, False
    arguments = [
        random.standard_normal((S, D)).astype(np.float32),
        random.integers(0, S, B).astype(np.int32),
        random.integers(0, S, (B, T)).astype(np.int32),
        mask,
    ]
    if events:
        arguments.append(random.standard_normal((R, D)).astype(np.float32))
        arguments.append(random.integers(0, R, (B, T, 2)).astype(np.int32))
    return arguments


@functools.cache
def make_attention(score: str, events: bool):
    """(params with random biases, compiled (params, *arguments) -> (interest, weights))."""
    module = TargetAttention(SCORES[score], K)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *make_arguments(events))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    return params, jax.jit(lambda params, *arguments: module.apply({"params": params}, *arguments))


def naive(score: str, params, items, candidate, history, mask, events=None, event_position=None):
    """(interest [B, D], weights [B, T]) of eq. 7-8 in f64, one slot at a time."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[f"{SCORES[score].__name__}_0"])
    interest, weights = np.zeros((B, D)), np.zeros((B, T))
    for b in range(B):
        c = items[candidate[b]].astype(np.float64)
        slots, scores = {}, {}
        for t in np.flatnonzero(mask[b]):
            h = items[history[b, t]].astype(np.float64)
            for k in [] if events is None else event_position[b, t]:
                h = h + events[k]
            if score == "dot":  # <W_q c, W_k h> / sqrt(D); the kernels hold W_q transposed and W_k
                a = (p["query"]["kernel"].T @ c) @ (p["key"]["kernel"] @ h) / np.sqrt(D)
            else:  # DIN: a ReLU layer on [c, h, c - h, c * h], then a linear one
                a = np.maximum(np.concatenate([c, h, c - h, c * h]) @ p["kernel"] + p["bias"], 0) @ p["out"][:, 0]
            slots[t], scores[t] = h, a
        total = sum(np.exp(a) for a in scores.values())
        for t, a in scores.items():
            weights[b, t] = np.exp(a) / total
            interest[b] += weights[b, t] * slots[t]
    return interest, weights


@pytest.mark.parametrize("events", [False, True], ids=["plain", "with event fields"])
@pytest.mark.parametrize("score", SCORES)
def test_attention_equals_the_naive_form(score, events):
    arguments = make_arguments(events)
    params, attend = make_attention(score, events)
    interest, weight = attend(params, *arguments)
    expected_interest, expected_weight = naive(score, params, *arguments)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(interest, expected_interest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("events", [False, True], ids=["plain", "with event fields"])
@pytest.mark.parametrize("score", SCORES)
def test_masked_positions_do_not_matter(score, events):
    arguments = make_arguments(events)
    params, attend = make_attention(score, events)
    changed = list(arguments)
    changed[2] = np.where(arguments[3], arguments[2], (arguments[2] + 3) % S)
    if events:
        changed[5] = np.where(arguments[3][..., None], arguments[5], (arguments[5] + 1) % R)
    before, after = (attend(params, *a) for a in (arguments, changed))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("score", SCORES)
def test_an_empty_history_gives_zeros_and_others_weights_that_sum_to_one(score):
    arguments = make_arguments(True)
    params, attend = make_attention(score, True)
    interest, weight = attend(params, *arguments)
    assert not np.any(interest[EMPTY]) and not np.any(weight[EMPTY])
    np.testing.assert_allclose(weight.sum(axis=1), arguments[3].any(axis=1), rtol=1e-6)
    assert not np.any(np.asarray(weight)[~arguments[3]])


@pytest.mark.parametrize("score", SCORES)
def test_an_empty_history_has_finite_gradients_and_gives_none(score):
    arguments = make_arguments(True)
    params, attend = make_attention(score, True)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradients(params, items, events, example_weight):
        interest, weight = attend(params, items, *arguments[1:4], events, arguments[5])
        per_example = jnp.sum(interest**2 + interest, axis=1) + jnp.sum(weight**2, axis=1)
        return jnp.sum(example_weight * per_example)

    def gradient_leaves(example_weight):
        return jax.tree.leaves(gradients(params, arguments[0], arguments[4], example_weight))

    for scale in (1.0, 1e6):
        assert all(np.isfinite(leaf).all() for leaf in gradient_leaves(np.full(B, scale, np.float32)))
        assert not any(np.any(leaf) for leaf in gradient_leaves(scale * np.eye(B, dtype=np.float32)[EMPTY]))


@pytest.mark.parametrize("score", SCORES)
def test_slopes_equal_finite_differences_of_the_naive_form(score):
    arguments = make_arguments(True)
    params, attend = make_attention(score, True)
    direction = jax.tree.map(lambda leaf: np.sin(np.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    target = np.cos(np.arange(B * D)).reshape(B, D)

    def reference(step):
        moved = jax.tree.map(lambda leaf, d: np.asarray(leaf, np.float64) + step * np.asarray(d), params, direction)
        return float(np.sum(target * naive(score, moved, *arguments)[0]))

    def loss(params):
        return jnp.sum(target * attend(params, *arguments)[0])

    slope = jax.jit(lambda: jax.jvp(loss, (params,), (direction,))[1])()
    assert slope == pytest.approx((reference(1e-5) - reference(-1e-5)) / 2e-5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("score", SCORES)
def test_permuting_the_history_permutes_the_weights(score):
    arguments = make_arguments(True)
    params, attend = make_attention(score, True)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(T), (B, 1)), axis=1)
    permuted = list(arguments)
    for k in (2, 3):
        permuted[k] = np.take_along_axis(arguments[k], order, axis=1)
    permuted[5] = np.take_along_axis(arguments[5], order[..., None], axis=1)
    interest, weight = attend(params, *arguments)
    permuted_interest, permuted_weight = attend(params, *permuted)
    np.testing.assert_allclose(permuted_weight, np.take_along_axis(weight, order, axis=1), rtol=1e-5)
    np.testing.assert_allclose(permuted_interest, interest, rtol=1e-4, atol=1e-6)


def test_softmax_over_the_valid_positions_at_any_scale():
    score = np.array([[1e4, 2.0, 1e4], [-1e4, -1e4, 5.0], [np.nan, 0.0, 0.0]], np.float32)
    mask = np.array([[True, True, False], [True, True, False], [False, True, True]])
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    np.testing.assert_array_equal(masked_softmax(jnp.array(score), jnp.array(mask)), expected)


def test_entropy_is_the_mean_over_the_rows_with_a_history():
    weight = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert entropy(weight) == pytest.approx((np.log(2) + 0) / 2, rel=1e-6)
    assert entropy(jnp.zeros((3, 4))) == 0


def test_entropy_stands_beside_that_of_uniform_weights():
    mask = np.array([[True, True, True, False], [False] * 4, [True, False, True, False]])
    uniform = mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    sharp = np.array([[1.0, 0, 0, 0], [0] * 4, [0.9, 0, 0.1, 0]])
    of_uniform = (np.log(3) + np.log(2)) / 2
    for weight, expected in ((uniform, of_uniform), (sharp, -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) / 2)):
        found = entropies("a", jnp.array(weight, jnp.float32), jnp.array(mask))
        assert found["a_entropy"] == pytest.approx(expected, rel=1e-5)
        assert found["a_entropy_uniform"] == pytest.approx(of_uniform, rel=1e-5)
