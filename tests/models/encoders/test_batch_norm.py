"""Batch normalisation that trains, against torch's BatchNorm2d in train mode: values, gradients, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.encoders import STATISTICS, Given
from em3_jax.models.encoders.cnn import MOMENTUM, ConvNorm, Norm

EPSILON, SHAPE = 1e-3, (5, 3, 4, 6)  # B, Y, X, C


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * 2 + 1


def params() -> dict[str, np.ndarray]:
    names = ("scale", "bias", "mean", "var")
    return {name: np.abs(drawn(SHAPE[-1], seed=k)) for k, name in enumerate(names, 1)}


def always(path: str) -> bool:
    assert path == "scale"
    return True


def run(x, params, **given):
    """(result, running statistics)."""
    given = Given(**({"trains": always} | given))
    result, changed = Norm(EPSILON, jnp.float32).apply({"params": params}, x, given, mutable=[STATISTICS])
    return result, changed.get(STATISTICS, {})


def test_values_gradients_and_running_statistics_are_those_of_torch():
    """The running variance but for torch's n / (n - 1): torch keeps the unbiased variance, here it is the biased one."""
    torch = pytest.importorskip("torch")
    own, x, weight = params(), drawn(*SHAPE), drawn(*SHAPE, seed=9)
    norm = torch.nn.BatchNorm2d(SHAPE[-1], eps=EPSILON, momentum=1 - MOMENTUM).train()
    with torch.no_grad():
        for leaf, name in ((norm.weight, "scale"), (norm.bias, "bias"), (norm.running_mean, "mean")):
            leaf.copy_(torch.from_numpy(own[name]))
        norm.running_var.copy_(torch.from_numpy(own["var"]))
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = norm(theirs)
    (expected * torch.from_numpy(weight.transpose(0, 3, 1, 2).copy())).sum().backward()

    def loss(x, params):
        result, statistics = run(x, params)
        return jnp.sum(result * weight), (result, statistics)

    gradients, (result, statistics) = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, own)
    back = lambda array: array.detach().numpy().transpose(0, 2, 3, 1)  # noqa: E731
    np.testing.assert_allclose(result, back(expected), rtol=0, atol=2e-5)
    np.testing.assert_allclose(gradients[0], back(theirs.grad), rtol=0, atol=2e-5)
    np.testing.assert_allclose(gradients[1]["scale"], norm.weight.grad.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[1]["bias"], norm.bias.grad.numpy(), rtol=1e-4, atol=1e-4)
    assert not np.any(gradients[1]["mean"]) and not np.any(gradients[1]["var"])
    np.testing.assert_allclose(statistics["mean"], norm.running_mean.numpy(), rtol=1e-5)
    count = np.prod(SHAPE[:3])
    new = (norm.running_var.numpy() - MOMENTUM * own["var"]) * (count - 1) / count
    np.testing.assert_allclose(statistics["var"], MOMENTUM * own["var"] + new, rtol=1e-5)


def test_rows_that_only_fill_are_in_no_statistics():
    own, x = params(), drawn(*SHAPE)
    whole, statistics = run(x, own)
    filled = np.concatenate([x[:2], drawn(3, *SHAPE[1:], seed=7) * 50, x[2:]])
    mask = np.array([True] * 2 + [False] * 3 + [True] * 3)
    result, of_filled = run(filled, own, mask=mask)
    np.testing.assert_allclose(result[mask], whole, rtol=1e-5, atol=1e-5)
    for name, leaf in statistics.items():
        np.testing.assert_allclose(of_filled[name], leaf, rtol=1e-5)
    assert np.abs(run(filled, own)[0][mask] - whole).max() > 0.1  # which they would be in without a mask


def test_a_batch_without_images_leaves_the_running_statistics():
    own = params()
    result, statistics = run(drawn(*SHAPE), own, mask=np.zeros(SHAPE[0], bool))
    assert np.isfinite(result).all()
    for name, leaf in statistics.items():
        np.testing.assert_array_equal(leaf, own[name])


def test_a_norm_that_does_not_train_reads_its_running_statistics():
    """And which one trains is asked by the path of its scale."""
    module = ConvNorm(4, 3, 1, 1, EPSILON, None, jnp.float32)
    x = drawn(*SHAPE)
    variables = module.init(jax.random.key(0), x)
    asked: list[str] = []

    def never(path: str) -> bool:
        asked.append(path)
        return False

    expected = module.apply(variables, x)
    result, changed = module.apply(variables, x, Given(trains=never), mutable=[STATISTICS])
    np.testing.assert_array_equal(result, expected)
    assert not changed and asked == ["norm/scale"]
    trained, changed = module.apply(variables, x, Given(trains=lambda path: True), mutable=[STATISTICS])
    assert np.abs(trained - expected).max() > 0.1 and set(changed[STATISTICS]["norm"]) == {"mean", "var"}
