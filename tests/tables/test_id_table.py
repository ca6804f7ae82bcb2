"""tables: the sparse update against the dense optimizer of the same rule; what it does not touch stays bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from em3_jax.tables import id_table

V, W, R = 37, 5, 12
RATE = 0.1
OPTIMIZERS = ["rowwise_adagrad", "lazy_adam"]
SURPLUS = np.array([V, V + 1, V + 2], np.int32)  # the padded end of row_id


@functools.cache
def make_update(name: str, l2: float = 0.0):
    optimizer = id_table.row_optimizer(name, RATE)
    return jax.jit(lambda table, *arguments: id_table.update(table, *arguments, optimizer, l2))


def make_table(name: str) -> id_table.Tables:
    """A table that has been trained for a while: no slot is zero any more."""
    random = np.random.default_rng(0)
    table = id_table.init(jax.random.key(0), V, W, 0.5, id_table.row_optimizer(name, RATE))
    slots = {n: random.random(slot.shape).astype(np.float32) for n, slot in table["slots"].items()}
    for slot in slots.values():
        slot[0] = 0.0
    return {"embedding": np.array(table["embedding"]), "slots": slots}


def make_steps(count: int = 4, every_row: bool = False):
    """[(row_id [R], gradient [R, W])] of some steps: padding first, distinct rows, surplus at the end."""
    random = np.random.default_rng(1)
    steps = []
    for _ in range(count):
        size = V - 1 if every_row else R
        rows = 1 + np.sort(random.choice(V - 1, size, replace=False))
        row_id = np.concatenate([[0], rows, SURPLUS]).astype(np.int32)
        steps.append((row_id, random.standard_normal((len(row_id), W)).astype(np.float32)))
    return steps


def run(name: str, steps, l2: float = 0.0, table=None):
    table = make_table(name) if table is None else table
    for number, (row_id, gradient) in enumerate(steps):
        table = make_update(name, l2)(table, row_id, gradient, np.int32(number))
    return jax.device_get(table)


def dense_gradient(row_id, gradient) -> np.ndarray:
    """[V, W] the gradient of the whole table; that of the padding row is none."""
    dense = np.zeros((V, W))
    real = (row_id > 0) & (row_id < V)
    dense[row_id[real]] = gradient[real]
    return dense


# Against dense optimizers.


@pytest.mark.parametrize("every_row", [True, False])
def test_rowwise_adagrad_equals_the_dense_rule(every_row):
    steps = make_steps(every_row=every_row)
    table = make_table("rowwise_adagrad")
    embedding = table["embedding"].astype(np.float64)
    accumulator = table["slots"]["accumulator"].astype(np.float64)
    for row_id, gradient in steps:
        g = dense_gradient(row_id, gradient)  # rows of zeros change nothing: the dense rule needs no mask
        accumulator += np.mean(g**2, axis=1)
        embedding -= RATE * g / (np.sqrt(accumulator)[:, None] + 1e-8)
    result = run("rowwise_adagrad", steps)
    np.testing.assert_allclose(result["embedding"], embedding, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["slots"]["accumulator"], accumulator, rtol=1e-5)


def test_lazy_adam_is_adam_where_every_step_touches_every_row():
    steps = make_steps(every_row=True)
    table = id_table.init(jax.random.key(0), V, W, 0.5, id_table.row_optimizer("lazy_adam", RATE))
    adam = optax.adam(RATE)
    params = np.array(table["embedding"])
    state = adam.init(params)
    for row_id, gradient in steps:
        updates, state = adam.update(dense_gradient(row_id, gradient).astype(np.float32), state, params)
        params = optax.apply_updates(params, updates)
    result = run("lazy_adam", steps, table=table)
    np.testing.assert_allclose(result["embedding"], params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["slots"]["mean"], state[0].mu, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result["slots"]["variance"], state[0].nu, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_adam_is_that_of_the_whole_table(l2):
    """Rows go on by their momentum where a step does not touch them; padding and surplus stay zero."""
    steps = make_steps()
    table = id_table.init(jax.random.key(0), V, W, 0.5, id_table.row_optimizer("adam", RATE), length=V + 3)
    optimizer = optax.adam(RATE)
    params = np.array(table["embedding"])
    state = optimizer.init(params)
    for row_id, gradient in steps:
        whole = np.zeros_like(params)
        whole[:V] = dense_gradient(row_id, gradient)
        updates, state = optimizer.update(whole + l2 * params, state, params)
        params = optax.apply_updates(params, updates)
    beyond = [(np.where(row_id >= V, row_id + 3, row_id), gradient) for row_id, gradient in steps]
    result = run("adam", beyond, l2, table)
    np.testing.assert_allclose(result["embedding"], params, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result["slots"]["second_moment"], state[0].nu, rtol=1e-5, atol=1e-9)
    assert not result["embedding"][0].any() and not result["embedding"][V:].any()


def test_lazy_adam_is_adam_masked_to_the_touched_rows():
    """Moments and rows stay where a step does not touch them; bias correction is by a row's own steps."""
    steps = make_steps()
    table = make_table("lazy_adam")
    embedding, mean, variance = (
        x.astype(np.float64) for x in (table["embedding"], table["slots"]["mean"], table["slots"]["variance"])
    )
    t = table["slots"]["count"].astype(np.float64)[:, None]
    for row_id, gradient in steps:
        g, touched = dense_gradient(row_id, gradient), np.isin(np.arange(V), row_id[row_id > 0])[:, None]
        t = t + touched
        mean = np.where(touched, 0.9 * mean + 0.1 * g, mean)
        variance = np.where(touched, 0.999 * variance + 0.001 * g**2, variance)
        t_ = np.maximum(t, 1e-9)  # of rows that nothing has touched, which stay
        change = RATE * (mean / (1 - 0.9**t_)) / (np.sqrt(variance / (1 - 0.999**t_)) + 1e-8)
        embedding = np.where(touched, embedding - change, embedding)
    result = run("lazy_adam", steps)
    np.testing.assert_allclose(result["embedding"], embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["slots"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result["slots"]["variance"], variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_row_moves_alike_whenever_a_run_comes_to_it(name):
    """Rare rows are first touched late, and by few steps: each as if the run were theirs alone."""
    table = id_table.init(jax.random.key(0), V, W, 0.5, id_table.row_optimizer(name, RATE))
    before = np.asarray(table["embedding"])
    row_id = np.array([0, 5, V], np.int32)
    gradients = np.random.default_rng(2).standard_normal((3, 3, W)).astype(np.float32)
    moves = []
    for steps in ((0, 1, 2), (4000, 9000, 80_000)):
        now = table
        for number, gradient in zip(steps, gradients, strict=True):
            now = make_update(name)(now, row_id, gradient, np.int32(number))
        moves.append(np.asarray(now["embedding"])[5] - before[5])
    np.testing.assert_array_equal(*moves)
    first = make_update(name)(table, row_id, gradients[0], np.int32(9000))
    size = np.abs(np.asarray(first["embedding"])[5] - before[5])
    assert np.sqrt(np.mean(size**2)) == pytest.approx(RATE, rel=1e-4)
    if name == "lazy_adam":  # whose reference is Adam on the row alone
        adam = optax.adam(RATE)
        row, state = before[5], adam.init(before[5])
        for gradient in gradients:
            updates, state = adam.update(gradient[1], state, row)
            row = optax.apply_updates(row, updates)
        np.testing.assert_allclose(before[5] + moves[1], row, rtol=1e-5, atol=1e-6)


def test_moments_without_counts_go_on_as_they_were_corrected():
    """A checkpoint of a version that corrected all rows by the steps done."""
    variance = jnp.zeros((V, W)).at[jnp.array([2, 7])].set(0.1)
    count = np.asarray(id_table.counts_of_moments(variance, jnp.int32(40)))
    assert count.shape == (V,) and set(np.flatnonzero(count)) == {2, 7} and count[7] == 40


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_l2_adds_the_touched_rows_to_the_gradient(name):
    l2, (row_id, gradient) = 0.3, make_steps()[0]
    table = make_table(name)
    penalty = np.zeros_like(gradient)
    penalty[: -len(SURPLUS)] = l2 * table["embedding"][row_id[: -len(SURPLUS)]]
    with_l2, by_hand = run(name, [(row_id, gradient)], l2), run(name, [(row_id, gradient + penalty)])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), with_l2, by_hand)
    assert np.abs(with_l2["embedding"] - run(name, [(row_id, gradient)])["embedding"]).max() > 1e-4


