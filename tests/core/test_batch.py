"""core.batch: batches as they are built have the keys, dtypes and shapes of the schema alone."""

import numpy as np
import pytest

from em3_jax.core.batch import CATALOGUE, CLICKS, PAIRS, REQUEST, Keys
from em3_jax.core.types import WHOLE, Batch, Shards
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.blocks import build
from em3_jax.data.catalogue import CataloguePass, CatalogueSource
from em3_jax.data.pairs import PairSource, training_pairs
from tests.tiny import FIELDS, TOKENS, with_label

B, T, L = 40, 5, 3
SETTINGS = {"history_length": T, "unknown_alpha": 3.0, "unknown_floor": {}}
GIVEN = {"host_features", "queries"}
COLUMNS = {group: sum(field.length for field in fields) for group, fields in FIELDS.groups()}
WIDTHS = {(axis, name): TOKENS[name][k] for name in TOKENS for k, axis in enumerate("NE")}


def sizes_of(batch: Batch, keys: Keys, given: set[str]) -> dict:
    """Letter -> the one size that it has, of N and E for each feature set.

    The batch is held against the keys of its kind, some of which are there where `given` says so.
    """
    assert set(batch) == {name for name, key in keys.items() if key.given in {"", *given}}
    sizes: dict = {}
    for name, value in batch.items():
        key = keys[name]
        for of, array in value.items() if key.named else [("", value)]:
            assert array.dtype == (key.dtype or array.dtype) and array.ndim == len(key.axes), name
            for axis, size in zip(key.axes, array.shape, strict=True):
                letter = (axis, of) if axis in ("N", "E") else axis
                assert sizes.setdefault(letter, size) == size, f"{name}: {letter}"
        if key.into:
            assert 0 <= value.min() and value.max() < len(batch[key.into])
    return sizes


def contents(tiny, given: set[str]) -> tuple:
    return tuple(tiny.dataset.features(name) for name in TOKENS) if "host_features" in given else ()


@pytest.mark.parametrize("shards", [WHOLE, Shards(0, 4, 4)], ids=["whole", "shards"])
@pytest.mark.parametrize("encode", ["none", "candidates", "all"])
@pytest.mark.parametrize(
    "given", [set(), {"host_features"}, {"queries"}, GIVEN], ids=lambda names: "+".join(sorted(names)) or "neither"
)
def test_clicks(tiny, given, encode, shards):
    queries = ("slot", np.ones((5, L), np.int32)) if "queries" in given else None
    options = {"encode": encode, "queries": queries, "host_features": contents(tiny, given)}
    builder = BatchBuilder(tiny.dataset, **SETTINGS, **options)
    buckets = Buckets(64, 128, own_items=32, own_rows=64)
    batch = build(builder, shards, np.arange(B), buckets=buckets, key=np.uint64(7))
    # Queries are read where items are encoded.
    has = given - {"queries"} if encode == "none" else given | {"encode", "groups"}
    expected = {"B": B, "T": T, "S": 64 * shards.total, "R": 128 * shards.total} | COLUMNS
    expected |= WIDTHS if "host_features" in has else {}
    expected |= {"L": L} if "queries" in has else {}
    content = expected["S"]  # or of what a device owns, of all of it or of what may be encoded
    if shards.in_blocks:
        has, content = has | {"in_blocks"}, shards.total * (buckets.encode if encode == "candidates" else 32)
        expected |= {"O": 32 * shards.total, "P": 64 * shards.total}
    expected |= {"C": content} if has & {"host_features", "encode"} else {}
    assert sizes_of(batch, CLICKS, has) == expected


def test_further_labels(tiny):
    """Beside the first; -1 where a row is not part of one."""
    builder = BatchBuilder(with_label(tiny.dataset), **SETTINGS, labels=("buy",))
    batch = builder(np.arange(B), buckets=Buckets(64, 128))
    assert sizes_of(batch, CLICKS, {"labels"})["H"] == 1
    np.testing.assert_array_equal(batch["further"][:, 0], np.array([0.0, 1.0, -1.0])[np.arange(B) % 3])


def test_content_comes_of_the_items_to_encode_alone(tiny):
    given = {"host_features", "encode", "groups"}
    options = {"encode": "candidates", "host_features": contents(tiny, given)}
    builder = BatchBuilder(tiny.dataset, **SETTINGS, **options)
    sizes = sizes_of(builder(np.arange(B), buckets=Buckets(64, 128, 40)), CLICKS, given)
    assert (sizes["S"], sizes["C"]) == (64, 40)


@pytest.mark.parametrize("given", [set(), {"host_features"}], ids=str)
def test_catalogue(tiny, given):
    rows, sets = np.arange(30), contents(tiny, given)
    for source in (CataloguePass(rows, 16, sets), CatalogueSource(rows, 16, 0, sets)):
        sizes = sizes_of(source[1], CATALOGUE, given)
        assert sizes == {"S": 16} | ({"C": 16} | WIDTHS if given else {})


@pytest.mark.parametrize("given", [set(), {"edge_dropout"}], ids=str)
def test_pairs(tiny, given):
    pairs, share = training_pairs(tiny.dataset), 0.5 if given else 0.0
    source = PairSource(pairs, batch_size=16, seed=0, edge_dropout=share)
    sizes, nodes = sizes_of(source[1], PAIRS, given), pairs.num_users + pairs.num_items
    assert sizes["B"] == 16 and sizes.get("V") == (nodes if given else None)


def test_a_request_says_what_a_batch_says_of_each_example():
    for key in REQUEST.values():
        if key.becomes:
            same = CLICKS[key.becomes]
            assert key.dtype == same.dtype and same.axes in (key.axes, ["B", *key.axes])
