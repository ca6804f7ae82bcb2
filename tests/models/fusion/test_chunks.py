"""Fusion in chunks: the same embeddings and gradients, and less memory."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.config.registry import FUSIONS
from em3_jax.models.fusion import FusionSettings
from em3_jax.models.fusion.chunks import as_type, in_chunks
from em3_jax.models.lora import LoRA

S = 21


class Host(nn.Module):
    fusion: nn.Module
    chunk: int

    def __call__(self, tokens, mask, train=False):
        def call(fusion, inputs):
            return fusion(*inputs, train=train)

        return in_chunks(self.fusion, self.chunk, call, (as_type(tokens), mask))


def make(name: str, chunk: int = 0, items: int = S, dropout: float = 0.0, layer_chunk: int = 0):
    settings = FusionSettings(
        width=8, queries=2, layers=2, heads=2, ffn_width=16, dropout=dropout, lora=LoRA(2), layer_chunk=layer_chunk
    )
    random = np.random.default_rng(0)
    tokens = {n: random.standard_normal((items, k, 6)).astype(np.float16) for n, k in (("image", 3), ("text", 2))}
    mask = {n: random.random(x.shape[:2]) < 0.7 for n, x in tokens.items()}
    return Host(FUSIONS[name](settings), chunk), tokens, mask


@functools.cache
def at_once(name: str):
    """(parameters, loss, its gradient) of all items at once."""
    whole, tokens, mask = make(name)
    params = jax.jit(whole.init)(jax.random.key(0), tokens, mask)
    return params, *loss_and_gradient(whole, params, tokens, mask)


def loss_and_gradient(module, params, tokens, mask):
    target = np.random.default_rng(1).standard_normal((S, 8)).astype(np.float32)
    loss = lambda p: jnp.sum(jnp.square(module.apply(p, tokens, mask) - target))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))(params)


CHUNKS = [*({"chunk": size} for size in (1, 4, 20, 21, 100)), {"layer_chunk": 1}, {"layer_chunk": 4}]


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("name", ["fq_former", "two_flow"])
def test_the_result_and_the_gradients_are_those_of_all_at_once(name, chunks):
    params, expected, gradient = at_once(name)
    chunked, tokens, mask = make(name, **chunks)
    shapes = jax.eval_shape(chunked.init, jax.random.key(0), tokens, mask)
    assert jax.tree.structure(params) == jax.tree.structure(shapes)
    found, same = loss_and_gradient(chunked, params, tokens, mask)
    np.testing.assert_allclose(expected, found, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), gradient, same)


def test_dropout_differs_between_chunks():
    host, tokens, mask = make("fq_former", 7, dropout=0.5)
    one = {name: np.repeat(x[:1], S, axis=0) for name, x in tokens.items()}
    everything = {name: np.ones_like(x) for name, x in mask.items()}
    params = jax.jit(host.init)(jax.random.key(0), one, everything)
    params = jax.tree.map(lambda x: x + 0.1, params)
    out = host.apply(params, one, everything, train=True, rngs={"dropout": jax.random.key(1)})
    assert len(np.unique(np.asarray(out), axis=0)) == S


def test_the_backward_pass_needs_less_memory():
    def temporaries(chunk: int, layer_chunk: int = 0) -> int:
        host, tokens, mask = make("fq_former", chunk, items=8192, layer_chunk=layer_chunk)
        params = jax.eval_shape(lambda: host.init(jax.random.key(0), tokens, mask))
        gradient = jax.grad(lambda p, t, m: jnp.sum(jnp.square(host.apply(p, t, m))))
        return jax.jit(gradient).lower(params, tokens, mask).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(512) < 0.4 * temporaries(0)
    assert temporaries(0, layer_chunk=512) < 0.6 * temporaries(0)
