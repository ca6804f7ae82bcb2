"""Graphs of nearest items by blocks against the same with a row and a column for each item."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.models.encoders import STATISTICS
from em3_jax.models.retrieval import neighbours as module
from em3_jax.models.retrieval.neighbours import along, nearest, neighbours, normalised
from em3_jax.models.retrieval.propagation import product
from tests.models.retrieval import dense as reference
from tests.models.retrieval.dense import BATCH, NUM_ITEMS
from tests.models.retrieval.test_models import FEATURES, make, project


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def in_blocks(x, h, count):
    """What LATTICE makes of one modality: [I, D] A h."""
    near = neighbours(jax.lax.stop_gradient(nearest(x, count)))
    return along(near, normalised(x, near), h)


def dense(x, h, count):
    """The same with [I, I] matrices and JAX's own gradients; equal similarities by index."""
    similarity = jnp.matmul(x, x.T)
    best = np.argsort(-np.asarray(jax.lax.stop_gradient(similarity)), axis=1, kind="stable")[:, :count]
    chosen = np.zeros(similarity.shape, bool)
    np.put_along_axis(chosen, best, True, axis=1)
    graph = jnp.where(chosen, jax.nn.relu(similarity), 0.0)
    degree = graph.sum(axis=1)
    scale = jnp.where(degree > 0, 1 / jnp.sqrt(jnp.where(degree > 0, degree, 1.0)), 0.0)
    return (scale[:, None] * graph * scale) @ h


def rows(items: int, kind: str) -> np.ndarray:
    """[I, 6] of length 1, an item without content among them; or whole numbers, whose products often tie, exactly."""
    random = np.random.default_rng(items)
    if kind == "ties":
        return random.integers(-2, 3, (items, 6)).astype(np.float32)
    x = random.normal(size=(items, 6)) + np.eye(6)[0] * 2  # most point one way: some items are near to very many
    x[items // 2] = 0.0
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)).astype(np.float32)


