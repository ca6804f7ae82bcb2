"""Stored lower parts of encoders: what is above reads them, and gives what the whole encoder gives."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import trees
from em3_jax.data.format import open_dataset
from em3_jax.features import convert, extract, in_model, lower, raw_encoders
from em3_jax.training import experiment
from tests import raw_items
from tests.conftest import user_error
from tests.features.test_dial import CONFIGS
from tests.features.test_in_model import RESNET

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
CUTS = {"resnet": "stage1_block0", "mobilenet_v2": "block15", "dinov2": "layer1"}
TOLERANCE = {"float16": 1e-3, "float32": 1e-5}


@pytest.mark.parametrize("kind", CUTS)
def test_the_upper_part_on_stored_maps_gives_what_the_whole_gives(kind):
    config = RESNET if kind == "resnet" else CONFIGS[kind] | {"model_type": kind}
    module = convert.encoder_from_config(config)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    normalised = lambda pixels: pixels / 128.0 - 1  # noqa: E731
    params = jax.jit(module.init)(jax.random.key(0), normalised(pixels))["params"]
    whole = jax.jit(module.apply)({"params": params}, normalised(pixels))
    above, own = lower.upper(module, params, CUTS[kind])
    assert 0 < len(own) < len(params) and above.parts()[0].name == CUTS[kind]
    shape = lower.shape_of(module, CUTS[kind], params, jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    for dtype, tolerance in TOLERANCE.items():
        bits, mask = jax.jit(lower.lower(module, CUTS[kind], normalised, dtype))(params, pixels)
        assert bits.dtype == lower.BITS[dtype] and bits.shape == (2, 1, np.prod(shape)) and mask.all()
        found = jax.jit(above.apply)({"params": own}, lower.numbers(bits.reshape(2, *shape), dtype))
        scale = float(jnp.abs(whole.tokens).max())
        np.testing.assert_allclose(found.tokens / scale, whole.tokens / scale, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.mean / scale, whole.mean / scale, rtol=0, atol=tolerance)
        assert scale > 1e-4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures as the raw set "image", and their maps, f16 and f32, as "image16" and "image32"."""
    data = raw_items.write_pictures(tmp_path_factory.mktemp("pictures"))
    with warnings.catch_warnings(action="ignore"):
        for dtype in ("float16", "float32"):
            stored(data, name=f"image{dtype[-2:]}", dtype=dtype)
    return data


def stored(data, **settings) -> dict:
    settings = {"below": "stage1_block0", "encoder": data.parent / "resnet", "random_weights": 0} | settings
    return extract.extract(data, modality="image", images=data.parent / "photos", **settings)


def test_what_a_set_of_maps_says_of_itself(data):
    maps, pictures = (open_dataset(data).features(name) for name in ("image16", "image"))
    assert maps.manifest["below"] == "stage1_block0" and maps.is_raw
    assert maps.manifest["raw"] == {"slots": 1, "shape": [4, 4, 6], "numbers": "float16"}
    assert maps.tokens.dtype == np.uint16 and maps.tokens.shape == (raw_items.ITEMS, 1, 96)
    np.testing.assert_array_equal(maps.mask, pictures.mask)
    same = ("encoder", "weights_hash", "random_weights", "preprocessing", "pooling")
    assert all(maps.manifest[name] == pictures.manifest[name] for name in same)
    assert np.isfinite(maps.tokens.view(np.float16)).all() and maps.tokens.view(np.float16).std() > 0.1


def renamed(tree, name: str):
    """A tree of parameters whose parts for the feature set "image" are called after another one."""
    if not isinstance(tree, dict):
        return tree
    return {key.replace("image", name): renamed(leaf, name) for key, leaf in tree.items()}


def test_training_on_maps_runs_the_upper_part_alone_and_scores_what_the_whole_scores(data):
    folder = str(data.parent / "resnet")

    def build(name: str) -> experiment.Experiment:
        config = raw_items.small_ranking(data, **{name: folder})
        config.model.encoder_trains = {name: "last 2"}
        return experiment.build(config.to_dict())

    whole, half, single = map(build, ("image", "image16", "image32"))
    state = whole.program.init()
    batch = whole.work.evaluation("valid")[0]
    logits = np.asarray(whole.program.predict(state, batch))
    for parts, name, tolerance in ((half, "image16", 1e-3), (single, "image32", 1e-5)):
        own = parts.program.init()
        assert {group.split("_")[0] for group in own.params["encoders"][name]} == {"stage1"}
        same = {key: leaf for key, leaf in state.params.items() if key != "encoders"}
        same = renamed(same, name)
        own = own.replace(params=same | {"encoders": own.params["encoders"]}, tables=state.tables)
        np.testing.assert_allclose(parts.program.predict(own, batch), logits, rtol=0, atol=tolerance)
    before = jax.device_get(half.program.init())
    after, _ = half.program.train_step(
        half.program.init(), half.work.constants, half.program.place(half.work.source[0])
    )
    after = trees.named_leaves(after.params["encoders"])
    assert all(
        (np.asarray(after[name]) != leaf).any() for name, leaf in trees.named_leaves(before.params["encoders"]).items()
    )


def test_what_cannot_be_cut_or_read_is_said_in_a_line(data, tmp_path):
    assert "did you mean 'stage1_block1'?" in user_error(lambda: stored(data, name="x", below="stage1_block11"))
    assert "no such part, or nothing of it lies below" in user_error(lambda: stored(data, name="x", below="stem"))
    assert "without --raw" in user_error(lambda: stored(data, name="x", raw=True))
    assert "float16 or float32" in user_error(lambda: stored(data, name="x", dtype="bfloat16"))
    swin = raw_items.write_swin(tmp_path / "swin")
    assert "take ResNet" in user_error(lambda: stored(data, name="x", encoder=swin, below="norm", image_size=16))
    config = raw_items.small_ranking(data, image16=str(data.parent / "resnet"))
    config.data.augment.mirror = True
    assert "holds maps below stage1_block0" in user_error(experiment.build, config.to_dict())
    config = raw_items.small_ranking(data, image16=str(data.parent / "resnet"))
    config.model.encoder_trains = {"image16": "last 3"}
    assert "from 1 to 2, its blocks" in user_error(experiment.build, config.to_dict())


def test_maps_of_other_weights_are_refused(data, monkeypatch):
    """As raw pictures are: the manifest has the hash of the weights below."""
    features = open_dataset(data).features("image16")
    features.manifest.update(random_weights=None, weights_hash="0" * 64)
    monkeypatch.setattr(convert, "weights_hash", lambda folder: "1" * 64)
    message = user_error(raw_encoders.load, {"image16": str(data.parent / "resnet")}, [features], in_model.PLAINLY)
    assert "are not those for which 'image16' was made (hash 000000000000)" in message
