"""LEMUR's encoder: what its representation reads."""

import jax
import numpy as np
import pytest

from em3_jax.models.encoders.fields import EncoderSettings, FieldEncoder, TextLayout, VectorLayout

B, D = 5, 8
LAYOUTS = (("text", TextLayout((("title", 4), ("genres", 3)), (4, 3), 20)), ("vector", VectorLayout()))


def make(means: bool):
    settings = EncoderSettings(width=D, layers=2, heads=2, mlp_width=12, output=6, means=means)
    random = np.random.default_rng(0)
    tokens = {
        "text": random.integers(0, 20, (B, 7, 1)).astype(np.int32),
        "vector": random.normal(size=(B, 2, 3)).astype(np.float32),
    }
    mask = {"text": random.random((B, 7)) < 0.7, "vector": np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)}
    encoder = FieldEncoder(settings, LAYOUTS)
    params = jax.jit(encoder.init)(jax.random.key(0), tokens, mask)
    return encoder, jax.tree.map(lambda leaf: leaf + 0.1, params), tokens, mask


@pytest.fixture(scope="module")
def with_means():
    return make(True)


def test_means_stand_beside_the_class_token(with_means):
    encoder, params, tokens, mask = with_means
    out, seen = encoder.apply(
        params, tokens, mask, capture_intermediates=lambda module, _: module.name == "embedding_norm"
    )
    read = np.asarray(seen["intermediates"]["embedding_norm"]["__call__"][0]).reshape(B, -1, D)
    separator = mask["text"][:, 4:].any(axis=1, keepdims=True)  # opens the second field, if it has a word
    of_set = {
        "text": (read[:, 1:9], np.concatenate([mask["text"][:, :4], separator, mask["text"][:, 4:]], axis=1)),
        "vector": (read[:, 9:], mask["vector"]),
    }
    kernel = np.asarray(params["params"]["output"]["kernel"])
    without = {"params": params["params"] | {"output": dict(params["params"]["output"], kernel=kernel[:D])}}
    plain = make(False)[0].apply(without, tokens, mask)
    for item in range(B):
        expected = np.asarray(plain[item])
        for number, (x, valid) in enumerate(of_set.values()):
            some = [x[item, n] for n in range(x.shape[1]) if valid[item, n]]
            mean = np.mean(some, axis=0) if some else np.zeros(D)
            expected = expected + mean @ kernel[D * (1 + number) : D * (2 + number)]
        np.testing.assert_allclose(out[item], expected, rtol=1e-4, atol=1e-5)


def test_what_is_masked_changes_nothing(with_means):
    encoder, params, tokens, mask = with_means
    other = {
        "text": np.where(mask["text"][..., None], tokens["text"], 19 - tokens["text"]),
        "vector": np.where(mask["vector"][..., None], tokens["vector"], 7.0).astype(np.float32),
    }
    one, two = (encoder.apply(params, some, mask) for some in (tokens, other))
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
    assert np.isfinite(np.asarray(one)).all()
