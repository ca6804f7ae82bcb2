"""Target attention against its equations, written out slot by slot in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.attention import (
    CosineScore,
    DotScore,
    MeanScore,
    MLPScore,
    TargetAttention,
    entropies,
    entropy,
    masked_softmax,
)

B, T, S, R, D, K = 5, 4, 7, 6, 8, 3
SCORES = {"dot": DotScore, "mlp": MLPScore, "cosine": CosineScore, "mean": MeanScore}
EVENTS = {"plain": "", "with event fields added": "added", "with event fields that weigh": "weigh"}
W = 3  # width of events that weigh
EMPTY = 2  # the example without a history


def make_arguments(events: str) -> list:
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
        arguments.append(random.standard_normal((R, W if events == "weigh" else D)).astype(np.float32))
        arguments.append(random.integers(0, R, (B, T, 2)).astype(np.int32))
    return arguments


@functools.cache
def make_attention(score: str, events: str):
    """(params with random biases, compiled (params, *arguments) -> (interest, weights))."""
    module = TargetAttention(SCORES[score], K, events_weigh=events == "weigh")
    shapes = jax.eval_shape(module.init, jax.random.key(0), *make_arguments(events)).get("params", {})
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    return params, jax.jit(lambda params, *arguments: module.apply({"params": params}, *arguments))


def naive(score: str, params, items, candidate, history, mask, events=None, event_position=None):
    """(interest [B, D], weights [B, T]) of eq. 7-8 in f64, one slot at a time."""
    every = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    p = every.get(f"{SCORES[score].__name__}_0", {})  # the mean has no parameters
    weigh = "event_factor" in every
    interest, weights = np.zeros((B, D)), np.zeros((B, T))
    for b in range(B):
        c = items[candidate[b]].astype(np.float64)
        slots, scores, factors = {}, {}, {}
        for t in np.flatnonzero(mask[b]):
            h = items[history[b, t]].astype(np.float64)
            e = np.zeros(D) if events is None else sum(events[k].astype(np.float64) for k in event_position[b, t])
            h = h if weigh else h + e
            e = (e - e.mean()) / np.sqrt(e.var() + 1e-6)
            if score == "dot":  # <W_q c, W_k h> / sqrt(D); the kernels hold W_q transposed and W_k
                a = (p["query"]["kernel"].T @ c) @ (p["key"]["kernel"] @ h) / np.sqrt(D)
            elif score == "cosine":
                a = np.exp(p["log_scale"]) * c @ h / np.linalg.norm(c) / np.linalg.norm(h)
            elif score == "mean":
                a = 0.0
            else:  # DIN: a ReLU layer on [c, h, c - h, c * h], then a linear one
                a = np.maximum(np.concatenate([c, h, c - h, c * h]) @ p["kernel"] + p["bias"], 0) @ p["out"][:, 0]
            if weigh:
                query = every["event_query"]
                a = a + (c @ query["kernel"] + query["bias"]) @ e
            slots[t], scores[t], factors[t] = h, a, 1 + every["event_factor"] @ e if weigh else 1.0
        total = sum(np.exp(a) for a in scores.values())
        for t, a in scores.items():
            weights[b, t] = np.exp(a) / total
            interest[b] += weights[b, t] * factors[t] * slots[t]
    return interest, weights


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("score", SCORES)
def test_attention_equals_the_naive_form(score, events):
    arguments = make_arguments(events)
    params, attend = make_attention(score, events)
    interest, weight = attend(params, *arguments)
    expected_interest, expected_weight = naive(score, params, *arguments)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(interest, expected_interest, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
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
    arguments = make_arguments("added")
    params, attend = make_attention(score, "added")
    interest, weight = attend(params, *arguments)
    assert not np.any(interest[EMPTY]) and not np.any(weight[EMPTY])
    np.testing.assert_allclose(weight.sum(axis=1), arguments[3].any(axis=1), rtol=1e-6)
    assert not np.any(np.asarray(weight)[~arguments[3]])


@pytest.mark.parametrize("score", SCORES)
def test_an_empty_history_has_finite_gradients_and_gives_none(score):
    arguments = make_arguments("added")
    params, attend = make_attention(score, "added")

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
    arguments = make_arguments("added")
    params, attend = make_attention(score, "added")
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
    arguments = make_arguments("added")
    params, attend = make_attention(score, "added")
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


def test_a_cosine_does_not_see_how_small_content_starts():
    """A product of embeddings of a tenth of the size has a hundredth of the scores; a cosine has the same."""
    arguments = make_arguments("")
    small = [arguments[0] / 10, *arguments[1:]]
    for score, same in (("cosine", True), ("dot", False)):
        params, attend = make_attention(score, "")
        one, other = (np.log(attend(params, *a)[1][0]) for a in (arguments, small))
        of_scores = np.std(other) / np.std(one)
        assert of_scores == pytest.approx(1.0 if same else 0.01, rel=1e-3)


@pytest.mark.parametrize("score", SCORES)
def test_events_that_weigh_start_as_if_there_were_none_of_their_factor(score):
    """v = 0: u_A is the weighted mean of eq. 7, whose weights alone know of the events."""
    arguments = make_arguments("weigh")
    module = TargetAttention(SCORES[score], K, events_weigh=True)
    params = module.init(jax.random.key(0), *arguments)["params"]
    interest, weight = module.apply({"params": params}, *arguments)
    slots = arguments[0][arguments[2]]
    np.testing.assert_allclose(interest, np.einsum("bt,btd->bd", weight, slots), rtol=1e-5, atol=1e-6)
    flipped = [*arguments[:4], -arguments[4], arguments[5]]
    assert np.abs(module.apply({"params": params}, *flipped)[1] - weight).max() > 0.05


@pytest.mark.parametrize("events", ["", "weigh"])
def test_similarity_is_added_to_the_scores_by_a_learnt_weight(events):
    """SA-TA: softmax(a(c, h) + w cos), w = 1 at first; without it the bits are as they were."""
    arguments = make_arguments(events)
    given = dict(zip(("events", "event_position"), arguments[4:], strict=False))
    near = np.random.default_rng(3).uniform(-1, 1, (B, T)).astype(np.float32)
    module = TargetAttention(SCORES["mean"], K, events_weigh=events == "weigh")
    variables = module.init(jax.random.key(0), *arguments[:4], **given, similarity=near)
    assert variables["params"]["similarity_weight"] == 1.0
    weighed = {"params": variables["params"] | {"similarity_weight": jnp.float32(2.5)}}
    _, weight = module.apply(weighed, *arguments[:4], **given, similarity=near)
    _, without = module.apply(weighed, *arguments[:4], **given)
    expected = np.asarray(without) * np.exp(2.5 * near)  # of softmaxes: w exp(x) / sum
    total = expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weight, expected / np.where(total > 0, total, 1), atol=1e-6)
    assert not np.asarray(weight)[EMPTY].any()


def test_without_softmax_weights_are_the_scores_and_a_bias():
    arguments = make_arguments("")
    with_softmax, without = (TargetAttention(SCORES["dot"], K, softmax=softmax) for softmax in (True, False))
    variables = without.init(jax.random.key(0), *arguments)
    biased = {"params": variables["params"] | {"score_bias": jnp.float32(0.7)}}
    interest, weight = without.apply(biased, *arguments)
    _, normed = with_softmax.apply(variables, *arguments)
    items, mask = arguments[0], arguments[3]
    np.testing.assert_allclose(masked_softmax(weight, mask), normed, atol=1e-6)  # a softmax sees no bias
    np.testing.assert_allclose(weight, np.where(mask, without.apply(variables, *arguments)[1] + 0.7, 0), atol=1e-6)
    np.testing.assert_allclose(interest, np.einsum("bt,btd->bd", weight, items[arguments[2]]), atol=1e-5)
