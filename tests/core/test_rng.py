"""rng: permutations are permutations and look random; streams, keys and hashes are pure and keep apart."""

import itertools
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em3_jax.core import draws, rng


def _chi_square(counts: np.ndarray) -> float:
    """Returns by how many standard deviations the chi-square of `counts` against equal counts is off its mean."""
    counts = np.asarray(counts, np.float64).ravel()
    expected, freedom = counts.mean(), counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_stream_is_a_function_of_name_and_step():
    root = jax.random.key(0)
    keys = [rng.stream(root, name, step) for name in ("dropout", "negatives") for step in (0, 1, 2**31 - 1)]
    draws = {float(jax.random.uniform(key)) for key in (*keys, root)}
    assert len(draws) == 7
    assert rng.stream(root, "dropout", 1) == keys[1]
    assert jax.jit(rng.stream, static_argnums=1)(root, "dropout", 1) == keys[1]


def test_keys_do_not_depend_on_the_process():
    program = (
        "from em3_jax.core import draws, rng; print(rng.numpy_key(3, 'shuffle', 1), rng.permute([5], 10**6, 7)[0])"
    )
    fresh = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert fresh == [str(rng.numpy_key(3, "shuffle", 1)), str(rng.permute([5], 10**6, 7)[0])]


def test_numpy_key_keeps_different_tuples_apart():
    parts = [(), (0,), (1,), ("1",), (1, 0), (0, 1), ("a", "b"), ("ab",), ("a", ""), (-1,), (2**70,), ("1, 2",), (1, 2)]
    keys = {rng.numpy_key(seed, *part) for seed in (0, 1, -1) for part in parts}
    assert len(keys) == 3 * len(parts)
    assert rng.numpy_key(0, np.int64(5)) == rng.numpy_key(np.int32(0), 5)
    assert rng.numpy_key(0, np.str_("a")) == rng.numpy_key(0, "a")
    assert rng.numpy_key(0).dtype == np.uint64
    with pytest.raises(TypeError):
        rng.numpy_key(0, 1.5)


