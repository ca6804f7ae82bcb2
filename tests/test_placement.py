"""Which token slots of which feature sets a run reads."""

import numpy as np
import pytest

from em3_jax import experiment, placement
from tests.conftest import user_error
from tests.test_train import small_config


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
    parts = experiment.build(config.to_dict(), lambda rows, size: 1)
    batch = parts.source[0]
    shape = batch["tokens"]["image"].shape if where == "host" else parts.constants["image"][0].shape
    assert shape[1:] == (1, planted.features("image").tokens.shape[2])
    assert np.isfinite(parts.predict(parts.init(), batch)).all()