# What must not change.


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_untouched_rows_and_slots_keep_their_bits(name, l2):
    steps, before = make_steps(), make_table(name)
    after = run(name, steps, l2)
    touched = np.isin(np.arange(V), np.concatenate([row_id[1:] for row_id, _ in steps]))
    assert touched.any() and (~touched).sum() > 1
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new[~touched], old[~touched])
        assert (new[touched] != old[touched]).reshape(touched.sum(), -1).any(axis=1).all()


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_padding_row_and_its_slots_stay_zero(name, l2):
    after = run(name, make_steps(), l2)  # each step has a gradient for row 0
    assert not any(np.any(leaf[0]) for leaf in jax.tree.leaves(after))
    assert not np.any(id_table.init(jax.random.key(3), V, W, 0.5, id_table.row_optimizer(name, RATE))["embedding"][0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_surplus_ids_read_as_zeros_and_are_dropped_on_writing(name):
    row_id, gradient = make_steps()[0]
    table = make_table(name)
    rows = id_table.lookup(table, row_id)
    np.testing.assert_array_equal(rows[: -len(SURPLUS)], table["embedding"][row_id[: -len(SURPLUS)]])
    assert not np.any(rows[-len(SURPLUS) :])
    wild = gradient.copy()
    wild[-len(SURPLUS) :] = 1e9
    calm = run(name, [(row_id, gradient)])
    jax.tree.map(np.testing.assert_array_equal, run(name, [(row_id, wild)]), calm)
    shorter = run(name, [(row_id[: -len(SURPLUS)], gradient[: -len(SURPLUS)])])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), shorter, calm)


