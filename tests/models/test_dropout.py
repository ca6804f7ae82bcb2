import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.dropout import Dropout, random_words


def drop(x, rate, seed=0):
    return Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_share_and_the_size_of_what_is_kept(rate):
    x = jnp.full((300, 70, 10), 3.0)
    y = np.asarray(drop(x, rate))
    assert set(np.unique(y)) == {np.float32(0), np.float32(3.0) / np.float32(1 - rate)}
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs((y == 0).mean() - rate) < 4 * deviation
    for axis in range(3):  # no slice is special
        share = (y == 0).mean(axis=tuple({0, 1, 2} - {axis}))
        assert np.abs(share - rate).max() < 5 * deviation * np.sqrt(x.shape[axis])


def test_no_dropout_outside_training_or_at_rate_zero():
    x = jnp.arange(6.0)
    assert Dropout(0.5).apply({}, x, train=False) is x
    assert drop(x, 0.0) is x
    assert not drop(x, 1.0).any()


def test_the_gradient_passes_where_the_value_does():
    x = jnp.linspace(1, 2, 1000)
    gradient = jax.grad(lambda x: drop(x, 0.3).sum())(x)
    np.testing.assert_allclose(gradient, drop(x, 0.3) / x, rtol=1e-6)


def test_words_are_uniform_in_every_bit_and_unrelated_between_neighbours_and_keys():
    count = 2**18
    words = [np.asarray(random_words(jax.random.key(seed), (count,))) for seed in range(4)]
    bits = np.stack([np.unpackbits(x.view(np.uint8).reshape(count, 4), axis=1) for x in words]).astype(np.float32)
    bits -= 0.5  # [seeds, count, 32]
    bound = 5 * 0.25 / np.sqrt(count)  # five standard deviations of a mean of products
    assert np.abs(bits.mean(axis=1)).max() < 2 * bound
    for lag in (1, 2, 64, 4096):  # any bit of a word with any of the word `lag` further on
        assert np.abs(bits[0, lag:].T @ bits[0, :-lag] / (count - lag)).max() < 1.2 * bound
    for a, b in itertools.combinations(bits, 2):
        assert np.abs(a.T @ b / count).max() < 1.2 * bound
    assert np.unique(words[0]).size == count  # a bijection of the index


def test_a_shape_is_only_a_way_to_count():
    key = jax.random.key(7)
    assert np.array_equal(random_words(key, (8, 6, 5)).reshape(-1), random_words(key, (240,)))
