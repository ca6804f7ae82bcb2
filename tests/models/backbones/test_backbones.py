"""Each backbone against its published formula, one example at a time in numpy."""

import functools

import jax
import numpy as np
import pytest

from em3_jax.config.registry import BACKBONES
from em3_jax.models.attention import MLPScore
from em3_jax.models.backbones import BackboneSettings, Features

B, T, S, F, W, R, D = 5, 3, 7, 2, 4, 6, 3
SETTINGS = BackboneSettings(
    hidden=(6, 5), dropout=0.0, attention_score=MLPScore, attention_hidden=3, cross_layers=2
)  # fmt: skip


@functools.cache
def features(content: bool = True, events: bool = True) -> Features:
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    mask = random.random((B, T)) < 0.6
    mask[0], mask[1] = True, False
    return Features(
        items=normal(S, F, W),
        candidate=random.integers(0, S, B),
        history=random.integers(0, S, (B, T)),
        mask=mask,
        events=normal(R, W) if events else None,
        event_position=random.integers(0, R, (B, T, 2)) if events else None,
        others=normal(B, 1, W),
        content=(normal(B, D), normal(B, D)) if content else (),
    )


@functools.cache
def run(name: str, content: bool = True, events: bool = True, settings: BackboneSettings = SETTINGS):
    """(parameters in f64, logits)."""
    module, inputs = BACKBONES[name](settings), features(content, events)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), inputs, train=False))["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.5 * random.standard_normal(leaf.shape).astype(leaf.dtype), shapes)
    logits, scalars = module.apply({"params": params}, inputs, train=False)
    assert all(np.isfinite(value) for value in scalars.values())
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params), np.asarray(logits)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def mlp(p, x, layers: int):
    for k in range(layers):
        x = np.maximum(dense(p[f"Dense_{k}"], x), 0)
    return dense(p[f"Dense_{layers}"], x)


def fields_of(p, f: Features, b: int) -> np.ndarray:
    """[F + 2, W]: the candidate's fields, the mean of the history, the user's field."""
    history = np.zeros(W)
    for t in np.flatnonzero(f.mask[b]):
        event = 0 if f.events is None else sum(f.events[k] for k in f.event_position[b, t])
        history += dense(p["fields"]["item"], f.items[f.history[b, t]].ravel()) + event
    return np.concatenate([f.items[f.candidate[b]], [history / max(f.mask[b].sum(), 1)], f.others[b]])


def deepfm(p, f, b):
    fields = fields_of(p, f, b)
    vectors, first_order = list(fields[:, 1:]), fields[:, 0].sum()
    for k, content in enumerate(f.content):
        vectors.append(dense(p[f"content_vector_{k}"], content[b]))
        first_order += dense(p[f"content_weight_{k}"], content[b])[0]
    pairs = sum(vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i))
    flat = np.concatenate([fields.ravel(), *(content[b] for content in f.content)])
    return first_order + pairs + mlp(p["dnn"], flat, 2)[0]


def dcnv2(p, f, b):
    flat = np.concatenate([fields_of(p, f, b).ravel(), *(content[b] for content in f.content)])
    crossed = flat
    for k in range(2):
        crossed = flat * dense(p[f"cross_{k}"], crossed) + crossed
    deep = np.maximum(mlp(p["dnn"], flat, 1), 0)
    return dense(p["out"], np.concatenate([crossed, deep]))[0]


def wide_deep(p, f, b):
    fields = fields_of(p, f, b)
    wide = fields[:, 0].sum() + sum(dense(p[f"content_weight_{k}"], c[b])[0] for k, c in enumerate(f.content))
    flat = np.concatenate([fields.ravel(), *(content[b] for content in f.content)])
    return wide + mlp(p["dnn"], flat, 2)[0]


