"""pipeline: every row once an epoch, a batch is a function of (seed, step), and nothing depends on threads."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest

from em3_jax.core import sharding
from em3_jax.core.errors import UserError
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.pipeline import (
    GrownSource,
    batches,
    evaluation_source,
    group_order,
    rows_of_step,
    training_rows,
    training_source,
)

SIZES = [(1, 1), (1, 5), (7, 3), (12, 4), (100, 7), (100, 100), (100, 101), (100, 999), (4096, 500), (5003, 611)]
ORDERS = ["shuffled", "chronological"]
SETTINGS: dict = {"history_length": 4, "unknown_alpha": 3.0, "unknown_floor": {}}


@pytest.fixture(scope="module")
def builder(tiny):
    return BatchBuilder(tiny.dataset, **SETTINGS)


def make_source(builder, *, batch_size=32, seed=0, order="shuffled"):
    rows = training_rows(builder.dataset, builder.label, 0)
    return training_source(builder, rows, batch_size=batch_size, seed=seed, order=order)


def run_of_rows(rows, batch_size: int, seed: int, order: str, epochs: int) -> np.ndarray:
    """[epochs * len(rows)] the rows that training visits, one after the other."""
    steps = range(math.ceil(epochs * len(rows) / batch_size))
    visited = np.concatenate([rows_of_step(rows, batch_size, seed, order, step) for step in steps])
    return visited[: epochs * len(rows)]


def assert_same_batch(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


# The order of the rows.


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [0, 1, 2**40])
@pytest.mark.parametrize("num_rows,batch_size", SIZES)
def test_an_epoch_visits_every_row_exactly_once(num_rows, batch_size, seed, order):
    rows = range(1000, 1000 + num_rows)
    for epoch in run_of_rows(rows, batch_size, seed, order, epochs=3).reshape(3, num_rows):
        np.testing.assert_array_equal(np.sort(epoch), rows)


def test_by_group_the_rows_of_a_group_stand_together_in_an_order_of_the_epoch(tiny):
    sessions = {**tiny.dataset.interactions, "group": tiny.rows["time"].astype(np.int32)}
    dataset = dataclasses.replace(tiny.dataset, interactions=sessions)
    source = make_source(BatchBuilder(dataset, **SETTINGS, groups=True), batch_size=20, order="by_group")
    rows, steps = source.rows, 3 * source.steps_per_epoch
    visited = [rows_of_step(rows, 20, 0, "by_group", step, source.groups) for step in range(steps)]
    np.testing.assert_array_equal(source[4]["group"], tiny.rows["time"][visited[4]])
    epochs = np.concatenate(visited)[: 3 * len(rows)].reshape(3, -1)
    orders = []
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), rows)
        group = tiny.rows["time"][epoch]
        begins = np.flatnonzero(np.diff(group, prepend=-1))
        assert len(begins) == len(set(group)) < len(rows), "a group is there more than once"
        assert (np.diff(epoch)[np.diff(group) == 0] > 0).all(), "its rows are in time order"
        orders.append([*group[begins]])
    assert len({tuple(order) for order in orders}) == 3
    grown = GrownSource(
        builder=source.builder, rows=rows[:50], batch_size=20, seed=0, order="by_group", first_step=7,
        buckets=source.buckets, shards=source.shards, groups=group_order(dataset, rows[:50]),
    )  # fmt: skip
    parts = [grown.rows_of_step(step) for step in (7, 8, 9)]
    found = np.concatenate([one[weight > 0] for one, weight in parts])
    np.testing.assert_array_equal(np.sort(found), rows[:50])
    times = tiny.rows["time"][found]
    assert np.count_nonzero(np.diff(times)) + 1 == len(set(times))


def test_the_order_does_not_depend_on_the_batch_size():
    runs = [run_of_rows(range(50), size, seed=3, order="shuffled", epochs=4) for size in (1, 7, 50, 64, 200)]
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = [tuple(e) for s in (0, 1) for e in run_of_rows(range(100), 10, s, "shuffled", epochs=3).reshape(3, 100)]
    assert len(set(orders)) == 6


def test_chronological_is_the_order_of_the_rows():
    np.testing.assert_array_equal(run_of_rows(range(5, 25), 6, 0, "chronological", epochs=2), [*range(5, 25)] * 2)


@pytest.mark.parametrize("order", ORDERS)
def test_a_split_that_is_no_range_is_visited_row_by_row(tiny, builder, order):
    train = np.flatnonzero(tiny.rows["split"] == 0)
    assert not isinstance(tiny.dataset.split_rows("train"), range)
    visited = run_of_rows(make_source(builder).rows, 32, 0, order, epochs=2).reshape(2, len(train))
    for epoch in visited if order == "chronological" else np.sort(visited):
        np.testing.assert_array_equal(epoch, train)


@pytest.mark.parametrize("most", [1, 3, 10])
def test_no_user_has_more_rows_than_allowed_and_none_loses_more_than_needed(tiny, most):
    train = np.flatnonzero(tiny.rows["split"] == 0)
    kept = training_rows(tiny.dataset, "click", most)
    assert (np.diff(kept) > 0).all() and set(kept) <= set(train)
    before, after = (np.bincount(tiny.rows["user"][rows], minlength=tiny.dataset.num_users) for rows in (train, kept))
    np.testing.assert_array_equal(after, np.minimum(before, most))
    assert before.max() > most  # else nothing was tried
    assert [*training_rows(tiny.dataset, "click", 0)] == [*train]


def test_a_share_of_the_rows_is_drawn_once_and_a_smaller_one_is_part_of_a_larger(tiny):
    whole = np.asarray(training_rows(tiny.dataset, "click", 0))
    half, quarter = (training_rows(tiny.dataset, "click", 0, share) for share in (0.5, 0.25))
    assert abs(len(half) / len(whole) - 0.5) < 0.1 and abs(len(quarter) / len(whole) - 0.25) < 0.1
    assert np.isin(quarter, half).all() and np.isin(half, whole).all()
    assert (np.diff(half) > 0).all(), "in time order"
    few = training_rows(tiny.dataset, "click", 2, 0.5)
    assert np.isin(few, half).all()
    assert np.unique(tiny.rows["user"][few], return_counts=True)[1].max() <= 2


@pytest.mark.parametrize("num_rows", [3001, 20011], ids=["sorted", "feistel"])
def test_rows_far_apart_in_order_are_uncorrelated(num_rows):
    """Autocorrelation of an epoch at many distances, between epochs, between seeds, and with the original order."""
    epochs = [run_of_rows(range(num_rows), 1 << 12, s, "shuffled", 2).reshape(2, -1) for s in (0, 1)]
    first, second, other = epochs[0][0], epochs[0][1], epochs[1][0]
    pairs = [(first, second), (first, other), (first, np.arange(num_rows))]
    for distance in (1, 2, 3, 10, 100, 1000, math.isqrt(num_rows), math.isqrt(num_rows) + 1, num_rows // 2):
        pairs.append((first[:-distance], first[distance:]))
    for a, b in pairs:
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(len(a))


def test_a_batch_is_spread_over_the_whole_data():
    """The rows of a batch are uniform: their positions in time have a uniform's mean and spread."""
    batch = rows_of_step(range(10**9), 4096, 0, "shuffled", 123) / 10**9
    assert abs(batch.mean() - 1 / 2) < 4.5 * math.sqrt(1 / 12 / 4096)
    assert abs(batch.var() - 1 / 12) < 4.5 * math.sqrt(1 / 180 / 4096)


