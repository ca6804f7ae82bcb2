"""Events whose content is most like the candidate's: against a plain loop, kept beside the dataset, in batches."""

import dataclasses
import errno
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core.segments import Chooser, most_similar
from em3_jax.data import soft_search
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.buckets import Buckets
from em3_jax.data.features import write_features
from em3_jax.data.readers.table import table
from em3_jax.data.segments import segments
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
ROWS, ITEMS, K = 1200, 60, 6
BARE, TWIN, NO_CONTENT = 7, 8, 9


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A user with a long history and others; two items look alike, one has no content."""
    folder, random = tmp_path_factory.mktemp("soft"), np.random.default_rng(0)
    user = np.where(random.random(ROWS) < 0.3, 0, random.integers(1, 40, ROWS))
    log = {"user": user, "item": np.append(np.arange(ITEMS), random.integers(0, ITEMS, ROWS - ITEMS))}
    log |= {"time": np.arange(ROWS), "label": random.integers(0, 2, ROWS)}
    pq.write_table(pa.table(log), folder / "log.parquet")
    dataset = table(folder / "data", interactions=folder / "log.parquet", events="all", split="0.7,0.15,0.15")
    row = {int(one): k for k, one in enumerate(dataset.item_table.column("id").to_pylist())}
    tokens = random.standard_normal((ITEMS, 2, 5)).astype(np.float16)
    tokens[row[TWIN]] = tokens[row[BARE]]
    mask = np.ones((ITEMS, 2), bool)
    mask[row[NO_CONTENT]], mask[row[3], 1] = False, False
    for name, width in (("look", 5), ("sound", 3)):
        write_features(dataset.root, name, tokens[..., :width], mask, {}, dataset.meta["item_hash"])
    write_features(
        dataset.root, "pixels", np.zeros((ITEMS, 1, 3), np.uint8), mask[:, :1], {"raw": {}}, dataset.meta["item_hash"]
    )
    return dataset


def plain_vectors(dataset, names) -> np.ndarray:
    parts = []
    for name in names:
        one = dataset.features(name)
        x = one.tokens.astype(np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        total = (x * one.mask[..., None]).sum(1)
        parts.append(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9))
    whole = np.concatenate(parts, axis=1)
    return whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-9)


def plainly(dataset, vectors, row: int, within: int) -> list[int]:
    """The K events of the largest cosine, of equal ones the newest, oldest first."""
    columns, item = dataset.interactions, dataset.events["item"]
    start, end = int(columns["history_start"][row]), int(columns["history_end"][row])
    candidate = vectors[columns["item"][row]]
    places = range(max(start, end - within) if within else start, end)
    found = [(round(float(vectors[item[p]] @ candidate), 5), p) for p in places if vectors[item[p]].any()]
    return sorted(p for _, p in sorted(found)[-K:]) if candidate.any() else []


@pytest.mark.parametrize("within, names", [(0, ("look",)), (25, ("look", "sound"))])
def test_events_are_those_of_a_plain_loop(shop, within, names, monkeypatch):
    monkeypatch.setattr(soft_search, "AT_ONCE", 400)  # several blocks of the one with a long history
    parts = segments(shop, 4, "", {}, "", K, within, names)
    segment, vectors = parts.parts[0], plain_vectors(shop, names)
    columns, rows = shop.interactions, np.arange(0, ROWS, 3)
    given = [columns[name][rows] for name in ("item", "history_start", "history_end")]
    search = parts.indexes(shop)[segment.seeks]
    place, mask = search(segment, *given)
    expected = [plainly(shop, vectors, row, within) for row in rows]
    assert [place[k][mask[k]].tolist() for k in range(len(rows))] == expected
    assert (mask[:, 1:] >= mask[:, :-1]).all(), "at the end, of long and short histories"
    assert {len(one) for one in expected} == set(range(K + 1))
    kept = search.of_dataset(segment, shop)[rows]
    np.testing.assert_array_equal(np.where(mask, given[2][:, None] - place, 0), kept)
    # A service, which has one user's events and no index, chooses the same.
    for k in range(0, len(rows), 7):
        start, end = int(given[1][k]), int(given[2][k])
        slot = Chooser([segment], {}, parts.vectors)(shop.events["item"][start:end], {}, given[0][k : k + 1])[0]
        assert (start + slot[slot >= 0]).tolist() == expected[k]
        np.testing.assert_array_equal(slot >= 0, mask[k])


def test_of_equal_cosines_the_newest_are_taken():
    random = np.random.default_rng(1)
    for length in (1, 3, 8):
        cosine = random.integers(-2, 3, (50, 8)).astype(np.float32)
        cosine[random.random(cosine.shape) < 0.3] = -np.inf
        place, mask = most_similar(cosine, length)
        for row, one in enumerate(cosine):
            some = [k for k in np.lexsort((np.arange(8), one)) if one[k] > -np.inf]
            assert place[row][mask[row]].tolist() == sorted(some[-length:])
            assert mask[row].tolist() == sorted(mask[row].tolist()), "right-aligned"


def test_what_is_found_is_kept_beside_the_dataset_and_read_by_batches(shop, monkeypatch):
    def builder():
        parts = segments(shop, 3, "", {}, "", 5, 0, ("look",))
        return BatchBuilder(shop, history_length=3, unknown_alpha=0.0, unknown_floor={}, segments=parts)

    rows, buckets = np.arange(900, 964), Buckets(64, 128)
    first, other = builder(), builder()
    batch = first(rows, buckets=buckets)
    assert batch["history_position"].shape == (64, 8)
    monkeypatch.setattr(soft_search, "content_vectors", None)  # not asked for again
    again = other(rows, buckets=buckets)
    assert len([*(shop.root / "features" / soft_search.FOLDER).glob("*.npy")]) >= 1
    # Rows that are not the dataset's, as those of a file: found when they are asked for.
    view = dataclasses.replace(shop, interactions={name: one[rows] for name, one in shop.interactions.items()})
    sides = (first.user_rows, first.item_rows, (), first.user_numbers, first.item_numbers)
    apart = first.reading(view, *sides)(np.arange(64), buckets=buckets)
    for name, one in batch.items():
        np.testing.assert_array_equal(one, again[name])
        np.testing.assert_array_equal(one, apart[name])


def test_a_full_disk_is_told_before_anything_is_written(shop, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    parts = segments(shop, 3, "", {}, "", 11, 0, ("look",))
    before = {*(shop.root / "features").rglob("*")}
    monkeypatch.setattr(soft_search.os, "posix_fallocate", full)
    search = parts.indexes(shop)[parts.parts[0].seeks]
    assert "free space" in user_error(search.of_dataset, parts.parts[0], shop)
    left = {path for path in (shop.root / "features").rglob("*") if path.is_file()} - before
    assert not left


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__similar_content": ("smell",)}, "no such feature set"),
        ({"data__similar_content": ("pixels",)}, "yet to read"),
        ({"data__similar_content": ("look", "sound", "look")}, "'look' is named twice"),
        ({"data__similar_content": ("look",), "data__similar_by": "category"}, "choose one"),
        ({"data__similar_content": ("look",), "data__similar_length": 9, "data__similar_within": 4}, "is more than"),
        ({"data__similar_within": 4}, "name nothing"),
    ],
)
def test_searches_that_cannot_be(shop, changes, words):
    given = {"model__content": "none", "data__features": (), "model__cic__id_fields": ("item",)}
    config = small_config(shop, **given)
    for name, value in changes.items():
        setattr(config.data, name.removeprefix("data__"), value)
    assert words in user_error(experiment.build, config)