def din(p, f, b):
    items = dense(p["item"], f.items.reshape(S, -1))
    target, slots, scores = items[f.candidate[b]], [], []
    for t in np.flatnonzero(f.mask[b]):
        h = items[f.history[b, t]] + (0 if f.events is None else sum(f.events[k] for k in f.event_position[b, t]))
        score, pair = p["attention"]["MLPScore_0"], np.concatenate([target, h, target - h, target * h])
        slots.append(h)
        scores.append(np.exp(np.maximum(pair @ score["kernel"] + score["bias"], 0) @ score["out"][:, 0]))
    interest = sum(w * h for w, h in zip(scores, slots, strict=True)) / sum(scores) if slots else np.zeros(W)
    content = [c[b] for c in f.content]
    parts = [f.items[f.candidate[b]].ravel(), interest, interest * target, f.others[b].ravel(), *content]
    return mlp(p["dnn"], np.concatenate(parts), 2)[0]


def din_as_published(p, f, b):
    """Items' fields side by side, each with the events' own added; scores as they are; no product."""
    slots, score = np.zeros(F * W), p["attention"]["MLPScore_0"]
    target = f.items[f.candidate[b]].ravel()
    for t in np.flatnonzero(f.mask[b]):
        event = 0 if f.events is None else sum(f.events[k] for k in f.event_position[b, t])
        h = (f.items[f.history[b, t]] + event).ravel()
        pair = np.concatenate([target, h, target - h, target * h])
        weight = np.maximum(pair @ score["kernel"] + score["bias"], 0) @ score["out"][:, 0]
        slots += (weight + p["attention"]["score_bias"]) * h
    parts = [target, slots, f.others[b].ravel(), *(c[b] for c in f.content)]
    return mlp(p["dnn"], np.concatenate(parts), 2)[0]


def deepctr(p, f, b):
    """BasicNet as the explicit product of a one-hot vector, with a table of all rows that there are."""
    table = np.concatenate([f.items.reshape(-1, W), f.others.reshape(-1, W)]).astype(float)
    hot = np.zeros(len(table))
    hot[f.candidate[b] * F + np.arange(F)] = 1
    hot[f.items.size // W + b] = 1
    x = np.concatenate([np.maximum(hot @ table + p["basic_bias"], 0), *(c[b] for c in f.content)])
    for k in range(2):
        x = dense(p[f"comb_{k}"], x)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p[f"norm_{k}"]["scale"] + p[f"norm_{k}"]["bias"]
        x = np.maximum(x, 0)
    return dense(p["out"], x)[0]


NAIVE = {"din": din, "deepfm": deepfm, "dcnv2": dcnv2, "wide_deep": wide_deep, "deepctr": deepctr}


@pytest.mark.parametrize("content", [True, False], ids=["content", "ids"])
@pytest.mark.parametrize("events", [True, False], ids=["events", "plain"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_equals_its_formula(name, content, events):
    params, logits = run(name, content, events)
    expected = [NAIVE[name](params, features(content, events), b) for b in range(B)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("events", [True, False], ids=["events", "plain"])
def test_din_as_published(events):
    settings = SETTINGS._replace(attention_layer=False, attention_softmax=False)
    params, logits = run("din", True, events, settings)
    expected = [din_as_published(params, features(True, events), b) for b in range(B)]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_what_is_masked_in_the_history_has_no_say(name):
    params, logits = run(name)
    f = features()
    other = np.where(f.mask, f.history, (f.history + 1) % S)
    module = BACKBONES[name](SETTINGS)
    apply = lambda f: module.apply({"params": params}, f, train=False)[0]  # noqa: E731
    np.testing.assert_array_equal(apply(f._replace(history=other)), apply(f))
    moved = apply(f._replace(history=(f.history + 1) % S))
    if name == "deepctr":  # which reads none of it
        np.testing.assert_array_equal(moved, logits)
        return
    assert np.abs(np.asarray(moved) - logits)[f.mask.any(axis=1)].min() > 1e-5
