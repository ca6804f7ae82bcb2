"""data.blocks: blocks sorted by owner name what the whole batch names, and hold whatever comes."""

import concurrent.futures
import dataclasses
import threading

import jax
import numpy as np
import pytest

from em3_jax.core import rng
from em3_jax.core.batch import NONE
from em3_jax.core.types import WHOLE, Shards
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.blocks import build
from em3_jax.data.pipeline import bucket_sizes, rows_of_step, training_source

ROWS = np.arange(40)
KEY = np.uint64(7)
SMALL = Buckets(8, 8, own_items=8, own_rows=8, unit=8)


@pytest.fixture(scope="module")
def builder(tiny):
    features = (tiny.dataset.features("image"),)
    options = {"history_length": 5, "unknown_alpha": 3.0, "unknown_floor": {}}
    return BatchBuilder(tiny.dataset, **options, host_features=features)


def named(batch, total: int) -> dict[str, np.ndarray]:
    """What each example refers to: items, and table rows (0 = padding); positions count through its own block."""
    blocks = {name: batch[name].reshape(total, -1) for name in ("item_id", "row_id")}

    def of(block: str, name: str, array: np.ndarray) -> np.ndarray:
        parts = array.reshape(total, len(array) // total, *array.shape[1:])
        found = np.stack([ids[part] for ids, part in zip(blocks[block], parts, strict=True)])
        return np.where(parts == 0, 0, found).reshape(array.shape) if block == "row_id" else found.reshape(array.shape)

    result = {name: of("row_id", name, batch[name]) for name in ("user_row", "context_row", "history_row")}
    item_rows = of("row_id", "item_row", batch["item_row"]).reshape(total, -1, batch["item_row"].shape[1])
    for name in ("item_position", "history_position"):
        result[name] = of("item_id", name, batch[name])
        parts = batch[name].reshape(total, -1)
        rows = np.stack([rows[part] for rows, part in zip(item_rows, parts, strict=True)])
        result[f"rows of {name}"] = rows.reshape(*batch[name].shape, -1)
    return result | {name: batch[name] for name in ("label", "weight", "history_mask")}


@pytest.mark.parametrize("total", [2, 4, 8])
def test_blocks_name_what_the_whole_batch_names(builder, total):
    whole = build(builder, WHOLE, ROWS, buckets=Buckets(64, 128), key=KEY)
    batch = build(builder, Shards(0, total, total), ROWS, buckets=SMALL, key=KEY)
    for name, value in named(whole, 1).items():
        np.testing.assert_array_equal(named(batch, total)[name], value, err_msg=name)


@pytest.mark.parametrize("total", [2, 8])
def test_blocks_are_sorted_by_owner_and_tokens_are_those_of_what_is_owned(builder, total):
    batch = build(builder, Shards(0, total, total), ROWS, buckets=SMALL, key=KEY)
    for name in ("item_id", "row_id"):
        parts = batch[name].reshape(total, total, -1)  # of each device, for each owner
        assert (parts % total == np.arange(total)[:, None]).all()
        known = parts[parts < NONE]
        whole = build(builder, WHOLE, ROWS, buckets=Buckets(64, 128), key=KEY)
        assert set(known) == set(whole[name][whole[name] < builder.num_rows])
    image = builder.host_features[0]
    tokens, mask = batch["tokens"]["image"], batch["tokens_mask"]["image"]
    for owner, part in enumerate(np.split(np.arange(len(tokens)), total)):
        ids = batch["item_id"][batch["item_mask"]]
        owned = np.unique(ids[ids % total == owner])
        np.testing.assert_array_equal(tokens[part[: len(owned)]], image.tokens[owned])
        np.testing.assert_array_equal(mask[part[: len(owned)]], image.mask[owned])
        assert not mask[part[len(owned) :]].any()


@pytest.mark.parametrize("encode", ["candidates", "all"])
def test_what_is_encoded_is_named_by_its_owner(tiny, encode):
    """`encode_position` counts through what a device owns; the tokens are of just these items."""
    image, total = tiny.dataset.features("image"), 4
    options = {"history_length": 5, "unknown_alpha": 3.0, "unknown_floor": {}}
    builder = BatchBuilder(tiny.dataset, **options, host_features=(image,), encode=encode)
    shards = Shards(0, total, total)
    batch = build(builder, shards, ROWS, buckets=SMALL, key=KEY)
    whole = build(builder, WHOLE, ROWS, buckets=Buckets(64, 128), key=KEY)
    known = whole["item_id"][whole["item_mask"]]
    wanted = np.unique(whole["item_id"][whole["encode_position"][whole["encode_mask"]]])
    names = ("encode_position", "encode_mask")
    position, mask = (batch[name].reshape(total, -1) for name in names)
    tokens = batch["tokens"]["image"].reshape(total, position.shape[1], *image.tokens.shape[1:])
    for owner in range(total):
        owned = known[known % total == owner]
        encoded = owned[position[owner][mask[owner]]]
        np.testing.assert_array_equal(encoded, wanted[wanted % total == owner])
        np.testing.assert_array_equal(tokens[owner][mask[owner]], image.tokens[encoded])
    assert encode == "all" or len(wanted) < len(known)
    assert position.max() < len(batch["item_room"]) // total


def test_rooms_for_what_is_encoded_hold_the_batches_that_were_measured(tiny):
    options = {"history_length": 5, "unknown_alpha": 3.0, "unknown_floor": {}}
    builder = BatchBuilder(tiny.dataset, **options, encode="candidates")
    shards = Shards(0, 4, 4)
    usual = bucket_sizes(builder, [ROWS], shards, 4)
    batch = build(builder, shards, ROWS, buckets=usual, key=KEY)
    assert len(batch["encode_position"]) == 4 * usual.encode <= 4 * usual.own_items


def test_what_is_more_than_usual_takes_the_next_size_and_nothing_is_left_out(builder, recwarn):
    shards = Shards(0, 4, 4)
    usual = bucket_sizes(builder, [ROWS], shards, 4)
    tight = Buckets(4, 4, own_items=4, own_rows=4, unit=4)
    for buckets in (usual, tight):
        batch = build(builder, shards, ROWS, buckets=buckets, key=KEY)
        for name, size in (("item_id", buckets.items), ("item_room", buckets.own_items)):
            assert len(batch[name]) >= 4 * size and len(batch[name]) % 4 == 0
    assert len(build(builder, shards, ROWS, buckets=usual)["item_id"]) == 4 * usual.items
    assert not recwarn.list


class Said:
    """Messages between processes that are threads here."""

    def __init__(self, processes: int):
        self.sent: dict[tuple, list[bytes]] = {}
        self.barrier = threading.Barrier(processes, timeout=60)

    def of(self, me: int) -> "Said.One":
        return Said.One(self, me)

    @dataclasses.dataclass(frozen=True)
    class One:
        said: "Said"
        me: int

        def exchange(self, number: int, about: str, own: list[bytes]) -> list[bytes]:
            assert (number, about, self.me) not in self.said.sent
            self.said.sent[number, about, self.me] = own
            self.said.barrier.wait()
            return [self.said.sent[number, about, k][self.me] for k in range(len(own))]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("size", [4, 64], ids=["more than usual", "usual"])
def test_processes_build_the_parts_of_the_batch_that_one_builds(builder, processes, size):
    buckets = Buckets(size, size, own_items=size, own_rows=size, unit=4)
    whole = Shards(0, 4, 4)
    said, count = Said(processes), 4 // processes

    def part(k: int):
        own = dataclasses.replace(whole, first=k * count, count=count, messages=said.of(k))
        return build(builder, own, ROWS, buckets=buckets, key=KEY, number=3)

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(part, range(processes)))
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    one = build(builder, whole, ROWS, buckets=buckets, key=KEY)
    jax.tree.map(np.testing.assert_array_equal, together, one)
    assert {number for number, _, _ in said.sent} == {3}


