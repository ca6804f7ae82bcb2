"""gather: a row's gradient is the f32 sum over all that name it, in every task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, lemur, retrieval
from em3_jax.core import gather
from em3_jax.models.encoders.bert import Bert
from em3_jax.models.encoders.swin import Swin
from em3_jax.plan.program import read
from em3_jax.training import experiment
from tests.planted_pairs import planted_pairs

WIDTH = 4


def zipf(rows: int, names: int) -> np.ndarray:
    """[names] i32 as a log has them: row k by 1 / (k + 1), and half of all the padding row 0."""
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, rows + 1)
    index = random.choice(rows, names, p=share / share.sum())
    return np.where(random.random(names) < 0.5, 0, index).astype(np.int32)


def sums(array: np.ndarray, index: np.ndarray, weight: np.ndarray, dtype) -> np.ndarray:
    """The gradient of sum(weight * gathered rows) with respect to `array`, in f32."""

    def loss(array):
        return jnp.sum(gather.rows(array, index).astype(jnp.float32) * weight)

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(array, dtype))
    assert gradient.dtype == dtype
    return np.asarray(gradient, np.float32)


@pytest.mark.parametrize("examples", [4096, 16384])
@pytest.mark.parametrize("kind", ["shared by all", "as in a log", "of several axes"])
def test_gradients_of_frequent_rows_are_those_of_f32(kind, examples):
    random = np.random.default_rng(1)
    index = np.zeros(examples, np.int32) if kind == "shared by all" else zipf(500, examples)
    if kind == "of several axes":
        index = zipf(500, 50 * examples // 4).reshape(-1, 50)
    array = random.standard_normal((500, WIDTH)).astype(np.float32)
    # Of one sign, and of bf16's precision, so that summing alone makes a difference.
    weight = np.abs(random.standard_normal((*index.shape, WIDTH)))
    weight = weight.astype(jnp.bfloat16).astype(np.float32)
    exact = sums(array, index, weight, jnp.float32)
    rounded = sums(array, index, weight, jnp.bfloat16)
    np.testing.assert_allclose(rounded, exact, rtol=0.01)
    expected = np.zeros_like(array)
    np.add.at(expected, index.ravel(), weight.reshape(-1, WIDTH))
    np.testing.assert_allclose(exact, expected, rtol=1e-4)


def test_rows_are_those_of_take():
    array = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    index = np.array([[3, 0], [6, 3]])
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        one = array.astype(dtype)
        np.testing.assert_array_equal(gather.rows(one, index), one[index])


def test_on_cpus_f32_programs_are_those_of_take():
    array = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
    index = np.array([[3, 0], [6, 3]])

    def program(take) -> list[str]:
        loss = lambda array, index: jnp.sum(jnp.square(take(array, index)))  # noqa: E731
        text = jax.jit(jax.value_and_grad(loss)).lower(array, index).compile().as_text()
        return [(one.opcode, one.results) for one in read(text)]

    assert program(gather.rows) == program(lambda array, index: jnp.take(array, index, axis=0))


@pytest.mark.parametrize("count,rows", [(1, 1), (1, 300), (128, 500), (129, 40), (700, 7), (5000, 300)])
def test_all_ways_to_sum_by_index_give_the_same(count, rows):
    """Each is what some platform does; all are plain JAX, so that CPUs can run them."""
    random = np.random.default_rng(count)
    index = zipf(rows, count)
    values = random.standard_normal((count, 2, 3)).astype(np.float32)
    expected = np.zeros((rows, 2, 3))
    np.add.at(expected, index, values.astype(np.float64))
    for way in (gather._scattered, gather._block_sums, gather._product_sums):
        found = jax.jit(way, static_argnums=2)(values, index, rows)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max(), err_msg=way.__name__)
    as_bf16 = jnp.asarray(values, jnp.bfloat16)
    exact = np.zeros((rows, 2, 3))
    np.add.at(exact, index, np.asarray(as_bf16, np.float64))
    for way in (gather._block_sums, gather._product_sums):
        np.testing.assert_allclose(way(as_bf16, index, rows), exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_sums_in_blocks_cost_what_there_is_to_add():
    """Four times the addends and the targets: four times the products and the memory, not sixteen."""
    costs = []
    for scale in (1, 4):
        values, index = jnp.ones((20_000 * scale, 8)), jnp.zeros(20_000 * scale, jnp.int32)
        way = jax.jit(gather._block_sums, static_argnums=2)
        compiled = way.lower(values, index, 10_000 * scale).compile()
        costs.append((compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes))
    (flops, memory), (more_flops, more_memory) = costs
    assert more_flops < 5 * flops and more_memory < 5 * memory


def test_a_product_gathers_the_rows_bit_for_bit():
    array = np.random.default_rng(0).standard_normal((300, 5)).astype(np.float32) * np.logspace(-20, 20, 5, dtype="f4")
    index = zipf(300, 200).reshape(20, 10)
    for dtype in (jnp.float32, jnp.bfloat16):
        found = jax.jit(gather._product_rows)(jnp.asarray(array, dtype), index)
        np.testing.assert_array_equal(found, jnp.asarray(array, dtype)[index])


# What the training steps of all tasks do.


def is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def equations(jaxpr):
    """All equations of a jaxpr and of those inside it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(inner):
                yield from equations(getattr(inner, "jaxpr", inner))


