"""Each way of convolving against `jax.lax.conv_general_dilated`, with its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.encoders.convolution import Window, convolve

CASES = {
    "depthwise": ((2, 7, 6), 3, Window(1, ((1, 1), (1, 1)), True)),
    "depthwise, stride, one zero": ((2, 8, 6), 3, Window(2, ((0, 1), (0, 1)), True)),
    "depthwise, stride, places never seen": ((1, 8, 7), 3, Window(2, ((0, 0), (1, 1)), True)),
    "depthwise of five": ((3, 5, 9), 5, Window(2, ((2, 2), (1, 2)), True)),
    "one row": ((2, 1, 9), 5, Window(1, ((2, 2), (2, 2)), True)),
    "points": ((2, 5, 4), 1, Window(1, ((0, 0), (0, 0)), False)),
    "points, stride": ((2, 5, 4), 1, Window(2, ((0, 0), (0, 0)), False)),
    "whole": ((2, 6, 5), 3, Window(2, ((0, 1), (1, 1)), False)),
}


def arrays(case: str, dtype) -> tuple[jax.Array, jax.Array]:
    shape, size, window = CASES[case]
    random = np.random.default_rng(0)
    kernel = (size, size, 1, 4) if window.depthwise else (size, size, 4, 6)
    return tuple(jnp.asarray(random.standard_normal(one), dtype) for one in ((*shape, 4), kernel))


def plain(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    groups = x.shape[-1] if window.depthwise else 1
    return jax.lax.conv_general_dilated(
        x, kernel, (window.stride, window.stride), window.padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_and_its_gradients_are_the_plain_ones(case):
    x, kernel = arrays(case, jnp.float32)
    window = CASES[case][2]
    expected, pull = jax.vjp(lambda x, kernel: plain(x, kernel, window), x, kernel)
    found, pull_found = jax.vjp(lambda x, kernel: convolve(x, kernel, window), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    gradient = jnp.asarray(np.random.default_rng(1).standard_normal(expected.shape), jnp.float32)
    for one, other in zip(jax.jit(pull_found)(gradient), pull(gradient), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["depthwise of five", "points"])
def test_sums_of_bfloat16_are_wide(case):
    """Rounded once, at the end: half of the last of 8 bits."""
    x, kernel = arrays(case, jnp.bfloat16)
    window = CASES[case][2]
    exact = plain(x.astype(jnp.float32), kernel.astype(jnp.float32), window)
    found = convolve(x, kernel, window)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)
