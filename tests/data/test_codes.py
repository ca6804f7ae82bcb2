"""Code sets on disk, their statistics by hand, and the item fields that they become."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data import codes as of_codes
from em3_jax.data.codes import read_codes, read_kept, statistics, with_codes, write_codes
from em3_jax.data.format import hash_data, open_dataset
from tests.conftest import user_error
from tests.tiny import ITEMS, write_tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny dataset with a code set `sid` of 2 levels of 5, item 3 having none."""
    dataset = write_tiny(tmp_path_factory.mktemp("codes") / "data").dataset
    codes = np.random.default_rng(0).integers(0, 5, (ITEMS, 2))
    mask = np.arange(ITEMS) != 3
    write(dataset, "sid", codes, mask)
    return dataset, codes, mask


def write(dataset, name, codes, mask, overwrite=False, **facts):
    manifest = {"kind": "rq_kmeans", "levels": 2, "size": 5, "seed": 0, "features": {"image": {}}} | facts
    books = {"codebooks": np.arange(20, dtype=np.float32).reshape(2, 5, 2)}
    digest = np.zeros((ITEMS, 16), np.uint8)
    return write_codes(dataset, name, codes, mask, books, digest, manifest, overwrite)


def test_statistics_by_hand():
    codes = np.array([[0, 1], [0, 1], [0, 2], [1, 1], [0, 1], [3, 3]])
    mask = np.array([True, True, True, True, True, False])
    found = statistics(codes, mask, 4)
    assert found["usage"] == [0.5, 0.5]
    entropy = [0.8 * np.log(1 / 0.8) + 0.2 * np.log(1 / 0.2)] * 2
    np.testing.assert_allclose(found["perplexity"], np.exp(entropy), atol=0.005)
    assert (found["items"], found["colliding"], found["largest_collision"]) == (5, 3, 3)


def test_statistics_without_items_and_with_all_codes_evenly_used():
    none = statistics(np.zeros((2, 1), int), np.zeros(2, bool), 4)
    assert (none["items"], none["colliding"], none["largest_collision"]) == (0, 0, 0)
    even = statistics(np.arange(8)[:, None], np.ones(8, bool), 8)
    assert even["usage"] == [1.0] and even["perplexity"] == [8.0] and even["colliding"] == 0


def test_what_is_written_is_read_and_the_hash_of_the_data_stays(world):
    dataset, codes, mask = world
    found = read_codes(dataset, "sid")
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.codes[mask], codes[mask])
    assert not found.codes[3].any() and found.codes.dtype == np.uint8  # half of one each
    assert found.manifest["statistics"]["items"] == ITEMS - 1
    assert hash_data(dataset.root) == dataset.meta["data_hash"]
    kept = read_kept(dataset.root / "codes" / "sid")
    np.testing.assert_array_equal(kept.codes, found.codes)
    assert kept.place["5"] == 5 and kept.codebooks["codebooks"].shape == (2, 5, 2)


def test_item_fields_have_the_codes_after_those_of_the_dataset(world):
    dataset, codes, mask = world
    coded = with_codes(dataset, [read_codes(dataset, "sid")])
    own = len(dataset.fields.item)
    assert coded.fields.item[:own] == dataset.fields.item
    assert [(field.name, field.size) for field in coded.fields.item[own:]] == [("sid_1", 7), ("sid_2", 7)]
    np.testing.assert_array_equal(coded.item_field_ids[:, :-2], dataset.item_field_ids)
    np.testing.assert_array_equal(coded.item_field_ids[mask, -2:], codes[mask] + FIRST_KNOWN)
    assert not coded.item_field_ids[3, -2:].any()  # padding
    words = coded.meta["vocabularies"]["item"]["sid_2"]
    assert len(words) == 5 and words[4].endswith(" 4")
    assert "item" not in dataset.meta["vocabularies"]  # the dataset itself is as it was


def test_values_name_their_codebooks(world):
    dataset = world[0]
    one = read_codes(dataset, "sid")
    other = one._replace(manifest=one.manifest | {"codebooks": "0" * 64})
    first, second = (with_codes(dataset, [s]).meta["vocabularies"]["item"]["sid_1"] for s in (one, other))
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("levels", "size", "stored"),
    [(5, 16, 3), (12, 16, 6), (24, 4, 6), (6, 256, 6), (3, 700, 4), (1, 2, 1), (2, 1 << 16, 4)],
)
def test_codes_take_as_many_bits_as_they_need(world, levels, size, stored):
    dataset, _, mask = world
    codes = np.random.default_rng(1).integers(0, size, (ITEMS, levels))
    codes[0] = size - 1
    folder = write(dataset, "packed", codes, mask, overwrite=True, size=size, levels=levels)
    assert np.load(folder / "codes.npy").shape == (ITEMS, stored) == (ITEMS, of_codes.num_bytes(levels, size))
    found = read_codes(dataset, "packed").codes
    np.testing.assert_array_equal(found[mask], codes[mask])
    assert found.dtype == (np.uint8 if size <= 256 else np.uint16)


def test_mistakes_are_one_line(world, tmp_path):
    dataset, codes, mask = world
    assert "no such code set; this dataset has: " in user_error(read_codes, dataset, "sids")
    assert "name in use" in user_error(write, dataset, "sid", codes, mask)
    assert "letters, digits" in user_error(write, dataset, "../sid", codes, mask)
    assert "no code set" in user_error(read_kept, tmp_path)
    other = dataclasses.replace(dataset, meta=dataset.meta | {"item_hash": "another"})
    assert "--from" in user_error(read_codes, other, "sid")
    fields = dataclasses.replace(dataset.fields, item=(*dataset.fields.item, dataset.fields.item[1]))
    named = read_codes(dataset, "sid")._replace(name="x")
    clash = dataclasses.replace(
        dataset, fields=fields, item_table=dataset.item_table.append_column("x_1", dataset.item_table["category"])
    )
    assert "'x_1'" in user_error(with_codes, clash, [named])


@pytest.mark.parametrize("damage", ["codes.npy", "codebooks.npz", "items.parquet", "manifest.json", "range"])
def test_damaged_sets_are_refused(world, tmp_path, damage):
    dataset = open_dataset(shutil.copytree(world[0].root, tmp_path / "data"))
    folder = dataset.root / "codes" / "sid"
    if damage == "range":
        np.save(folder / "codes.npy", np.full((ITEMS, 1), 0b10100000, np.uint8))
        assert "a code is 5, of 5" in user_error(read_codes, dataset, "sid")
    elif damage == "manifest.json":
        (folder / damage).write_text(json.dumps({"kind": "rq_kmeans"}))
        assert "not that of a code set" in user_error(read_codes, dataset, "sid")
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:-30])
        user_error(read_kept, folder)


def test_a_killed_replacement_leaves_the_old_set(world, tmp_path, monkeypatch):
    dataset = open_dataset(shutil.copytree(world[0].root, tmp_path / "data"))
    before = read_codes(dataset, "sid").manifest["hash"]
    monkeypatch.setattr(of_codes, "publish_set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write(dataset, "sid", world[1] * 0, world[2], overwrite=True)
    assert read_codes(dataset, "sid").manifest["hash"] == before
    assert not [path.name for path in (dataset.root / "codes").iterdir() if path.name.startswith(".")]
