"""Attention of queries that all items share, which forms no keys, against the same queries given once an item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.fusion.layers import Attention
from em3_jax.models.lora import LoRA

S, M, N, D, H = 7, 2, 5, 12, 3

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture(scope="module")
def drawn() -> dict[str, jax.Array]:
    """Queries, two parts of a context of which one is shared, and what is valid: of one item nothing."""
    rng = np.random.default_rng(0)
    shapes = {"queries": (1, M, D), "shared": (1, M, D), "own": (S, N, D), "slope": (S, M, D)}
    found = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    mask = rng.random((S, M + N)) < 0.6
    mask[0] = False
    return found | {"mask": jnp.asarray(mask)}


def attended(drawn: dict[str, jax.Array], lora: LoRA, copies: int) -> tuple:
    """(result, weights, gradients) with the queries given `copies` times."""
    module = Attention(H, lora)
    params = module.init(jax.random.key(0), drawn["queries"], drawn["own"], drawn["mask"][:, M:])
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    def run(params, queries, shared, own):
        queries = jnp.broadcast_to(queries, (copies, M, D))
        out, kept = module.apply(params, queries, (shared, own), drawn["mask"], mutable="intermediates")
        return jnp.sum(out * drawn["slope"]), (out, kept["intermediates"]["weights"][0])

    inputs = (params, drawn["queries"], drawn["shared"], drawn["own"])
    (_, found), slopes = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2, 3), has_aux=True))(*inputs)
    return *found, slopes


@pytest.mark.parametrize("lora", [LoRA(), LoRA(2, "output"), LoRA(2, "weights")], ids=str)
def test_shared_queries_read_the_same_and_have_the_same_gradients(drawn, lora):
    out, weights, slopes = attended(drawn, lora, copies=1)
    expected, expected_weights, expected_slopes = attended(drawn, lora, copies=S)
    np.testing.assert_allclose(out, expected, atol=2e-6)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
    assert not np.asarray(weights[0]).any(), "an item of which nothing is valid reads nothing"
    # A softmax does not see what all keys have in common, so the bias of keys has a slope of rounding errors.
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6), slopes, expected_slopes
    )


def test_the_program_forms_no_keys(drawn):
    """Of the tokens there is one product, D + H M wide."""
    module = Attention(H, LoRA())
    params = module.init(jax.random.key(0), drawn["queries"], drawn["own"], drawn["mask"][:, M:])
    text = str(jax.make_jaxpr(module.apply)(params, drawn["queries"], drawn["own"], drawn["mask"][:, M:]))
    assert f"f32[{S * N},{D + H * M}]" in text
    assert f"f32[{S * N},{D}] = dot_general" not in text