def test_billions_of_rows_cost_no_more_than_thousands():
    rows = rows_of_step(range(2 * 10**9), 8, 0, "shuffled", 10**6)
    assert len(set(rows)) == 8 and rows.min() >= 0 and rows.max() < 2 * 10**9


def test_an_unknown_order_is_refused():
    with pytest.raises(UserError, match="alphabetical"):
        rows_of_step(range(5), 2, 0, "alphabetical", 0)


# Batches.


def test_a_batch_is_a_function_of_seed_and_step(builder):
    source = make_source(builder)
    assert_same_batch(source[5], make_source(builder)[5])
    assert_same_batch(source[5], source[5])
    other_seed = make_source(builder, seed=1)[5]
    assert (other_seed["user_row"] != source[5]["user_row"]).any()


def test_a_training_batch_holds_the_rows_of_its_step(tiny, builder):
    source = make_source(builder)
    for step in (0, 5, 6, 7):  # 189 training rows or so: the second epoch begins in step 5
        rows = rows_of_step(source.rows, 32, 0, "shuffled", step)
        batch = source[step]
        np.testing.assert_array_equal(batch["label"], tiny.rows["label"][rows])
        np.testing.assert_array_equal(batch["item_id"][batch["item_position"]], tiny.rows["item"][rows])


