"""The fusion variants of table 3 against plain numpy, item by item."""

import functools

import jax
import numpy as np
import pytest

from em3_jax.config.registry import FUSIONS
from em3_jax.core import trees
from em3_jax.models.fusion import FusionSettings
from tests.models.fusion.naive import (
    FFN,
    NO_IMAGE,
    NOTHING,
    SIZES,
    D,
    H,
    Q,
    S,
    dense,
    make_content,
    transformer_layer,
    valid_tokens,
)  # fmt: skip


@functools.cache
def make_model(name: str, layers: int, sizes: tuple = tuple(SIZES)):
    """(random params, compiled (params, tokens, mask) -> [S, D])."""
    module = FUSIONS[name](FusionSettings(width=D, queries=Q, layers=layers, heads=H, ffn_width=FFN, dropout=0.3))
    content = [{m: part[m] for m in sizes} for part in make_content()]
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *content)["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return params, jax.jit(lambda params, *content: module.apply({"params": params}, *content, train=False))


def slots(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Output tokens back in their slots, zeros where there was none."""
    result = np.zeros((len(mask), D))
    result[mask] = x
    return result.ravel()


def naive(name: str, layers: int, params, tokens, mask, item: int) -> np.ndarray:
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    flow = {m: valid_tokens(p, tokens, mask, item, m) for m in SIZES}
    both, both_mask = np.concatenate([*flow.values()]), np.concatenate([mask[m][item] for m in SIZES])
    if name == "mean":
        return dense(both.sum(axis=0) / max(len(both), 1), p["join"])
    if name == "one_flow":
        for k in range(layers):
            both = transformer_layer(both, both, p[f"layer_{k}"])
        return dense(slots(both, both_mask), p["join"])
    if name == "two_flow":
        text, other = flow["text"], flow["image"]
        for k in range(layers):
            text_before = text
            text = transformer_layer(text, other, p[f"text_cross_{k}"])
            text = transformer_layer(text, text, p[f"text_{k}"])
            if k < layers - 1:
                other = transformer_layer(other, text_before, p[f"other_cross_{k}"])
                other = transformer_layer(other, other, p[f"other_{k}"])
        return dense(slots(text, mask["text"][item]), p["join"])
    queries = p["queries"]  # masked: the queries are never read
    for k in range(layers):
        queries, both = (transformer_layer(x, both, p[f"layer_{k}"]) for x in (queries, both))
    return dense(queries.ravel(), p["join"])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["masked_fq_former", "one_flow", "two_flow", "mean"])
def test_variants_equal_their_naive_form(name, layers):
    params, fuse = make_model(name, layers)
    tokens, mask = make_content()
    expected = [naive(name, layers, params, tokens, mask, item) for item in range(S)]
    np.testing.assert_allclose(fuse(params, tokens, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FUSIONS)
def test_masked_tokens_change_nothing_and_items_without_any_are_finite(name):
    params, fuse = make_model(name, 2)
    tokens, mask = make_content()
    other = {m: np.where(mask[m][..., None], tokens[m], np.float32(np.nan)) for m in tokens}
    np.testing.assert_array_equal(fuse(params, other, mask), fuse(params, tokens, mask))
    assert np.isfinite(np.asarray(fuse(params, tokens, mask))[[NO_IMAGE, NOTHING]]).all()


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("modality", SIZES)
def test_one_modality_is_enough(name, modality):
    params, fuse = make_model(name, 1, (modality,))
    tokens, mask = make_content()
    out = np.asarray(fuse(params, {modality: tokens[modality]}, {modality: mask[modality]}))
    assert out.shape == (S, D) and np.isfinite(out).all() and np.ptp(out[[0, 2, 4]], axis=0).min() > 0


@pytest.mark.parametrize(("name", "depends"), [("masked_fq_former", False), ("fq_former", True)])
def test_the_queries_values_are_read_unless_masked(name, depends):
    """With one query moved, the other's output stays where it is unless somebody reads what the moved one says."""
    params, fuse = make_model(name, 2)
    content = make_content()
    first_query = np.zeros_like(params["join"]["kernel"])
    first_query[:D] = np.eye(D)
    params = params | {"join": {"kernel": first_query, "bias": np.zeros(D, np.float32)}}
    moved = params["queries"] + np.array([[0.0], [1.0]], np.float32)
    change = np.asarray(fuse(params | {"queries": moved}, *content)) - fuse(params, *content)
    assert (np.abs(change).max() > 1e-3) == depends
    assert depends or not change.any()


def test_two_flow_returns_the_text_flow():
    """Without a valid text token there is nothing to return, whatever the image shows."""
    params, fuse = make_model("two_flow", 1)
    tokens, mask = make_content()
    mask["text"][:] = False
    out = np.asarray(fuse(params, tokens, mask))
    np.testing.assert_allclose(out, np.broadcast_to(params["join"]["bias"], out.shape), atol=1e-6)


def test_the_default_configs_variants_have_like_sizes():
    """Transformers of the same depth and width; what differs is what the variant is about."""
    sizes = {name: sum(leaf.size for leaf in trees.named_leaves(make_model(name, 1)[0]).values()) for name in FUSIONS}
    assert sizes["fq_former"] == sizes["masked_fq_former"]
    assert sizes["mean"] < sizes["fq_former"] < sizes["two_flow"]
