"""Feature sets in the making: they go on where they stopped, and appear whole."""

import json

import numpy as np
import pytest

from em3_jax.data import features
from em3_jax.data.checks import check_dataset
from em3_jax.data.features import FeatureWriter, feature_folder, write_features
from em3_jax.data.format import Dataset
from tests import raw_items
from tests.conftest import user_error

SLOTS, UNIT = (raw_items.ITEMS, 2), (3, 4)
BATCHES = np.array_split(np.random.default_rng(0).permutation(SLOTS[0] * SLOTS[1]), 6)


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    raw_items.write_items(tmp_path)
    return raw_items.prepare(tmp_path, tmp_path / "data")


def open_writer(dataset, plan="a", dtype="float16", discard=False) -> FeatureWriter:
    return FeatureWriter(dataset, "x", {"plan": plan}, slots=SLOTS, unit=UNIT, dtype=dtype, discard=discard)


def write_batch(writer: FeatureWriter, k: int) -> None:
    random = np.random.default_rng(k)
    shape = (len(BATCHES[k]), *UNIT)
    mask = random.random(shape[:2]) < 0.7
    digest = random.integers(0, 256, (shape[0], 16), np.uint8)
    writer.write(BATCHES[k], random.normal(size=shape).astype(writer.tokens.dtype), mask, digest, [[k, "fault"]])


def complete(dataset, **settings) -> dict[str, bytes]:
    """Writes what is left to write; file -> bytes of the finished set."""
    with open_writer(dataset, **settings) as writer:
        for k in range(writer.done, len(BATCHES)):
            write_batch(writer, k)
        assert writer.notes == [[[k, "fault"]] for k in range(len(BATCHES))]
        writer.finish({"kind": "image"}, [("i1", "a file", "a\tfault\nof two lines")])
    folder = dataset.root / "features" / "x"
    assert not list(folder.parent.glob(".*"))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(dtype) -> tuple[np.ndarray, np.ndarray]:
    tokens, mask = np.zeros((SLOTS[0] * SLOTS[1], *UNIT), dtype), np.zeros((SLOTS[0] * SLOTS[1], UNIT[0]), bool)
    for k, units in enumerate(BATCHES):
        random = np.random.default_rng(k)
        mask[units] = random.random((len(units), UNIT[0])) < 0.7
        random.integers(0, 256, (len(units), 16), np.uint8)
        tokens[units] = np.where(mask[units][..., None], random.normal(size=(len(units), *UNIT)).astype(dtype), 0)
    return tokens.reshape(SLOTS[0], -1, UNIT[1]), mask.reshape(SLOTS[0], -1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_what_is_written_is_what_is_read(dataset, dtype):
    files = complete(dataset, dtype=dtype)
    found = dataset.features("x")
    tokens, mask = expected(features.STORAGE[dtype])
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.tokens, tokens)
    assert found.tokens.dtype == tokens.dtype
    assert found.manifest["counts"]["items_with_content"] == mask.any(axis=1).sum()
    assert files["report.tsv"].decode().splitlines()[1] == "i1\ta file\ta fault of two lines"
    check_dataset(dataset)


def test_going_on_gives_the_same_bytes(dataset):
    whole = complete(dataset)
    feature_folder(dataset.root, "x").rename(dataset.root / "aside")
    for stop in (0, 2, 5):
        with pytest.raises(KeyboardInterrupt), open_writer(dataset) as writer:
            assert writer.done <= stop
            for k in range(writer.done, stop):
                write_batch(writer, k)
            raise KeyboardInterrupt
    assert complete(dataset) == whole


@pytest.mark.parametrize("tail", [b'{"notes": [[2, "fau', b"\x00\x00\n", b'{"note": []}\n', b"[]\n"])
def test_a_torn_journal_is_cut_to_its_whole_lines(dataset, tail):
    with open_writer(dataset) as writer:
        for k in range(2):
            write_batch(writer, k)
    path = dataset.root / "features" / ".x.partial" / "journal.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    with open_writer(dataset) as writer:
        assert writer.done == 2


def test_an_unfinished_set_of_another_plan_is_kept_or_discarded(dataset):
    with open_writer(dataset) as writer:
        write_batch(writer, 0)
    message = user_error(lambda: open_writer(dataset, plan="b"))
    assert "differs in: plan" in message and "--overwrite" in message
    with open_writer(dataset) as writer:
        assert writer.done == 1
    with open_writer(dataset, plan="b", discard=True) as writer:
        assert writer.done == 0 and not writer.tokens.any()


def test_two_writers_of_one_name(dataset):
    with open_writer(dataset):
        assert "has been writing it since" in user_error(lambda: open_writer(dataset))
    with open_writer(dataset) as writer:
        assert writer.done == 0


def test_values_that_the_type_cannot_hold(dataset):
    with open_writer(dataset) as writer:
        tokens = np.full((1, *UNIT), np.inf, np.float16)
        ok, digest = np.ones((1, UNIT[0]), bool), np.zeros((1, 16), np.uint8)
        assert "bfloat16" in user_error(writer.write, np.array([0]), tokens, ok, digest, [])
        tokens[..., -1] = np.nan  # which no other dtype mends
        refused = user_error(writer.write, np.array([0]), tokens, ok, digest, [])
        assert "the encoder gives NaN" in refused and "--dtype" not in refused
        writer.write(np.array([0]), tokens, ~ok, digest, [])  # masked: not worth a word


def test_killed_between_the_two_renames_of_a_replacement(dataset):
    whole = complete(dataset)
    folder = dataset.root / "features"
    (folder / "x").rename(folder / ".x.old")
    assert feature_folder(dataset.root, "x").exists()
    assert {path.name: path.read_bytes() for path in (folder / "x").iterdir()} == whole


def test_a_set_of_other_shape_than_its_manifest_is_refused(dataset):
    complete(dataset)
    path = dataset.root / "features" / "x" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}))
    assert "manifest says float32" in user_error(dataset.features, "x")


def test_preparing_again_keeps_what_was_extracted(dataset, tmp_path):
    tokens, mask = np.ones((raw_items.ITEMS, 1, 2), np.float32), np.ones((raw_items.ITEMS, 1), bool)
    for name, facts in (("mine", {"kind": "image"}), ("the_readers", {})):
        write_features(dataset.root, name, tokens, mask, facts, dataset.meta["item_hash"])
    again = raw_items.prepare(tmp_path, dataset.root, overwrite=True)
    assert np.array_equal(again.features("mine").tokens, tokens)
    assert "no such feature set" in user_error(again.features, "the_readers")
    raw_items.write_items(tmp_path, items=raw_items.ITEMS + 1)
    more = raw_items.prepare(tmp_path, dataset.root, overwrite=True)
    assert "--update" in user_error(more.features, "mine")


def test_a_title_that_changes_makes_features_out_of_date(dataset, tmp_path):
    tokens, mask = np.ones((raw_items.ITEMS, 1, 2), np.float32), np.ones((raw_items.ITEMS, 1), bool)
    write_features(dataset.root, "mine", tokens, mask, {"kind": "text"}, dataset.meta["item_hash"])
    items = tmp_path / "items.csv"
    items.write_text(items.read_text("utf-8").replace("i3,", "i3,another "), "utf-8")
    assert "--update" in user_error(raw_items.prepare(tmp_path, dataset.root, overwrite=True).features, "mine")
