"""core.precision: sums of bf16 are those of f32, in whatever program; programs without bf16 are left alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import precision

N = 4096


def test_a_bias_that_all_rows_share_gets_its_whole_gradient():
    def loss(bias, x):
        return jnp.sum((x + bias.astype(jnp.bfloat16)).astype(jnp.float32))

    x = jnp.ones((N, 3), jnp.bfloat16)
    gradient = precision.sums_in_f32(jax.grad(loss))(jnp.zeros(3), x)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal(gradient, np.full(3, N))


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(16)(x))
        return nn.Dense(1)(nn.relu(x))[:, 0]


@pytest.mark.parametrize("how", ["plain", "remat", "scan", "scan of remat"])
def test_gradients_of_layers_are_within_a_percent_of_those_in_f32(how):
    model, x = Layers(), jax.random.normal(jax.random.key(1), (N, 24))
    params = model.init(jax.random.key(0), x)

    def loss(params, x, dtype=jnp.bfloat16):
        lowered = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        apply = jax.checkpoint(model.apply) if "remat" in how else model.apply
        if "scan" in how:  # more chunks than bf16 has steps between 1 and 2
            _, out = jax.lax.scan(lambda c, x: (c, apply(lowered, x)), 0, x.astype(dtype).reshape(512, -1, 24))
        else:
            out = apply(lowered, x.astype(dtype))
        return jnp.mean(jnp.square(out.astype(jnp.float32) - 1.0))

    exact = jax.grad(lambda params, x: loss(params, x, jnp.float32))(params, x)
    found = jax.jit(precision.sums_in_f32(jax.grad(loss)))(params, x)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True):
        assert one.dtype == jnp.float32
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other) + 1e-4


def test_what_the_steps_of_a_scan_add_up_is_carried_in_f32():
    def loss(bias, x):
        lowered = bias.astype(jnp.bfloat16)
        _, out = jax.lax.scan(lambda carry, x: (carry, x + lowered), 0, x)
        total, _ = jax.lax.scan(lambda total, x: (total + x, None), jnp.zeros(3, jnp.bfloat16), out)
        return jnp.sum(out.astype(jnp.float32)), total.astype(jnp.float32)

    x = jnp.ones((N, 3), jnp.bfloat16)
    gradient, total = precision.sums_in_f32(jax.grad(loss, has_aux=True))(jnp.zeros(3), x)
    assert gradient.dtype == jnp.float32
    np.testing.assert_array_equal([gradient, total], np.full((2, 3), N))
    np.testing.assert_array_equal(jax.grad(lambda b, x: loss(b, x)[0])(jnp.zeros(3), x), np.full(3, 256))


def test_programs_without_bf16_are_left_alone():
    function = jax.value_and_grad(lambda x: jnp.sum(jnp.tanh(x)))
    x = np.ones(5, np.float32)
    texts = [str(jax.make_jaxpr(one)(x)) for one in (function, precision.sums_in_f32(function))]
    assert texts[0] == texts[1]
