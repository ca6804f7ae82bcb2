"""Nets that train from scratch: gates against loops, nets with fresh gates against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import trees
from em3_jax.models.encoders import Given
from em3_jax.models.encoders.gates import GRID, ChannelGate, SpatialGate
from em3_jax.models.encoders.scratch import CBAM, CSCNN, HCCM, SCRATCH, SE, Cnn, Sizes, VectorMlp

SIZES = Sizes(widths=(8, 12), depth=2, output=6, reduction=2, category_width=3, mlp=(7, 5, 4))
CATEGORIES = 4
GATES = {"se": SE, "cbam": CBAM, "cscnn": CSCNN, "hccm": HCCM}
B = 3


def pictures(rows: int = 10, columns: int = 9, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((B, rows, columns, channels)).astype(np.float32)


def drawn(tree, seed: int = 1):
    """Random parameters of the same shapes, variances above zero: fresh gates say nothing."""
    random = np.random.default_rng(seed)

    def draw(path: str, leaf):
        found = random.normal(0, 0.5, leaf.shape).astype(np.float32)
        return np.abs(found) + 0.1 if path.endswith("var") else found

    return trees.map_named(draw, tree)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("optimized", [True, False])
def test_gradients_are_finite_however_little_the_compiler_does(optimized):
    """With `jnp.max` they were not: maximum and map were computed apart, and nowhere equal."""
    module, given = Cnn(SIZES, CBAM), Given(trains=lambda path: True)
    params = module.init(jax.random.key(0), pictures(16, 16))["params"]

    def loss(params):
        found, _ = module.apply({"params": params}, pictures(16, 16), given, mutable=["statistics"])
        return jnp.sum(found.mean * jnp.arange(SIZES.output))

    jax.config.update("jax_disable_most_optimizations", not optimized)
    try:
        gradient = jax.jit(jax.grad(loss))(params)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("category", [False, True])
@pytest.mark.parametrize("with_max", [False, True])
def test_a_channel_gate_is_its_loop(with_max, category):
    x, of = pictures(channels=6), np.random.default_rng(2).standard_normal((B, 3)).astype(np.float32)
    given = (x, of) if category else (x,)
    module = ChannelGate(reduction=4, with_max=with_max, dtype=jnp.float32)
    params = drawn(module.init(jax.random.key(0), *given)["params"])
    assert params["hidden"]["kernel"].shape == (6 + 3 * category, 1)  # 6 // 4
    found = module.apply({"params": params}, *given)
    assert found.shape == (B, 1, 1, 6)
    for b in range(B):
        score = 0.0
        for pool in (np.mean, np.max)[: 1 + with_max]:
            pooled = [pool(x[b, :, :, c]) for c in range(6)] + (list(of[b]) if category else [])
            kernel, bias = params["hidden"]["kernel"], params["hidden"]["bias"]
            hidden = np.maximum(np.array(pooled) @ kernel + bias, 0)
            score = score + hidden @ params["out"]["kernel"] + params["out"]["bias"]
        np.testing.assert_allclose(found[b, 0, 0], 2 * sigmoid(score), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("category", [False, True])
def test_a_spatial_gate_is_its_loop(category):
    """On a map as large as the category's, which is then not resized."""
    x, of = pictures(GRID, GRID, 5), np.random.default_rng(2).standard_normal((B, 3)).astype(np.float32)
    given = (x, of) if category else (x,)
    module = SpatialGate(dtype=jnp.float32)
    params = drawn(module.init(jax.random.key(0), *given)["params"])
    found = module.apply({"params": params}, *given)
    kernel, bias = params["conv"]["kernel"], params["conv"]["bias"]
    for b in range(B):
        maps = [x[b].mean(axis=-1), x[b].max(axis=-1)]
        if category:
            prior = of[b] @ params["prior"]["kernel"] + params["prior"]["bias"]
            maps.append(prior.reshape(GRID, GRID))
        for row in range(GRID):
            for column in range(GRID):
                score = bias[0]
                for i in range(7):
                    for j in range(7):
                        y, z = row + i - 3, column + j - 3
                        if 0 <= y < GRID and 0 <= z < GRID:
                            score = score + sum(one[y, z] * kernel[i, j, k, 0] for k, one in enumerate(maps))
                expected = 2 * sigmoid(score)
                np.testing.assert_allclose(found[b, row, column, 0], expected, rtol=1e-4, atol=1e-6)


def test_a_categorys_map_is_spread_over_maps_of_other_sizes():
    """Parameters know no image size; a map that is the same everywhere stays so."""
    of = np.ones((B, 3), np.float32)
    module = SpatialGate(dtype=jnp.float32)
    params = module.init(jax.random.key(0), pictures(4, 5), of)["params"]
    shapes = module.init(jax.random.key(0), pictures(20, 30), of)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    params["conv"]["kernel"] = params["conv"]["kernel"].at[3, 3, 2, 0].set(1.0)  # the prior where it is
    params["prior"] = {"kernel": np.zeros((3, 49), np.float32), "bias": np.full(49, 0.7, np.float32)}
    for size in ((4, 5), (20, 30)):
        gate = module.apply({"params": params}, pictures(*size), of)
        np.testing.assert_allclose(gate, 2 * sigmoid(0.7), rtol=1e-5)


