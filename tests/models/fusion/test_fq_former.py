"""Fusion-Q-Former against eq. 4-6 written out item by item in numpy, where masked tokens are simply not there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.fq_former import FusionQFormer
from tests.models.fusion.naive import (
    FFN,
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
)

LAYERS = [1, 2]
TARGET = np.cos(np.arange(S * D, dtype=np.float32)).reshape(S, D)


@functools.cache
def make_model(layers: int):
    """(random params, compiled (params, tokens, mask) -> [S, D])."""
    module = FusionQFormer(FusionSettings(width=D, queries=Q, layers=layers, heads=H, ffn_width=FFN, dropout=0.3))
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *make_content())["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return params, jax.jit(lambda params, *content: module.apply({"params": params}, *content, train=False))


@functools.cache
def make_gradients(layers: int):
    """Compiled (params, tokens, mask) -> gradients of sum(TARGET * embeddings) with respect to params and tokens."""
    _, fuse = make_model(layers)
    return jax.jit(jax.grad(lambda *arguments: jnp.sum(TARGET * fuse(*arguments)), argnums=(0, 1)))


def naive(params, tokens, mask, layers: int) -> np.ndarray:
    """[S, D] c_A = TRM(concat([q, f_v(v) + e_v, f_t(t) + e_t]))[:Q], its outputs joined by an FC layer; in f64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    result = []
    for s in range(S):
        x = np.concatenate([p["queries"], *(valid_tokens(p, tokens, mask, s, m) for m in SIZES)])
        for k in range(layers):
            x = transformer_layer(x, x, p[f"layer_{k}"])
        result.append(dense(x[:Q].ravel(), p["join"]))
    return np.array(result)


@pytest.mark.parametrize("layers", LAYERS)
def test_fusion_equals_the_naive_form(layers):
    params, fuse = make_model(layers)
    content = make_content()
    np.testing.assert_allclose(fuse(params, *content), naive(params, *content, layers), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", LAYERS)
def test_slopes_equal_finite_differences_of_the_naive_form(layers):
    params, _ = make_model(layers)
    content = make_content()
    direction = jax.tree.map(lambda leaf: np.sin(np.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    def reference(step):
        moved = jax.tree.map(lambda leaf, d: np.asarray(leaf, np.float64) + step * d, params, direction)
        return np.sum(TARGET * naive(moved, *content, layers))

    gradient = make_gradients(layers)(params, *content)[0]
    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    assert slope == pytest.approx((reference(1e-5) - reference(-1e-5)) / 2e-5, rel=1e-3)


# Masks.


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30, 7.0])
@pytest.mark.parametrize("layers", LAYERS)
def test_masked_tokens_change_nothing_whatever_they_hold(layers, garbage):
    params, fuse = make_model(layers)
    tokens, mask = make_content()
    other = {m: np.where(mask[m][..., None], tokens[m], np.float32(garbage)) for m in tokens}
    np.testing.assert_array_equal(fuse(params, other, mask), fuse(params, tokens, mask))


@pytest.mark.parametrize("layers", LAYERS)
def test_masked_tokens_get_no_gradient_and_disturb_no_other(layers):
    params, _ = make_model(layers)
    tokens, mask = make_content()
    gradients = make_gradients(layers)
    of_params, of_tokens = gradients(params, tokens, mask)
    for m in tokens:
        assert not np.any(of_tokens[m][~mask[m]]) and np.all(np.any(of_tokens[m][mask[m]], axis=-1))
    for garbage in (np.nan, 1e30):
        other = {m: np.where(mask[m][..., None], tokens[m], np.float32(garbage)) for m in tokens}
        for one, same in zip(
            jax.tree.leaves(gradients(params, other, mask)), jax.tree.leaves((of_params, of_tokens)), strict=True
        ):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("layers", LAYERS)
def test_an_item_without_any_modality_has_a_finite_embedding_and_gradient(layers):
    params, fuse = make_model(layers)
    tokens, mask = make_content()
    nothing = {m: np.zeros_like(mask[m]) for m in mask}
    embedding = np.asarray(fuse(params, tokens, mask))
    assert np.isfinite(embedding[NOTHING]).all()
    # It is what the queries alone give, the same for every such item.
    np.testing.assert_allclose(fuse(params, tokens, nothing), np.tile(embedding[NOTHING], (S, 1)), rtol=1e-5, atol=1e-5)
    gradient = make_gradients(layers)(params, tokens, nothing)[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert np.any(gradient["queries"]) and not np.any(gradient["modalities"]["text_fc"]["kernel"])


# What order means.


@pytest.mark.parametrize("layers", LAYERS)
def test_the_order_of_the_tokens_of_a_modality_does_not_matter(layers):
    params, fuse = make_model(layers)
    tokens, mask = make_content()
    order = {m: np.random.default_rng(2).permutation(count) for m, (count, _) in SIZES.items()}
    shuffled = {m: tokens[m][:, order[m]] for m in tokens}, {m: mask[m][:, order[m]] for m in mask}
    np.testing.assert_allclose(fuse(params, *shuffled), fuse(params, tokens, mask), rtol=1e-4, atol=1e-5)


def test_the_order_in_which_modalities_are_named_does_not_matter():
    params, fuse = make_model(1)
    tokens, mask = make_content()
    turned = {m: tokens[m] for m in reversed(tokens)}, {m: mask[m] for m in reversed(mask)}
    np.testing.assert_array_equal(fuse(params, *turned), fuse(params, tokens, mask))


def test_a_modality_speaks_through_its_own_layer_and_embedding():
    params, fuse = make_model(1)
    content = make_content()
    before = np.asarray(fuse(params, *content))
    for name in ("fc", "embedding"):
        moved = jax.tree.map(np.copy, params)
        moved["modalities"][f"image_{name}"] = jax.tree.map(
            lambda leaf: leaf + 0.5, moved["modalities"][f"image_{name}"]
        )
        changed = (np.abs(np.asarray(fuse(moved, *content)) - before) > 1e-4).any(axis=1)
        np.testing.assert_array_equal(changed, content[1]["image"].any(axis=1))


def test_items_do_not_see_each_other():
    params, fuse = make_model(1)
    tokens, mask = make_content()
    before = np.asarray(fuse(params, tokens, mask))
    tokens["text"][0] += 1.0
    tokens["image"][0] *= -1.0
    after = np.asarray(fuse(params, tokens, mask))
    assert np.abs(after[0] - before[0]).max() > 1e-3
    np.testing.assert_array_equal(after[1:], before[1:])
