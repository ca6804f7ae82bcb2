"""Maxima: values as numpy has them, gradients to one place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core.maxima import largest


def test_the_gradient_goes_to_the_first_place_that_has_the_maximum():
    x = np.array([[1.0, 3.0, 3.0], [-2.0, -1.0, -4.0]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: largest(x, 1).sum())(x)
    assert value == 2.0
    np.testing.assert_array_equal(gradient, [[0, 1, 0], [0, 1, 0]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_values_are_those_of_numpy(axis):
    random = np.random.default_rng(axis)
    x, where = random.normal(size=(4, 5, 6)).astype(np.float32), random.random((4, 5, 1)) < 0.5
    np.testing.assert_array_equal(largest(x, axis), x.max(axis=axis))
    expected = np.where(where, x, -9.0).max(axis=axis)
    np.testing.assert_array_equal(largest(x, axis, where, initial=-9.0), expected)


def test_where_nothing_counts_there_is_no_gradient():
    x, nothing = jnp.ones((2, 3)), jnp.zeros((2, 3), bool)
    value, gradient = jax.value_and_grad(lambda x: largest(x, 1, nothing, initial=-1.0).sum())(x)
    assert value == -2.0 and not gradient.any()