def made(gates, key: int = 0):
    """(module, its fresh parameters, what it is given)."""
    module, given = Cnn(SIZES, gates, CATEGORIES), Given(category=jnp.arange(B) % CATEGORIES)
    return module, module.init(jax.random.key(key), pictures(), given)["params"], given


@pytest.mark.parametrize("name", GATES)
def test_fresh_gates_are_one_and_leave_the_plain_net(name):
    """The same draw for what both have, and bit for bit the same vectors."""
    plain, expected, given = made(None)
    module, params, _ = made(GATES[name])
    common = {key: leaf for key, leaf in params.items() if key in expected}
    assert set(common) == set(expected) and set(params) > set(expected)
    jax.tree.map(np.testing.assert_array_equal, common, expected)
    found = module.apply({"params": params}, pictures(), given).mean
    np.testing.assert_array_equal(found, plain.apply({"params": expected}, pictures()).mean)
    assert np.ptp(found, axis=0).min() > 0


@pytest.mark.parametrize("name", GATES)
def test_gates_read_the_category_where_they_should(name):
    module, params, _ = made(GATES[name])
    params = drawn(params)
    variables = {"params": params}
    apply = jax.jit(lambda of: module.apply(variables, pictures(), Given(category=of)).mean)
    one, other = (np.asarray(apply(jnp.full(B, category))) for category in (1, 2))
    assert np.isfinite(one).all()
    assert np.abs(one - other).max() > 1e-3 if GATES[name].category else (one == other).all()
    mixed = apply(jnp.array([1, 2, 1]))  # each picture by its own
    np.testing.assert_allclose(mixed, np.stack([one[0], other[1], one[2]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SCRATCH))
def test_every_parameter_of_every_net_gets_a_gradient(name):
    net = SCRATCH[name]
    module = net.build(SIZES, CATEGORIES)
    given = Given(category=jnp.arange(B) % CATEGORIES, trains=lambda path: True)
    x = {"pictures": pictures(32, 32), "vectors": pictures()[:, 0], "maps": pictures(4, 4)}[net.reads]
    params = jax.jit(module.init)(jax.random.key(0), x, Given(category=given.category))["params"]
    if name == "vgg16":  # 100 million parameters; its loops are those of torch, see test_torchvision
        assert params["fc6"]["kernel"].shape == (25088, 4096)
        return
    noise = drawn(params, 3)  # last layers of gates start at zero, and stop the gradient there
    params = jax.tree.map(lambda leaf, more: leaf + 0.1 * more, params, noise)

    def loss(params):
        found, _ = module.apply({"params": params}, x, given, mutable=["statistics"])
        assert found.tokens.shape == (B, found.mask.shape[1], found.mean.shape[-1])
        return jnp.sum(jnp.square(found.tokens - 1) * jnp.arange(1, B + 1)[:, None, None])

    gradient = trees.named_leaves(jax.jit(jax.grad(loss))(params))
    still = {path for path, leaf in gradient.items() if not np.any(leaf)}
    assert {path.split("/")[-1] for path in still} <= {"mean", "var"}, still


def test_deepctr_has_17_convolutions_in_four_groups():
    net = SCRATCH["deepctr"].build(Sizes(output=128), 0)
    x = jnp.zeros((1, 112, 112, 3))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    kernels = [shapes[f"conv{k + 1}"]["conv"]["kernel"].shape for k in range(17)]
    assert kernels[0] == (5, 5, 3, 32) and len(shapes) == 18
    assert [shape[-1] for shape in kernels[1:]] == [*4 * [32], *4 * [64], *4 * [128], *4 * [256]]
    assert all(shape[:2] == (3, 3) for shape in kernels[1:]) and shapes["fc"]["kernel"].shape == (256, 128)
    steps = str(jax.make_jaxpr(net.apply)({"params": shapes}, x))
    assert steps.count("window_strides=(2, 2)") == 5 and "f32[1,4,4,256]" in steps


def test_dicms_mlp_is_its_loop():
    module, x = VectorMlp((7, 5, 4)), pictures()[:, 0]
    params = drawn(module.init(jax.random.key(0), x)["params"])
    found = module.apply({"params": params}, x)
    h = x
    for k in range(3):
        h = h @ params[f"fc{k + 1}"]["kernel"] + params[f"fc{k + 1}"]["bias"]
        if k < 2:
            h = np.where(h >= 0, h, params[f"prelu{k + 1}"]["negative_slope"] * h)
    np.testing.assert_allclose(found.tokens, h, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean, h.mean(axis=1), rtol=1e-4, atol=1e-4)