@pytest.mark.parametrize("items,count", [(7, 7), (300, 5), (600, 10)])
@pytest.mark.parametrize("kind", ["cosines", "ties"])
def test_values_and_gradients_are_those_of_the_dense_graph(items, count, kind):
    x, random = rows(items, kind), np.random.default_rng(1)
    h, target = (random.normal(size=(items, 4)).astype(np.float32) for _ in range(2))

    def run(form, x, h):
        out, back = jax.vjp(functools.partial(form, count=count), x, h)
        return out, *back(target)

    got, expected = jax.jit(functools.partial(run, in_blocks))(x, h), run(dense, x, h)
    for one, other, name in zip(got, expected, ("value", "gradient of x", "gradient of h"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max(), err_msg=name)
    assert all(np.abs(one).max() > 0 for one in expected)


def test_ties_go_to_the_lower_index():
    x = rows(300, "ties")
    best = np.argsort(-(x @ x.T), axis=1, kind="stable")[:, :8]
    np.testing.assert_array_equal(np.asarray(jax.jit(nearest, static_argnums=1)(x, 8)), best)


@pytest.mark.parametrize("by_two_numbers", [False, True])
@pytest.mark.parametrize("everyone", [False, True])
def test_the_transpose_is_the_transpose(by_two_numbers, everyone, monkeypatch):
    """Also where one item is read by all, and where entries are too many for one number each."""
    if by_two_numbers:
        monkeypatch.setattr(module, "_KEYS", 0)
    random = np.random.default_rng(0)
    sender = np.stack([random.choice(90, 3, replace=False) for _ in range(90)]).astype(np.int32)
    sender[:, 1:] = np.where(sender[:, 1:] == 0, 89, sender[:, 1:])
    sender[:, 0] = 0 if everyone else sender[:, 0]
    weight, h = (random.normal(size=(90, width)).astype(np.float32) for width in (3, 4))
    matrix = np.zeros((90, 90))
    np.add.at(matrix, (np.arange(90)[:, None], sender), weight)
    near = jax.jit(neighbours)(sender)
    for found, expected in ((near.matrix(weight), matrix), (near.transpose(weight), matrix.T)):
        np.testing.assert_allclose(product(found, h), expected @ h, rtol=1e-5, atol=1e-5)


def largest_array(form, x, h) -> tuple[int, int]:
    """(most numbers in an array, bytes of temporaries) of the compiled value and gradients."""

    def loss(x, h):
        return jnp.sum(form(x, h) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(x, h).compile()
    shapes = re.findall(r"\b(?:f32|s32|u32|pred|bf16)\[([\d,]+)\]", compiled.as_text())
    memory = compiled.memory_analysis()
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes), memory.temp_size_in_bytes


def test_no_array_has_a_row_and_a_column_for_each_item():
    items = 3000
    x, h = rows(items, "cosines"), np.ones((items, 6), np.float32)
    most, temporaries = largest_array(functools.partial(in_blocks, count=5), x, h)
    assert most < items * items / 8 and temporaries < 4 * items * items / 4
    whole, _ = largest_array(lambda x, h: jnp.maximum(x @ x.T, 0.0) @ h, x, h)
    assert whole >= items * items  # such an array would have been seen


@pytest.mark.parametrize("items", [5, 511, 512, 700])
def test_nearest_equals_a_full_sort(items):
    x = np.random.default_rng(0).normal(size=(items, 3)).astype(np.float32)
    x[items // 2] = x[1]  # a tie, except in the last bit
    got = np.asarray(jax.jit(nearest, static_argnums=1)(x, 4))
    score = x @ x.T
    best = -np.sort(-score, axis=1)[:, :4]
    np.testing.assert_allclose(np.take_along_axis(score, got, axis=1), best, rtol=1e-5)
    assert all(len(set(row)) == 4 for row in got.tolist())
    same = np.ones((items, 3), np.float32)
    assert np.asarray(nearest(same, 4)).tolist() == [[0, 1, 2, 3]] * items


def test_lattice_keeps_who_is_nearest_between_searches():
    """The step that searches is as if all did; the others read who was found last, with weights of their own."""
    graphs, params = reference.graphs(), reference.random_params(make("lattice"))
    model = make("lattice", search_every=3)

    @jax.jit
    def step(age, kept):
        found = {"found": {"age": age} | kept}
        result, moved = model.apply(
            {"params": params | found}, FEATURES, graphs, *BATCH, method="loss", mutable=[STATISTICS]
        )
        return (
            result[0],
            moved[STATISTICS]["found"],
            model.apply({"params": params | found}, FEATURES, graphs, train=False),
        )

    random = np.random.default_rng(8)
    kept = {m: np.argsort(random.random((NUM_ITEMS, NUM_ITEMS)), axis=1)[:, :3].astype(np.float32) for m in FEATURES}
    with jax.default_matmul_precision("float32"):
        every_step = make("lattice").apply({"params": params}, FEATURES, graphs, *BATCH, method="loss")[0]
        (loss, now, towers), (of_kept, then, others) = step(0.0, kept), step(1.0, kept)
        (again, last, _), (of_others, _, _) = step(1.0, {m: now[m] for m in kept}), step(2.0, kept)
    assert [float(loss), float(again)] == pytest.approx([float(every_step)] * 2, rel=1e-6)
    assert of_kept == of_others != loss
    assert (now["age"], then["age"], last["age"]) == (1, 2, 2) and step(2.0, kept)[1]["age"] == 0
    for m in kept:
        np.testing.assert_array_equal(then[m], kept[m])
        x = project(reference.f64(params))[m]
        best = np.argsort(-reference.cosines(x, x), axis=1)[:, :3]
        np.testing.assert_array_equal(np.sort(now[m], axis=1), np.sort(best, axis=1))
    jax.tree.map(np.testing.assert_array_equal, towers, others)  # evaluation searches
