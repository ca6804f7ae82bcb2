"""Fusion in chunks: the same embeddings and gradients, and less memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.chunks import in_chunks
from em3_jax.models.lora import LoRA
from em3_jax.parts import FUSIONS

S = 21


class Host(nn.Module):
    fusion: nn.Module
    chunk: int

    def __call__(self, tokens, mask, train=False):
        return in_chunks(self.fusion, self.chunk, tokens, mask, train=train)


def make(name: str, chunk: int, items: int = S, dropout: float = 0.0):
    settings = FusionSettings(width=8, queries=2, layers=1, heads=2, ffn_width=16, dropout=dropout, lora=LoRA(2))
    random = np.random.default_rng(0)
    tokens = {n: random.standard_normal((items, k, 6)).astype(np.float16) for n, k in (("image", 3), ("text", 2))}
    mask = {n: random.random(x.shape[:2]) < 0.7 for n, x in tokens.items()}
    return Host(FUSIONS[name](settings), chunk), tokens, mask


def value_and_gradient(module: Host, params, tokens, mask):
    target = np.random.default_rng(1).standard_normal((S, 8)).astype(np.float32)

    def loss(params):
        return jnp.sum(jnp.square(module.apply(params, tokens, mask) - target))

    return jax.jit(jax.value_and_grad(loss))(params)


@functools.cache
def at_once(name: str):
    """(parameters, value, gradient) of all items in one piece."""
    whole, tokens, mask = make(name, 0)
    params = whole.init(jax.random.key(0), tokens, mask)
    return params, *value_and_gradient(whole, params, tokens, mask)


@pytest.mark.parametrize("chunk", [1, 4, 20, 21, 100])
@pytest.mark.parametrize("name", ["fq_former", "two_flow"])
def test_the_result_and_the_gradients_are_those_of_all_at_once(name, chunk):
    params, a, gradient = at_once(name)
    chunked, tokens, mask = make(name, chunk)
    fresh = jax.eval_shape(chunked.init, jax.random.key(0), tokens, mask)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    b, same = value_and_gradient(chunked, params, tokens, mask)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), gradient, same)


def test_dropout_differs_between_chunks():
    host, tokens, mask = make("fq_former", 7, dropout=0.5)
    one = {name: np.repeat(x[:1], S, axis=0) for name, x in tokens.items()}
    everything = {name: np.ones_like(x) for name, x in mask.items()}
    params = host.init(jax.random.key(0), one, everything)
    params = jax.tree.map(lambda x: x + 0.1, params)
    out = host.apply(params, one, everything, train=True, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(np.asarray(out), axis=0)) == S


def test_the_backward_pass_needs_less_memory():
    def temporaries(chunk: int) -> int:
        host, tokens, mask = make("fq_former", chunk, items=8192)
        params = jax.eval_shape(lambda: host.init(jax.random.key(0), tokens, mask))
        gradient = jax.grad(lambda p, t, m: jnp.sum(jnp.square(host.apply(p, t, m))))
        return jax.jit(gradient).lower(params, tokens, mask).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(512) < 0.4 * temporaries(0)