def test_fresh_rows_are_normal_with_the_given_scale():
    embedding = np.asarray(id_table.init(jax.random.key(0), 20_000, 8, 0.05, id_table.lazy_adam(RATE))["embedding"])[1:]
    assert abs(embedding.mean()) < 4 * 0.05 / np.sqrt(embedding.size)
    assert embedding.std() == pytest.approx(0.05, rel=0.02)


# What it costs.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_donated_update_needs_no_memory_that_grows_with_the_table(name):
    optimizer = id_table.row_optimizer(name, RATE)

    def step(table, row_id, gradient, number):
        rows = id_table.lookup(table, row_id)
        return id_table.update(table, row_id, gradient * rows, number, optimizer, 0.1)

    def temporary_bytes(rows: int) -> int:
        shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
        embedding = shape((rows, 16))
        table = {"embedding": embedding, "slots": jax.eval_shape(optimizer.init, embedding)}
        row_id, number = jax.ShapeDtypeStruct((256,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
        compiled = jax.jit(step, donate_argnums=0).lower(table, row_id, shape((256, 16)), number).compile()
        memory = compiled.memory_analysis()
        table_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(table))
        assert memory.alias_size_in_bytes == table_bytes  # every part of the table is updated in place
        return memory.temp_size_in_bytes

    small, large = temporary_bytes(10_000), temporary_bytes(1_000_000)
    assert large <= small + 1024


def test_a_donated_update_consumes_the_table_it_was_given():
    table = jax.tree.map(jnp.array, make_table("lazy_adam"))
    row_id, gradient = make_steps()[0]
    update = jax.jit(make_update("lazy_adam"), donate_argnums=0)
    new = update(table, row_id, gradient, np.int32(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(table))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(new), run("lazy_adam", [(row_id, gradient)]))
