"""Residual quantisation against a loop, and what an RQ-VAE's loss moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.quantiser import RqVae, nearest, residual_codes, sum_of_codes

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