@settings(max_examples=60, deadline=None)
@given(size=st.one_of(st.integers(1, 40), st.integers(1, 30_000)), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    image = rng.permute(np.arange(size), size, key)
    assert image.dtype == np.int64
    np.testing.assert_array_equal(np.sort(image), np.arange(size))


# Both methods, and the sizes where a rectangle is hardest to fit: just above and below a square, primes.
SIZES = [1, 2, 3, 10, 4095, 4096, 4097, 65**2 - 1, 65**2, 65**2 + 1, 99_991, 2**17, 10**6 + 3]


@pytest.mark.parametrize("size", SIZES)
def test_permute_is_pointwise(size):
    whole = rng.permute(np.arange(size), size, 1)
    np.testing.assert_array_equal(np.sort(whole), np.arange(size))
    some = np.random.default_rng(0).integers(0, size, (3, 5))  # any shape, any order, repeats
    np.testing.assert_array_equal(rng.permute(some, size, 1), whole[some])
    assert rng.permute(size - 1, size, 1) == whole[-1]
    assert rng.permute(np.zeros((0,), int), size, 1).shape == (0,)


@pytest.mark.parametrize("size", [2**31 + 11, 2**40 - 1, 2**40])
def test_permute_of_a_huge_range_stays_inside_and_distinct(size):
    index = np.concatenate([np.arange(50_000), np.arange(size - 50_000, size)])
    image = rng.permute(index, size, 5)
    assert image.min() >= 0 and image.max() < size
    assert np.unique(image).size == index.size
    counts, _ = np.histogram(image, bins=100, range=(0, size))
    assert abs(_chi_square(counts)) < 4.5


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_sizes_reach_every_order_evenly(size):
    orders = {order: 0 for order in itertools.permutations(range(size))}
    for epoch in range(4000):
        orders[tuple(rng.permute(np.arange(size), size, rng.numpy_key(0, epoch)).tolist())] += 1
    assert abs(_chi_square(list(orders.values()))) < 4.5


@pytest.mark.parametrize("size", [10, 4097, 10**6 + 3, 2**40])
def test_different_keys_give_unrelated_orders(size):
    index = np.arange(min(size, 20_000))
    images = np.stack([rng.permute(index, size, rng.numpy_key(0, "epoch", epoch)) for epoch in range(4)])
    assert len({tuple(image) for image in images}) == 4
    if size > 10:
        off_diagonal = np.corrcoef(images)[np.triu_indices(4, 1)]
        np.testing.assert_allclose(off_diagonal, 0, atol=4.5 / math.sqrt(index.size))


@pytest.mark.parametrize("size", [4097, 99_991, 2**20, 2 * 10**9])
def test_images_of_neighbours_are_uncorrelated(size):
    index = np.arange(min(size, 100_000))
    image = rng.permute(index, size, 11).astype(np.float64)
    side = math.isqrt(size)  # the step that changes one half only
    for lag in (0, 1, 2, 7, 64, side, side + 1):
        first, second = (index[: -lag or None], image[: -lag or None]), (index[lag:], image[lag:])
        if first[0].size < 1000:
            continue
        bound = 4.5 / math.sqrt(first[0].size)
        assert abs(np.corrcoef(first[0], second[1])[0, 1]) < bound
        if lag:
            assert abs(np.corrcoef(first[1], second[1])[0, 1]) < bound


@pytest.mark.parametrize("size", [4097, 5003, 2**40])
def test_pairs_of_neighbours_are_uniform_over_keys(size):
    """Where (i, i + 1) go together, in a 6 x 6 grid over many keys: few Feistel rounds show up here."""
    keys = 3000
    pairs = np.stack([rng.permute([1000, 1001], size, rng.numpy_key(1, k)) for k in range(keys)])
    grid, _, _ = np.histogram2d(*pairs.T, bins=6, range=[[0, size], [0, size]])
    assert abs(_chi_square(grid)) < 4.5


def test_permute_rejects_what_is_out_of_range():
    for index, size in (([10], 10), ([-1], 10), ([0], 0), ([0], 2**40 + 1)):
        with pytest.raises(ValueError, match="must be in"):
            rng.permute(index, size, 0)
    with pytest.raises(TypeError, match="integers"):
        rng.permute([0.5], 10**6, 0)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_uniform_hash_is_uniform(dtype):
    numbers = rng.uniform_hash(7, np.arange(200_000), dtype=dtype)
    assert numbers.dtype == dtype
    assert numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=200, range=(0, 1))
    assert abs(_chi_square(counts)) < 4.5
    for lag in (1, 2, 256):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 4.5 / math.sqrt(numbers.size)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_uniform_hash_never_rounds_up_to_one(dtype, monkeypatch):
    monkeypatch.setattr(draws, "_mix", lambda x: np.full(np.shape(x), 2**64 - 1, np.uint64))  # the largest hash
    assert rng.uniform_hash(0, [1], dtype=dtype)[0] == 1 - np.finfo(dtype).epsneg


def test_uniform_hash_is_elementwise_and_broadcasts():
    users, items = np.arange(7)[:, None], np.arange(5, dtype=np.int32)[None, :]
    grid = rng.uniform_hash(3, users, items)
    assert grid.shape == (7, 5)
    assert np.unique(grid).size == 35
    assert grid[4, 2] == rng.uniform_hash(3, 4, 2)
    np.testing.assert_array_equal(grid[:, 2], rng.uniform_hash(3, np.arange(7), np.full(7, 2)))


def test_uniform_hash_tells_key_order_and_number_of_ids_apart():
    numbers = [
        rng.uniform_hash(key, *ids)
        for key in (0, 1, 2**64 - 1)
        for ids in ((), (0,), (0, 0), (1, 2), (2, 1), (-1,), (2**62,))
    ]
    assert len({float(number) for number in numbers}) == len(numbers)
    assert 0.0 not in numbers  # not even for key 0 and id 0


def test_uniform_hash_of_users_and_items_is_independent_along_both():
    grid = rng.uniform_hash(9, np.arange(300)[:, None], np.arange(300)[None, :])
    bound = 4.5 / math.sqrt(grid.size)
    assert abs(np.corrcoef(grid[1:].ravel(), grid[:-1].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(grid[:, 1:].ravel(), grid[:, :-1].ravel())[0, 1]) < bound
    assert abs(np.corrcoef(grid.ravel(), grid.T.ravel())[0, 1]) < 1.5 * bound  # the diagonal is shared


def test_uniform_hash_rejects_floats():
    with pytest.raises(TypeError, match="integers"):
        rng.uniform_hash(0, [0.5])
    with pytest.raises(ValueError, match="dtype"):
        rng.uniform_hash(0, [1], dtype=np.float16)
