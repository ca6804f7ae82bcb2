"""Residual quantisation against a loop, and what an RQ-VAE's loss moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.quantiser import ResidualQuantiser, RqVae, nearest, residual_codes, sum_of_codes, usage

pytestmark = pytest.mark.quickly_compiled


def by_loop(vector: np.ndarray, codebooks: np.ndarray) -> list[int]:
    codes, left = [], vector.astype(np.float64)
    for codebook in codebooks:
        codes.append(int(np.argmin([np.sum((left - row) ** 2) for row in codebook])))
        left = left - codebook[codes[-1]]
    return codes


def test_codes_are_those_of_a_loop_and_what_they_stand_for_is_the_sum_of_their_vectors():
    random = np.random.default_rng(0)
    vectors, codebooks = random.standard_normal((40, 5)), random.standard_normal((3, 7, 5))
    codes = np.asarray(residual_codes(jnp.asarray(vectors), jnp.asarray(codebooks)))
    expected = np.array([by_loop(vector, codebooks) for vector in vectors])
    np.testing.assert_array_equal(codes, expected)
    summed = np.stack([sum(codebooks[level, code] for level, code in enumerate(row)) for row in expected])
    np.testing.assert_allclose(sum_of_codes(codes, jnp.asarray(codebooks)), summed, rtol=1e-5, atol=1e-6)


def test_of_codes_equally_near_it_is_the_first():
    codebook = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert nearest(jnp.array([[1.0, 0.0], [0.0, 2.0]]), codebook).tolist() == [0, 2]


def test_the_loss_of_an_rq_vae_moves_encoder_decoder_and_chosen_codes_alone():
    model = RqVae(inputs=6, hidden=(8,), width=4, levels=2, size=5)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((9, 6)), jnp.float32)
    params = model.init(jax.random.key(0), x)["params"]
    slope = jax.grad(lambda params: model.apply({"params": params}, x)[0])(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["encoder"]["Dense_1"]["kernel"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slope["decoder"]["Dense_1"]["kernel"]))
    latent = model.apply({"params": params}, x, method="encode")
    chosen = np.asarray(residual_codes(latent, params["codebooks"]))
    for level in range(2):
        moved = np.abs(slope["codebooks"][level]).max(axis=1) > 0
        np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(chosen[:, level]))


def quantised(params, x, counts=None):
    counts = jnp.ones(len(x), bool) if counts is None else counts
    return ResidualQuantiser(3, 5).apply({"params": params}, x, counts)


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(2)
    x = jnp.asarray(random.standard_normal((30, 4)), jnp.float32)
    books = jnp.asarray(random.standard_normal((3, 5, 4)), jnp.float32)
    return x, {"codebooks": books, "share": jnp.full((3, 5), 0.2)}


def test_codes_that_train_are_those_of_a_loop_and_give_the_sum_of_their_vectors(vectors):
    x, params = vectors
    found = quantised(params, x)
    np.testing.assert_array_equal(found.codes, residual_codes(x, params["codebooks"]))
    summed = sum_of_codes(found.codes, params["codebooks"])
    np.testing.assert_allclose(found.vectors, summed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.errors, ((x - summed) ** 2).sum(axis=1), rtol=1e-4)


def test_the_gradient_of_the_task_goes_straight_through_and_that_of_errors_to_the_codes(vectors):
    x, params = vectors
    pull = jnp.asarray(np.random.default_rng(3).standard_normal(x.shape), jnp.float32)
    slope = jax.grad(lambda p, x: jnp.sum(pull * quantised(p, x).vectors), argnums=(0, 1))(params, x)
    np.testing.assert_allclose(slope[1], pull, rtol=1e-6)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slope[0]))  # running means move them
    slope = jax.grad(lambda x: quantised(params, x).errors.sum())(x)
    left = x - sum_of_codes(quantised(params, x).codes, params["codebooks"])
    np.testing.assert_allclose(slope, 2 * left, rtol=1e-4, atol=1e-5)


def test_codebooks_follow_their_vectors_as_a_loop_has_it(vectors):
    x, params = vectors
    counts = np.arange(30) % 4 != 0
    found, left = quantised(params, x, jnp.asarray(counts)), np.asarray(x)
    for level in range(3):
        book, codes = np.asarray(params["codebooks"][level]), np.asarray(found.codes[:, level])
        for k in range(5):
            own = counts & (codes == k)
            # sums and numbers of vectors each decay; their quotient is the code's vector
            now = own.sum() / counts.sum()
            share = 0.9 * 0.2 + 0.1 * now
            mean = left[own].mean(axis=0) if own.any() else 0.0
            np.testing.assert_allclose(found.moved["share"][level, k], share, rtol=1e-5)
            expected = (0.9 * 0.2 * book[k] + 0.1 * now * mean) / share
            np.testing.assert_allclose(found.moved["codebooks"][level, k], expected, rtol=1e-4, atol=1e-5)
        left = left - book[codes]


def test_a_code_that_next_to_no_item_has_begins_anew_where_its_level_serves_worst(vectors):
    x, params = vectors
    counts = jnp.arange(30) != 4
    rare = params | {"codebooks": params["codebooks"].at[0, 2].set(100.0), "share": params["share"].at[0, 2].set(0.02)}
    found = quantised(rare, x, counts)
    own = rare["codebooks"][0][found.codes[:, 0]]
    worst = int(np.argmax(np.where(counts, ((x - own) ** 2).sum(axis=1), -1)))
    np.testing.assert_array_equal(found.moved["codebooks"][0, 2], x[worst])
    np.testing.assert_allclose(found.moved["share"][0, 2], 0.2)
    others = np.array([0, 1, 3, 4])
    assert (np.asarray(found.moved["share"][0, others]) < 0.35).all()


def test_codebooks_begin_as_residuals_of_the_first_batch_by_their_seed():
    x = jnp.asarray(np.random.default_rng(5).standard_normal((40, 4)), jnp.float32)
    counts = jnp.arange(40) < 20
    module = ResidualQuantiser(2, 8)
    first, again, other = (module.init(jax.random.key(k), x, counts)["params"]["codebooks"] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for row in np.asarray(first[0]):
        np.testing.assert_allclose(np.abs(np.asarray(x[:20]) - row).max(axis=1).min(), 0, atol=1e-6)
    left = np.asarray(x) - np.asarray(first[0])[np.asarray(nearest(x, first[0]))]
    for row in np.asarray(first[1]):
        np.testing.assert_allclose(np.abs(left - row).max(axis=1).min(), 0, atol=1e-6)


def test_usage_by_hand():
    codes, counts = jnp.array([[0, 1], [0, 2], [1, 1], [3, 3]]), jnp.array([True, True, True, False])
    found = usage(codes, counts, 4)
    np.testing.assert_allclose(found["code_usage"], 0.5)
    entropy = 2 / 3 * np.log(3 / 2) + 1 / 3 * np.log(3)
    np.testing.assert_allclose(found["code_perplexity"], np.exp(entropy), rtol=1e-6)
