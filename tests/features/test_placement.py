"""Which token slots of which feature sets a run reads."""

import numpy as np
import pytest

from em3_jax.core import sharding
from em3_jax.data.format import FeatureSet
from em3_jax.features import placement
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config


@pytest.mark.parametrize(
    ("name", "slots"),
    [("image", [0, 1, 2, 3]), ("image[0]", [0]), ("image[-1]", [3]), ("image[:2]", [0, 1]), ("image[1:]", [1, 2, 3])],
)
def test_slots_are_those_of_python(planted, name, slots):
    (found,) = placement.load_features(planted, (name,))
    whole = planted.features("image")
    np.testing.assert_array_equal(found.tokens, whole.tokens[:, slots])
    np.testing.assert_array_equal(found.mask, whole.mask[:, slots])
    assert (found.name, found.manifest) == (whole.name, whole.manifest)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("image[4]",), "'image[4]' takes no slot; image has 4, counted from 0"),
        (("image[2:1]",), "takes no slot"),
        (("image[]",), "takes no slot"),
        (("image[0", "text"), "'image[0' is no feature set; write name, name[slot] or name[first:end]"),
        (("image[0]", "image[1]"), "'image' is named twice"),
        (("video[0]",), "video: no such feature set"),
    ],
)
def test_slots_that_are_not_there_are_one_line(planted, names, message):
    assert message in user_error(placement.load_features, planted, names)


@pytest.mark.parametrize("where", ["device", "host"])
def test_a_run_on_one_slot_sees_that_slot_alone(planted, where):
    config = small_config(planted, data__placement=where)
    config.data.features = ("image[0]",)
    parts = experiment.build(config.to_dict())
    batch = parts.work.source[0]
    shape = batch["tokens"]["image"].shape if where == "host" else parts.work.constants["image"][0].shape
    assert shape[1:] == (1, planted.features("image").tokens.shape[2])
    assert np.isfinite(parts.program.predict(parts.program.init(), batch)).all()


def test_tables_are_standardised_in_blocks_that_do_not_show(monkeypatch):
    """Not by the number of items; and the array that was placed, perhaps a mapped file, stays as it was."""
    monkeypatch.setattr(placement, "_BLOCK", 8)
    random = np.random.default_rng(0)
    tokens, mask = random.normal(3, 2, (21, 4, 16)).astype(np.float16), random.random((21, 4)) < 0.8
    before, mesh = tokens.copy(), sharding.make_mesh(1, 1)
    tables = {
        items: placement.to_device([FeatureSet("image", tokens[:items], mask[:items], {})], mesh)["image"]
        for items in (1, 7, 8, 9, 16, 21)
    }
    exact = tokens.astype(np.float64)
    exact = np.where(mask[..., None], (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True), 0)
    for items, (table, placed_mask) in tables.items():
        np.testing.assert_allclose(table, exact[:items], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(placed_mask, mask[:items])
        if items >= 8:
            np.testing.assert_array_equal(table, tables[21][0][:items])
    np.testing.assert_array_equal(tokens, before)


def test_raw_tables_are_not_copied(monkeypatch):
    """Raw pixels and words are mapped files, perhaps larger than memory allows twice."""
    monkeypatch.setattr(placement, "standardise", None)  # not called
    pixels = np.arange(60, dtype=np.uint8).reshape(5, 1, 12)
    raw = FeatureSet("raw_image", pixels, np.ones((5, 1), bool), {})
    np.testing.assert_array_equal(placement.to_device([raw], sharding.make_mesh(1, 1))["raw_image"][0], pixels)


@pytest.mark.parametrize("width,left", [(1, "nothing"), (2, "two signs"), (3, None)])
def test_tokens_too_narrow_to_be_standardised_are_refused(tiny, monkeypatch, width, left):
    """Of one number nothing is left, and of two their order; three keep a direction."""
    random, items = np.random.default_rng(0), tiny.dataset.num_items
    tokens = random.standard_normal((items, 1, width)).astype(np.float32)
    price = FeatureSet("price", tokens, np.ones((items, 1), bool), {"hash": ""})
    monkeypatch.setattr(placement, "load_features", lambda dataset, names: [price])
    load = lambda: placement.load_content(tiny.dataset, ("price",), "device", sharding.make_mesh(1, 1))  # noqa: E731
    if left is None:
        table = np.asarray(load().tables["price"][0])
        assert len(np.unique(table.round(3), axis=0)) > items // 2
    else:
        message = user_error(load)
        assert f"'price' are {width} wide, and {left}" in message and "--item-fields" in message
