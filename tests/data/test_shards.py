"""data.shards: shards side by side name what the whole batch names, and fixed sizes hold whatever comes."""

import numpy as np
import pytest

from em3_jax.core.types import WHOLE, Shards
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.pipeline import bucket_sizes, evaluation_source, training_source
from em3_jax.data.shards import build, side_by_side

ROWS = np.arange(40)
ROOMY = Buckets(64, 128)
KEY = np.uint64(7)


@pytest.fixture(scope="module")
def builder(tiny):
    return BatchBuilder(tiny.dataset, history_length=5, unknown_alpha=3.0, unknown_floor={})


def named(batch) -> dict[str, np.ndarray]:
    """What each example of a batch refers to: items, and table rows (0 = padding)."""
    item = lambda position: batch["item_id"][position]  # noqa: E731
    row = lambda position: np.where(position == 0, 0, batch["row_id"][position])  # noqa: E731
    result = {name: row(batch[name]) for name in ("user_row", "context_row", "history_row")}
    for name in ("item_position", "history_position"):
        result[name] = item(batch[name])
        result[f"rows of {name}"] = row(batch["item_row"])[batch[name]]
    return result | {name: batch[name] for name in ("label", "weight", "history_mask")}


@pytest.mark.parametrize("total", [2, 4, 8])
def test_shards_side_by_side_name_what_the_whole_batch_names(builder, total):
    whole = build(builder, WHOLE, ROWS, buckets=ROOMY, key=KEY)
    parts = build(builder, Shards(0, total, total), ROWS, buckets=ROOMY, key=KEY)
    assert len(parts["item_id"]) == total * len(whole["item_id"])
    for name, value in named(whole).items():
        np.testing.assert_array_equal(named(parts)[name], value, err_msg=name)
    for name in ("item_id", "row_id"):
        known = lambda ids: set(ids[ids < builder.num_rows])  # noqa: E731
        assert known(parts[name]) == known(whole[name])


def test_what_processes_build_apart_is_the_batch(builder):
    """Positions of each process's part already count through the blocks of all."""
    every = build(builder, Shards(0, 4, 4), ROWS, buckets=ROOMY)
    apart = [build(builder, Shards(first, 2, 4), ROWS, buckets=ROOMY) for first in (0, 2)]
    for name, value in every.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in apart]), value, err_msg=name)


def test_features_gathered_on_the_host_come_along():
    batches = [{"tokens": {"image": np.full((2, 3), k)}, "item_id": np.arange(2)} for k in range(2)]
    assert side_by_side(batches, 0)["tokens"]["image"].tolist() == [[0] * 3] * 2 + [[1] * 3] * 2


@pytest.mark.parametrize("items,rows", [(20, 128), (64, 40), (20, 40)])
def test_fixed_sizes_keep_all_candidates_and_leave_out_the_rarest(builder, items, rows):
    chosen = ROWS[:16]
    with pytest.warns(UserWarning) as warned:
        batch = builder(chosen, buckets=Buckets(items, rows, fixed=True))
    short = {"20 distinct items": items == 20, "40 distinct table rows": rows == 40}
    assert {text: any(text in str(one.message) for one in warned) for text in short} == short
    roomy, tight = named(builder(chosen, buckets=ROOMY)), named(batch)
    assert (len(batch["item_id"]), len(batch["row_id"])) == (items, rows)
    np.testing.assert_array_equal(tight["item_position"], roomy["item_position"])
    left = tight["history_mask"]
    assert not (left & ~roomy["history_mask"]).any()
    np.testing.assert_array_equal(tight["history_position"][left], roomy["history_position"][left])
    assert (left.sum() < roomy["history_mask"].sum()) == (items == 20)
    replaced = tight["user_row"] != roomy["user_row"]
    assert set(tight["user_row"][replaced]) <= set(builder.unknown)


def test_all_processes_measure_the_same_sizes(builder):
    options = {"batch_size": 32, "seed": 0, "order": "shuffled"}
    sources = [
        training_source(builder, range(200), shards=Shards(first, 1, 2), unit=64, **options) for first in range(2)
    ]
    assert sources[0].buckets == sources[1].buckets and sources[0].buckets.fixed


@pytest.mark.parametrize("total", [2, 4, 8])
def test_an_evaluation_leaves_nothing_out_however_many_shards_there_are(planted, total, recwarn):
    """Sizes measured on a few batches would not hold the others."""
    builder = BatchBuilder(planted, history_length=20, unknown_alpha=0.0, unknown_floor={})
    shards = Shards(0, total, total)
    source = evaluation_source(builder, "train", 32, shards, unit=1)
    whole = evaluation_source(builder, "train", 32)
    assert len(source) > 50 and source.buckets.fixed
    for number in range(len(source)):
        one, other = source[number], whole[number]
        named_by_shards = named(one)
        for name, value in named(other).items():
            np.testing.assert_array_equal(named_by_shards[name], value, err_msg=name)
        assert len(one["item_id"]) == total * source.buckets.items
    assert not [w for w in recwarn if "goes without" in str(w.message)]
    if total == 8:  # of fewer shards, 10 % more than one batch needs is enough here
        few = bucket_sizes(builder, [np.arange(32)], shards, 1)
        assert few.items < source.buckets.items or few.rows < source.buckets.rows


def test_sizes_that_hold_others_are_of_their_series():
    small, large = Buckets(64, 128, fixed=True), Buckets(100, 100, encode=70)
    held = small.holding(large)
    assert held == Buckets(128, 128, encode=128, fixed=True) and held.holding(small) == held