def scatters(program) -> list:
    """[(dtype, shape)] of what a program adds up by index."""
    names = ("scatter-add", "scatter_add")
    found = [e for e in equations(program.jaxpr) if e.primitive.name in names]
    return [(e.invars[0].aval.dtype, e.invars[0].aval.shape) for e in found]


def step_of(config) -> list:
    """The scatters of a training step."""
    parts = experiment.build(config.to_dict())
    step = parts.program.train_step
    inputs = parts.program.shapes, parts.work.constants, parts.work.source[0]
    return scatters(jax.make_jaxpr(step)(*inputs))


RANKING = {
    "din": {"content_parts": ("item", "user", "similarity"), "fusion_chunk": 32},
    "deepfm": {"fusion": "two_flow", "fusion_settings.lora.rank": 2},
    "dcnv2": {"fusion": "mean", "cic.negatives": 0},
    "wide_deep": {"fusion": "one_flow"},
}


@pytest.mark.parametrize("backbone", [*RANKING, "ids"])
def test_ranking_in_bf16_sums_gradients_by_index_in_f32(tiny, backbone):
    config = base.ranking()
    config.data.root = str(tiny.dataset.root)
    config.data.batch_size, config.data.history_length = 16, 5
    if backbone == "ids":
        config = base.id_only(config)
    else:
        config.data.features, config.model.backbone = ("image", "text"), backbone
        config.model.update_from_flattened_dict(RANKING[backbone])
    config.model.precision = "bf16"
    found = step_of(config)
    assert len(found) > 4 and all(dtype.itemsize >= 4 for dtype, _ in found), found


def test_lemur_pretraining_and_retrieval_sum_gradients_by_index_in_f32(tiny, tmp_path):
    of_lemur, pretrained = lemur.get_config(), base.pretraining(base.ranking())
    of_lemur.model.encoder.update({"width": 16, "layers": 1, "mlp_width": 16, "output": 16})
    of_lemur.model.cic.weight = 0.1
    for config in (of_lemur, pretrained):
        config.data.root, config.data.features = str(tiny.dataset.root), ("image", "text")
        config.data.batch_size = 16
    pairs = str(planted_pairs(tmp_path).root)
    configs = [of_lemur, pretrained]
    for model in ("em3", "em3_as_released", "freedom", "bm3", "lattice", "slmrec", "vbpr"):
        configs.append(retrieval.get_config(model))
        configs[-1].data.root, configs[-1].data.batch_size = pairs, 32
    found = [step_of(config) for config in configs]
    assert all(dtype.itemsize >= 4 for some in found for dtype, _ in some), found
    # Pretraining gathers nothing that has a gradient.
    assert sum(map(bool, found)) >= len(configs) - 1


def test_encoders_in_bf16_sum_gradients_by_index_in_f32():
    text = Bert(11, 8, 1, 2, 16, 12, dtype=jnp.bfloat16)
    words = jnp.ones((3, 5), jnp.int32)
    image = Swin(8, (1,), (2,), window=2, dtype=jnp.bfloat16)
    for module, inputs in ((text, (words, words > 0)), (image, (jnp.zeros((2, 8, 8, 3)),))):
        params = jax.eval_shape(module.init, jax.random.key(0), *inputs)

        def loss(params, module=module, inputs=inputs):
            return module.apply(params, *inputs).mean.astype(jnp.float32).sum()

        found = scatters(jax.make_jaxpr(jax.grad(loss))(params))
        assert found and all(dtype.itemsize >= 4 for dtype, _ in found), found