def test_ids_are_replaced_anew_in_each_step(builder):
    """The same rows, chronologically and epoch-long, with the replacements of their steps."""
    count = len(make_source(builder).rows)
    source = make_source(builder, batch_size=count, order="chronological")
    rows = [batch["row_id"][batch["user_row"]] for batch in (source[0], source[1])]
    assert (rows[0] != rows[1]).any()
    np.testing.assert_array_equal(source[0]["label"], source[1]["label"])


@pytest.mark.parametrize("start", [0, 1, 7, 10**9])
def test_starting_at_step_k_gives_the_batches_of_running_there(builder, start):
    source = make_source(builder)
    resumed = list(itertools.islice(batches(source, start=start), 5))
    for step, batch in enumerate(resumed, start=start):
        assert_same_batch(batch, source[step])
    assert len(resumed) == 5, "a source has no end"


@pytest.mark.parametrize("threads", [0, 1, 5])
def test_threads_do_not_matter(builder, threads):
    source = make_source(builder)
    for step, batch in enumerate(itertools.islice(batches(source, threads=threads, ahead=8), 40)):
        assert_same_batch(batch, source[step])
    assert step == 39


def test_batches_on_the_device_are_those_of_the_host(builder):
    source = make_source(builder)
    mesh = sharding.make_mesh(1, 1)
    shardings = sharding.batch_shardings(mesh, source[0])
    place = functools.partial(sharding.place, mesh, source.shards)
    for step, batch in enumerate(itertools.islice(batches(source, place=place), 3)):
        assert all(isinstance(value, jax.Array) and value.sharding == shardings[name] for name, value in batch.items())
        assert_same_batch(jax.device_get(batch), source[step])


def test_few_shapes_come_out_of_the_source(builder):
    made = itertools.islice(batches(make_source(builder)), 40)
    assert len({(len(batch["item_id"]), len(batch["row_id"])) for batch in made}) <= 2


@pytest.mark.parametrize("epochs", [0.01, 0.5, 1.0, 2.5])
def test_steps_are_those_that_so_many_epochs_end_before(builder, epochs):
    source = make_source(builder)
    steps = source.steps(epochs)
    assert (steps - 1) * source.batch_size < epochs * len(source.rows) <= steps * source.batch_size


# Evaluation.


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_evaluation_covers_each_row_once_in_order_with_weights(tiny, builder, split, batch_size):
    rows = np.flatnonzero(tiny.rows["split"] == ("train", "valid", "test").index(split))
    source = evaluation_source(builder, split, batch_size)
    parts = list(batches(source))
    assert len(parts) == len(source) == math.ceil(len(rows) / batch_size)
    assert {len(batch["label"]) for batch in parts} == {batch_size}
    weight = np.concatenate([batch["weight"] for batch in parts])
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < len(rows))
    for name in ("label", "item"):
        values = [b["label"] if name == "label" else b["item_id"][b["item_position"]] for b in parts]
        np.testing.assert_array_equal(np.concatenate(values)[: len(rows)], tiny.rows[name][rows])


def test_evaluation_replaces_no_ids(tiny):
    certain = BatchBuilder(tiny.dataset, history_length=4, unknown_alpha=1e9, unknown_floor={})
    never = BatchBuilder(tiny.dataset, history_length=4, unknown_alpha=0.0, unknown_floor={})
    assert_same_batch(evaluation_source(certain, "valid", 20)[0], evaluation_source(never, "valid", 20)[0])


def test_training_buckets_do_not_depend_on_the_seed(planted):
    """Runs of several seeds share what is compiled."""
    builder = BatchBuilder(planted, history_length=4, unknown_alpha=3.0, unknown_floor={})
    for batch_size in (4, 8, 16, 32, 64):
        one, other = (make_source(builder, batch_size=batch_size, seed=seed) for seed in (1, 5000))
        assert isinstance(one.buckets, Buckets) and one.buckets == other.buckets