def test_examples_of_a_user_stand_together_and_a_training_batch_names_less(planted):
    """It holds the rows of its step all the same; evaluation and whole batches keep their order."""
    dataset = planted
    builder = BatchBuilder(dataset, history_length=4, unknown_alpha=3.0, unknown_floor={})
    options = {"batch_size": 256, "seed": 3, "unit": 4}
    rows = dataset.split_rows("train", builder.label)
    apart = {}
    for order in ("shuffled", "chronological"):
        source = training_source(builder, rows, order=order, shards=Shards(0, 4, 4), **options)
        drawn = rows_of_step(rows, 256, 3, order, 2)
        together = drawn[np.argsort(dataset.interactions["user"][drawn], kind="stable")]
        expected = build(builder, Shards(0, 4, 4), together, buckets=source.buckets, key=rng.numpy_key(3, "unknown", 2))
        jax.tree.map(np.testing.assert_array_equal, source[2], expected)
        as_drawn = build(builder, Shards(0, 4, 4), drawn, buckets=source.buckets, key=KEY)
        apart[order] = source[2]["item_mask"].sum() / as_drawn["item_mask"].sum()
        whole = training_source(builder, rows, order=order, **options)[2]
        np.testing.assert_array_equal(whole["label"], dataset.interactions["label"][drawn])
    assert max(apart.values()) < 0.97, apart
