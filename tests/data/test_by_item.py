"""Batches with a bound on their distinct candidates: each row once an epoch, in an order of its own."""

import dataclasses
import itertools

import numpy as np
import pytest

from em3_jax.core.types import WHOLE
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.by_item import ByItemSource, deal
from em3_jax.data.pipeline import batches, training_rows, training_source

# rows, items, B, M; items drawn evenly or, for the odd ones, as a power law
SIZES = [(1, 1, 1, 1), (50, 3, 8, 2), (311, 37, 32, 4), (311, 300, 32, 8), (2000, 40, 64, 64), (5000, 900, 256, 1)]


def log(rows: int, items: int):
    random = np.random.default_rng(rows)
    weight = 1.0 / np.arange(1, items + 1) ** (rows % 2)
    return random.choice(items, rows, p=weight / weight.sum())


def source(item: np.ndarray, batch_size: int, most: int, seed: int = 0) -> ByItemSource:
    made = deal(np.arange(1000, 1000 + len(item)), item, batch_size, most)
    return ByItemSource(builder=None, seed=seed, first_step=0, buckets=Buckets(64, 64), shards=WHOLE, deal=made)


def epoch(made: ByItemSource, number: int) -> list:
    first = number * made.steps_per_epoch
    return [made.rows_of_step(first + k) for k in range(made.steps_per_epoch)]


@pytest.mark.parametrize("rows,items,batch_size,most", SIZES)
def test_an_epoch_has_every_row_once_and_no_batch_too_many_candidates(rows, items, batch_size, most):
    item = log(rows, items)
    made = source(item, batch_size, most)
    assert made.steps(3) == 3 * made.steps_per_epoch
    for number in range(3):
        found = epoch(made, number)
        assert all(len(index) == len(weight) == batch_size for index, weight in found)
        counted = np.concatenate([index[weight > 0] for index, weight in found])
        np.testing.assert_array_equal(np.sort(counted), np.arange(1000, 1000 + rows))
        assert max(len(np.unique(item[index - 1000])) for index, _ in found) <= most


@pytest.mark.parametrize("rows,items,batch_size,most", SIZES[1:])
def test_batches_are_about_as_few_as_can_be(rows, items, batch_size, most):
    item = log(rows, items)
    least = max(-(-rows // batch_size), -(-len(np.unique(item)) // most))
    assert least <= source(item, batch_size, most).steps_per_epoch <= 1.3 * least + 1


def test_a_batch_is_a_function_of_seed_and_step():
    item = log(311, 37)
    one = source(item, 32, 4)
    backwards = [one.rows_of_step(step)[0] for step in reversed(range(40))][::-1]
    fresh = source(item, 32, 4)
    for step, rows in enumerate(backwards):
        np.testing.assert_array_equal(rows, fresh.rows_of_step(step)[0])
    assert any((rows != source(item, 32, 4, seed=1).rows_of_step(k)[0]).any() for k, rows in enumerate(backwards))


def test_each_epoch_has_an_order_of_its_own_and_items_meet_others_in_it():
    item = log(5000, 200)
    made = source(item, 128, 16)
    meets = []
    for number in range(2):
        together = [np.unique(item[index - 1000]) for index, _ in epoch(made, number)]
        meets.append({pair for one in together for pair in itertools.combinations(one.tolist(), 2)})
    assert len(meets[0] & meets[1]) < 0.3 * len(meets[0])
    first, second = (np.concatenate([index for index, _ in epoch(made, k)]) for k in range(2))
    assert (first != second).mean() > 0.9


@pytest.fixture(scope="module")
def builder(tiny):
    return BatchBuilder(tiny.dataset, history_length=0, unknown_alpha=3.0, unknown_floor={})


def make(builder, most: int = 4, shards=WHOLE, **options):
    rows = training_rows(builder.dataset, builder.label, 0)
    options = {"batch_size": 32, "seed": 0, "order": "by_item", "most_items": most, "shards": shards} | options
    return training_source(builder, rows, **options)


@pytest.mark.parametrize("most", [4, 8, 9])
def test_without_histories_a_step_has_as_many_items_as_the_bound(builder, most):
    """Its content, which an encoder reads, is that of the candidates alone."""
    shuffled = make(builder, order="shuffled", most_items=0)
    assert shuffled[0]["item_mask"].sum() > 9
    made = make(builder, most)
    for step in range(2 * made.steps_per_epoch):
        batch = made[step]
        assert batch["item_mask"].sum() <= most and len(batch["item_id"]) == -(-most // 8) * 8
        assert batch["history_position"].shape == (32, 0)
        rows, weight = made.rows_of_step(step)
        np.testing.assert_array_equal(batch["label"], builder.dataset.interactions["label"][rows])
        np.testing.assert_array_equal(batch["weight"], weight)
        candidates = batch["item_id"][batch["item_position"]]
        np.testing.assert_array_equal(candidates, builder.dataset.interactions["item"][rows])


def test_with_histories_a_batch_names_their_items_too(tiny):
    with_history = BatchBuilder(tiny.dataset, history_length=4, unknown_alpha=3.0, unknown_floor={})
    assert make(with_history)[0]["item_mask"].sum() > 4


def test_starting_at_a_step_gives_the_batches_of_running_there(builder):
    made = make(builder)
    steps = made.steps_per_epoch + 3
    whole = list(itertools.islice(batches(made), steps))
    rest = list(itertools.islice(batches(made, start=5), steps - 5))
    for one, other in zip(whole[5:], rest, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_in_blocks_each_device_has_its_part_of_the_same_rows(builder):
    shards = dataclasses.replace(WHOLE, first=0, count=4, total=4)
    made, whole = make(builder, shards=shards), make(builder)
    for step in range(made.steps_per_epoch):
        batch, alone = made[step], whole[step]
        np.testing.assert_array_equal(batch["label"], alone["label"])
        blocks = batch["item_id"].reshape(4, -1)
        candidates = blocks[np.arange(32) // 8, batch["item_position"]]
        np.testing.assert_array_equal(candidates, alone["item_id"][alone["item_position"]])
