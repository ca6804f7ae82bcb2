"""The training step: distinct items against all slots, what its compiled form may hold, and that it repeats itself."""

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from em3_jax import tasks
from em3_jax.config import parse
from em3_jax.config.schema.ranking import RankingSettings
from em3_jax.core import rng, sharding, trees
from em3_jax.core.types import State
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.features.tokens import standardise
from em3_jax.tables import id_table
from em3_jax.tasks import Task
from em3_jax.tasks.ranking.task import ranking
from em3_jax.training import step

# Sizes that occur nowhere else, so that a shape tells where it comes from.
B, T, W = 29, 17, 8
TABLE_ROWS = 1_000_003
SEED = 5


def gradient_recorder() -> optax.GradientTransformation:
    """An optimizer that changes nothing and keeps the gradient as its state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda g, _, params: (jax.tree.map(jnp.zeros_like, g), g)
    )


def row_gradient_recorder() -> id_table.RowOptimizer:
    """Gradient descent on table rows that keeps the gradient in a slot."""
    return id_table.RowOptimizer(
        lambda embedding: {"gradient": jnp.zeros_like(embedding)}, lambda _, g, step: (-g, {"gradient": g})
    )


def make_task(fields) -> Task:
    settings = base.ranking().model.to_dict()
    settings["backbone_settings"] |= {"hidden": (16,), "attention_hidden": 6, "dropout": 0.0}
    settings["fusion_settings"] |= {"width": 16, "heads": 2, "ffn_width": 32, "dropout": 0.0}
    settings["cic"] |= {"negatives": 0, "width": 10, "id_fields": ("item", "tags")}
    return ranking(fields, parse.section(RankingSettings, settings, "model"))


def make_batch(tiny, **settings):
    """A training batch of B rows, ids replaced at random."""
    builder = BatchBuilder(tiny.dataset, history_length=T, unknown_alpha=5.0, unknown_floor={}, **settings)
    rows = np.asarray(tiny.dataset.split_rows("train"))[50 : 50 + B]
    return builder(rows, buckets=Buckets(64, 128), key=rng.numpy_key(0, "unknown", 0))


def make_params(task: Task, *inputs):
    """Random parameters of the size that training starts from."""
    shapes = jax.eval_shape(lambda *inputs: task.init(jax.random.key(0), tasks.gathered(*inputs)), *inputs)
    random, params = np.random.default_rng(0), []
    for name, leaf in trees.named_leaves(shapes).items():
        scale = 0.1 if leaf.ndim == 1 else leaf.shape[0] ** -0.5
        params.append(random.normal(1.0 if name.endswith("scale") else 0.0, scale, leaf.shape).astype(np.float32))
    return jax.tree.unflatten(jax.tree.structure(shapes), params)


class Compiled(NamedTuple):
    """A train step compiled for one batch, and its result.

    Attributes:
      run: () -> (state, aux), from the same fresh state each time.
      hlo: the compiled program.
      memory: XLA's account of it.
      state_bytes: size of the parameters and the tables.
      state, aux: the result of one run.
      moved: factor on the rates -> how far parameters and table rows move in a step of gradient descent.
    """

    run: object
    hlo: str
    memory: object
    state_bytes: int
    state: State
    aux: dict
    moved: object


def compile_step(tiny, distinct_items: bool) -> Compiled:
    task, batch = make_task(tiny.dataset.fields), make_batch(tiny, distinct_items=distinct_items)
    sets = [tiny.dataset.features(name) for name in ("image", "text")]
    features = {s.name: (np.asarray(s.tokens), np.asarray(s.mask)) for s in sets}
    optimizer, row_optimizer = gradient_recorder(), row_gradient_recorder()
    known_rows = tiny.dataset.fields.num_rows
    embedding = np.zeros((TABLE_ROWS, W), np.float32)
    embedding[1:known_rows] = np.random.default_rng(1).normal(0, 0.5, (known_rows - 1, W))
    params = make_params(task, embedding[: len(batch["row_id"])], features, batch)
    make_table = lambda: {"embedding": jnp.array(embedding), "slots": row_optimizer.init(jnp.array(embedding))}  # noqa: E731

    def fresh() -> State:
        own = jax.tree.map(jnp.array, params)
        return State(jnp.int32(7), own, optimizer.init(own), make_table(), {})

    layout = sharding.make_layout(1, 1, ("tables/.*",))
    options = {"frozen": (), "shardings": layout.shardings(jax.eval_shape(fresh))}
    train_step = step.make_train_step(task, optimizer, row_optimizer, seed=SEED, table_l2=0.0, **options)
    # LLVM's optimizer takes half of the time to compile and changes no shape.
    compiled = train_step.compile(fresh(), features, batch, xla_backend_optimization_level=0)
    run = lambda: compiled(fresh(), features, batch)  # noqa: E731
    state, aux = run()

    def moved(rate):
        descent = optax.sgd(0.1)
        begun = lambda: dataclasses.replace(fresh(), opt_state=descent.init(fresh().params))  # noqa: E731
        shardings = layout.shardings(jax.eval_shape(begun))
        one = step.make_train_step(
            task, descent, row_optimizer, seed=SEED, table_l2=0.0, frozen=(), shardings=shardings
        )
        new, old = one(begun(), features, batch, rate)[0], begun()
        return jax.tree.map(
            lambda a, b: np.asarray(a) - np.asarray(b),
            (new.params, new.tables["embedding"]), (old.params, old.tables["embedding"]),
        )  # fmt: skip

    return Compiled(
        run,
        compiled.program.as_text(),
        compiled.program.memory_analysis(),
        trees.num_bytes((state.params, state.tables)),
        state,
        aux,
        moved,
    )


@pytest.fixture(scope="module")
def distinct(tiny) -> Compiled:
    return compile_step(tiny, distinct_items=True)


@pytest.fixture(scope="module")
def all_slots(tiny) -> Compiled:
    return compile_step(tiny, distinct_items=False)


def test_distinct_items_and_all_slots_have_the_same_loss(distinct, all_slots):
    assert distinct.aux.keys() == all_slots.aux.keys()
    for name, value in distinct.aux.items():
        np.testing.assert_allclose(all_slots.aux[name], value, rtol=1e-5, err_msg=name)
    assert distinct.aux["cic_loss"] > 0.1


def test_a_factor_on_the_rates_scales_what_everything_moves(distinct):
    whole, half = distinct.moved(None), distinct.moved(np.float32(0.5))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole[0])) > 1e-4 < np.abs(whole[1]).max()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(0.5 * a, b, rtol=1e-3, atol=1e-6), whole, half)


def test_distinct_items_and_all_slots_have_the_same_gradients(distinct, all_slots):
    """Each array to 1e-5 of its norm. Softmax ignores key biases: their gradient is zero but for rounding."""
    ones = trees.named_leaves((distinct.state.opt_state, distinct.state.tables["slots"]))
    others = trees.named_leaves((all_slots.state.opt_state, all_slots.state.tables["slots"]))
    whole = np.sqrt(sum(np.linalg.norm(gradient) ** 2 for gradient in ones.values()))
    for name, gradient in ones.items():
        norm = np.linalg.norm(gradient)
        tolerance = 1e-7 * whole if name.endswith("key/bias") else 1e-5 * norm
        assert norm > 0 and np.linalg.norm(others[name] - gradient) <= tolerance, name


def shapes_of(hlo: str) -> set[tuple[int, ...]]:
    """Shapes of all arrays in a compiled program, those inside fused loops too."""
    return {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]\w*\[([\d,]+)\]", hlo)}


def token_shapes_per_slot(hlo: str, tiny) -> list[tuple[int, ...]]:
    """Shapes with the examples, their slots and content tokens among the axes, apart or merged."""
    counts = [tiny.dataset.features(name).tokens.shape[1] for name in ("image", "text")]
    counts += [sum(counts), sum(counts) + 2]  # both modalities together, with and without the queries
    found = []
    for shape in shapes_of(hlo):
        by_slot = any({B, slots} <= set(shape) or B * slots in shape for slots in (T, 1 + T))
        merged = any(np.prod(shape) % (B * slots * n) == 0 for slots in (T, 1 + T) for n in counts[:2])
        if merged or (by_slot and any(n in shape for n in counts)):
            found.append(shape)
    return found


def test_no_content_token_exists_once_per_slot_in_the_compiled_step(distinct, tiny):
    assert (B, T, W) in shapes_of(distinct.hlo) or (B, T, 16) in shapes_of(distinct.hlo)  # the search finds slots
    assert not token_shapes_per_slot(distinct.hlo, tiny)


def test_the_search_finds_tokens_per_slot_where_there_are_any(all_slots, tiny):
    assert token_shapes_per_slot(all_slots.hlo, tiny)


def test_the_step_updates_its_state_in_place_and_copies_no_table(distinct):
    assert distinct.memory.alias_size_in_bytes >= distinct.state_bytes
    assert distinct.memory.temp_size_in_bytes < TABLE_ROWS * W  # a quarter of one table


def test_the_step_repeats_itself_bit_for_bit(distinct):
    state, aux = distinct.run()
    jax.tree.map(np.testing.assert_array_equal, (state, aux), (distinct.state, distinct.aux))


def test_the_step_counts(distinct):
    assert distinct.state.step == 8 and distinct.state.step.dtype == np.int32


def test_tokens_from_the_host_and_from_the_device_give_the_same_scores(tiny):
    task = make_task(tiny.dataset.fields)
    sets = tuple(tiny.dataset.features(name) for name in ("image", "text"))
    on_device = {s.name: (standardise(np.asarray(s.tokens), np.asarray(s.mask)), s.mask) for s in sets}
    random = np.random.default_rng(0)
    table = {"embedding": random.standard_normal((tiny.dataset.fields.num_rows, W)).astype(np.float32)}
    batch, host_batch = make_batch(tiny), make_batch(tiny, host_features=sets)
    params = make_params(task, table["embedding"][: len(batch["row_id"])], on_device, batch)
    predict = step.make_apply(task, task.predict, sharding.make_mesh(1, 1))
    scores = predict(params, table, {}, on_device, batch)
    assert np.std(scores) > 0
    np.testing.assert_allclose(predict(params, table, {}, {}, host_batch), scores, rtol=1e-5, atol=1e-5)


def test_standardised_tokens_have_mean_zero_and_variance_one_and_are_zero_where_masked():
    random = np.random.default_rng(0)
    tokens = (100 + 30 * random.standard_normal((4, 3, 64))).astype(np.float32)
    mask = random.random((4, 3)) < 0.5
    tokens[~mask] = np.nan
    result = np.asarray(standardise(tokens, mask))
    expected = tokens - tokens.mean(axis=-1, keepdims=True)
    expected = np.where(mask[..., None], expected / np.sqrt((expected**2).mean(axis=-1, keepdims=True)), 0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    assert standardise(tokens.astype(np.float16), mask).dtype == np.float16


def test_a_token_that_is_constant_stays_finite():
    assert not np.any(standardise(np.full((2, 1, 8), 3.0, np.float32), np.ones((2, 1), bool)))
