"""LoRADense against eq. 9 and its derivatives by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.lora import LoRA, LoRADense, merge

B, E, D, R = 4, 5, 3, 2


class TwoLayers(nn.Module):
    lora: LoRA

    @nn.compact
    def __call__(self, x):
        return LoRADense(D, self.lora, name="top")(LoRADense(E, self.lora, name="bottom")(x))


def make(stop_gradient: str):
    """(module, random params, x [B, E])."""
    module = TwoLayers(LoRA(R, stop_gradient))
    x = np.random.default_rng(0).normal(size=(B, E)).astype(np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    random = np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes), x


def test_without_rank_it_is_a_dense_layer():
    x = np.random.default_rng(0).normal(size=(2, B, E)).astype(np.float32)
    ours, theirs = LoRADense(D), nn.Dense(D)
    variables = theirs.init(jax.random.key(3), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(3), x), variables)
    np.testing.assert_allclose(ours.apply(variables, x), theirs.apply(variables, x), atol=1e-6)


@pytest.mark.parametrize("stop_gradient", ["output", "weights"])
def test_a_fresh_adapter_changes_not_a_bit(stop_gradient):
    x = np.random.default_rng(0).normal(size=(B, E)).astype(np.float32)
    plain = TwoLayers(LoRA())
    variables = plain.init(jax.random.key(0), x)
    adapted = TwoLayers(LoRA(R, stop_gradient))
    fresh = adapted.init(jax.random.key(0), x)["params"]
    for layer, leaves in fresh.items():
        leaves |= variables["params"][layer]
    np.testing.assert_array_equal(adapted.apply({"params": fresh}, x), plain.apply(variables, x))


def test_gradients_by_hand():
    """y = W2 h + b2 + B2 A2 h with h = W1 x + b1 + B1 A1 x; loss = sum(T * y)."""
    target = np.random.default_rng(2).normal(size=(B, D)).astype(np.float32)
    for stop_gradient in ("output", "weights"):
        module, p, x = make(stop_gradient)
        gradient = jax.grad(lambda p, m=module, x=x: jnp.sum(target * m.apply({"params": p}, x)))(p)
        bottom, top = p["bottom"], p["top"]
        h = x @ bottom["kernel"] + bottom["bias"] + x @ bottom["lora_a"] @ bottom["lora_b"]
        by_hand = {"top": {"lora_b": (h @ top["lora_a"]).T @ target, "lora_a": h.T @ target @ top["lora_b"].T}}
        back = target @ (top["lora_a"] @ top["lora_b"]).T  # dL/dh through the adapter
        if stop_gradient == "weights":
            back = back + target @ top["kernel"].T  # and through the frozen layer
        by_hand["bottom"] = {"lora_b": (x @ bottom["lora_a"]).T @ back, "lora_a": x.T @ back @ bottom["lora_b"].T}
        for layer in ("bottom", "top"):
            for name, expected in by_hand[layer].items():
                np.testing.assert_allclose(gradient[layer][name], expected, rtol=1e-4, atol=1e-4)
            assert not np.asarray(gradient[layer]["kernel"]).any() and not np.asarray(gradient[layer]["bias"]).any()


def test_merged_weights_give_the_same():
    module, params, x = make("output")
    merged = merge(params)
    assert set(merged["top"]) == {"kernel", "bias"}
    expected = module.apply({"params": params}, x)
    np.testing.assert_allclose(TwoLayers(LoRA()).apply({"params": merged}, x), expected, rtol=1e-5, atol=1e-5)
