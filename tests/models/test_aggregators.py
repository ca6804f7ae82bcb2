"""Aggregators of past content against plain loops, one example and one slot at a time."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.aggregators import AGGREGATORS, Behaviours
from em3_jax.models.attention import DotScore

B, T, S, D, F, W = 5, 4, 7, 6, 2, 3
EMPTY = 2  # the example without a history


class Scope(nn.Module):
    """What the ranker is to an aggregator: where its parameters live."""

    name_: str

    @nn.compact
    def __call__(self, seen):
        return AGGREGATORS[self.name_](seen, DotScore, 0)


def behaviours() -> Behaviours:
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    mask = random.random((B, T)) < 0.6
    mask[0], mask[EMPTY] = True, False
    place = random.integers(0, S, B), random.integers(0, S, (B, T))
    return Behaviours(normal(S, D), *place, mask, (), normal(S, F, W))


@functools.cache
def run(name: str):
    """(parameters, seen -> channels)."""
    module, seen = Scope(name), behaviours()
    shapes = jax.eval_shape(module.init, jax.random.key(0), seen).get("params", {})
    random = np.random.default_rng(1)
    draw = lambda leaf: random.standard_normal(leaf.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(draw, shapes)
    return params, jax.jit(lambda params, seen: module.apply({"params": params}, seen)[0])


def attended(of_score, query, slots) -> np.ndarray:
    """sum_i w_i h_i with w = softmax(<W_q c, W_k h_i> / sqrt(D)); zeros of no slot."""
    key, query = of_score["key"]["kernel"], of_score["query"]["kernel"].T @ query
    weights = [np.exp(query @ (key @ slot) / np.sqrt(D)) for slot in slots]
    return sum((w * h for w, h in zip(weights, slots, strict=True)), np.zeros(D)) / max(sum(weights), 1e-30)


def naive(name: str, params, seen: Behaviours) -> list[np.ndarray]:
    """The channels of each example, [B] lists."""
    channels = []
    for b in range(B):
        slots = [seen.items[seen.history[b, t]].astype(float) for t in range(T) if seen.mask[b, t]]
        candidate = seen.candidate[b]
        if name in ("attentive", "multi_query"):
            of_content = params["content_attention"]["DotScore_0"]
            found = [attended(of_content, seen.items[candidate], slots)]
            if name == "multi_query":
                to = params["content_id_query"]
                query = seen.ids[candidate].ravel() @ to["kernel"] + to["bias"]
                found.append(attended(params["content_attention_of_ids"]["DotScore_0"], query, slots))
        elif name == "concat":
            every = [seen.items[seen.history[b, t]] * seen.mask[b, t] for t in range(T)]
            found = [np.concatenate(every)]
        elif not slots:
            found = [np.zeros(D)]
        else:
            found = [{"sum": sum(slots), "mean": sum(slots) / len(slots), "max": np.max(slots, axis=0)}[name]]
        channels.append(found)
    return [np.stack(one) for one in zip(*channels, strict=True)]


@pytest.mark.parametrize("name", AGGREGATORS)
def test_an_aggregator_equals_the_loop_and_an_empty_history_gives_zeros(name):
    (params, aggregate), seen = run(name), behaviours()
    found, expected = aggregate(params, seen), naive(name, params, seen)
    assert len(found) == len(expected) == (2 if name == "multi_query" else 1)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert not np.any(one[EMPTY]) and np.any(one[0])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_masked_slots_have_no_say_and_take_no_gradient(name):
    (params, aggregate), seen = run(name), behaviours()
    other = seen._replace(history=np.where(seen.mask, seen.history, (seen.history + 1) % S))
    for one, same in zip(aggregate(params, seen), aggregate(params, other), strict=True):
        np.testing.assert_array_equal(one, same)

    def of_empty(items):
        return sum(jnp.sum(one[EMPTY] ** 2 + one[EMPTY]) for one in aggregate(params, seen._replace(items=items)))

    gradient = jax.grad(of_empty)(seen.items)
    assert np.isfinite(gradient).all() and not np.any(gradient)


def test_all_values_below_zero_keep_their_largest():
    params, aggregate = run("max")
    seen = behaviours()
    seen = seen._replace(items=-np.abs(seen.items) - 1)
    (found,) = aggregate(params, seen)
    assert (np.asarray(found)[seen.mask.any(axis=1)] < -1).all() and not np.any(found[EMPTY])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_only_concat_sees_the_order_of_events(name):
    (params, aggregate), seen = run(name), behaviours()
    seen = seen._replace(mask=np.ones((B, T), bool), history=np.arange(B * T).reshape(B, T) % S)
    turned = seen._replace(history=seen.history[:, ::-1])
    alike = [
        np.allclose(one, other, atol=1e-5)
        for one, other in zip(aggregate(params, seen), aggregate(params, turned), strict=True)
    ]
    assert all(alike) == (name != "concat")
