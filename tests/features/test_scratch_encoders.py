"""config.model.encoders.<set> = "cnn:<name>": what is read, what is drawn, what is refused; and a run that trains one."""

import jax
import numpy as np
import pytest

from configs import lemur as lemur_config
from configs import pictures
from em3_jax import train
from em3_jax.core import trees
from em3_jax.data.format import FeatureSet
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.features import raw_encoders
from em3_jax.features.in_model import How
from em3_jax.features.scratch_encoders import Scratch
from em3_jax.models.encoders import Given
from em3_jax.models.encoders.scratch import SCRATCH, Sizes
from em3_jax.training import experiment
from tests.conftest import user_error

pytestmark = pytest.mark.quickly_compiled

SIZES = Sizes(widths=(4, 6), output=5, category_width=3, mlp=(6, 4))
S = 4
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (S, 2, 6 * 5 * 3), dtype=np.uint8)
MASK = np.array([[1, 1], [1, 0], [0, 0], [1, 1]], bool)
RAW = FeatureSet("image", PIXELS, MASK, {"kind": "image", "encoder": "pixels", "raw": {"shape": [6, 5, 3]}})
TEXTS = FeatureSet("image", PIXELS, MASK, {"kind": "text", "encoder": "words", "raw": {"fields": {}}})
VECTORS = FeatureSet("image", RANDOM.standard_normal((S, 4, 7)), np.repeat(MASK, 2, axis=1), {"kind": "image"})
THREE = FeatureSet("image", VECTORS.tokens[:, :3], VECTORS.mask[:, :3], {"kind": "image"})


def encoder(name: str, features: FeatureSet = RAW, seed: int = 0, categories: int = 0, multipliers=()):
    scratch = Scratch(SIZES, seed, categories)
    how = How(multipliers=multipliers)
    made = raw_encoders.load({"image": f"cnn:{name}"}, [features], how, scratch)
    return made["image"]


def test_pictures_are_read_as_the_net_reads_them():
    """Pixels around 0 at about size 1, a token a picture."""
    made = encoder("cnn")
    found = made.encode(made.params, PIXELS, MASK)
    images = (PIXELS.reshape(-1, 6, 5, 3) / 255 - 0.5) / 0.25
    expected = SCRATCH["cnn"].build(SIZES, 0).apply({"params": made.params}, images.astype(np.float32)).mean
    np.testing.assert_allclose(found.tokens, expected.reshape(S, 2, 5), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.mask, MASK)
    assert found.statistics == {} and np.abs(expected).max() > 0.01


def test_parameters_are_a_function_of_the_seed():
    one, again, other = (encoder("cnn", seed=seed).params for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    assert (one["stem"]["conv"]["kernel"] != other["stem"]["conv"]["kernel"]).any()
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(one))


def test_statistics_are_those_of_pictures_that_are_there_where_their_norm_trains():
    made = encoder("cnn", multipliers=(("stem/norm", 0.0),))
    given = Given(trains=made.trains)
    found = made.encode(made.params, PIXELS, MASK, given).statistics
    norms = {path for path in trees.named_leaves(made.params) if path.endswith(("mean", "var"))}
    left = {path for path in norms if path.startswith("stem/")}
    assert set(trees.named_leaves(found)) == norms - left and left
    other = np.where(MASK[..., None], PIXELS, 255 - PIXELS)
    again = made.encode(made.params, other, MASK, given).statistics
    jax.tree.map(np.testing.assert_array_equal, found, again)


def test_each_picture_has_the_category_of_its_item():
    made = encoder("cscnn", categories=3)
    random = np.random.default_rng(1)
    draw = lambda path, leaf: leaf + random.uniform(0, 0.3, leaf.shape).astype(np.float32)  # noqa: E731
    params = trees.map_named(draw, made.params)  # fresh gates say nothing
    same = np.repeat(PIXELS[:1], S, axis=0)
    category = np.array([1, 2, 1, 1])
    tokens = np.asarray(made.encode(params, same, MASK | True, Given(category=category)).tokens)
    np.testing.assert_allclose(tokens[0], tokens[2], rtol=1e-5)
    assert (np.abs(tokens[0] - tokens[1]).max(axis=-1) > 1e-3).all()


def test_stored_vectors_and_stored_maps_are_read_on():
    """A token a vector; of a map of 2 x 2 one token, where any of its places is there."""
    made = encoder("dicm", VECTORS)
    found = made.encode(made.params, VECTORS.tokens, VECTORS.mask)
    assert found.tokens.shape == (S, 4, 4) and (np.asarray(found.mask) == VECTORS.mask).all()
    made = encoder("hccm", VECTORS, categories=3)
    assert made.params["stem"]["conv"]["kernel"].shape == (3, 3, 7, 4)
    found = made.encode(made.params, VECTORS.tokens, VECTORS.mask, Given(category=np.zeros(S, np.int32)))
    assert found.tokens.shape == (S, 1, 5)
    np.testing.assert_array_equal(found.mask[:, 0], VECTORS.mask.any(axis=1))


@pytest.mark.parametrize(
    ("name", "features", "words"),
    [
        ("resnet", RAW, "config.model.encoders.image=cnn:resnet: no such net; known: cbam, cnn, cscnn, deepctr"),
        ("csnn", RAW, "no such net; did you mean 'cscnn'?"),
        ("cnn", TEXTS, "'image' holds texts, and cnn:* read pictures; leave it out"),
        ("dicm", TEXTS, "'image' holds texts"),
        ("se", VECTORS, "holds vectors; make pictures with `em3 raw --image-size`, or take one of cnn:dicm, cnn:hccm"),
        ("dicm", RAW, "reads the vectors that an encoder has stored, and 'image' holds pictures; make them"),
        ("hccm", RAW, "reads the maps that an encoder has stored"),
        ("cscnn", RAW, "reads the item's category; set config.model.encoder_prior"),
        ("hccm", VECTORS, "reads the item's category; set config.model.encoder_prior"),
    ],
)
def test_what_a_net_cannot_read_is_refused(name, features, words):
    assert words in user_error(encoder, name, features)


def test_a_map_has_to_be_square_and_a_picture_large_enough():
    words = "reads a square map of one picture, and an item of 'image' has 3 tokens; extract it with"
    assert words in user_error(lambda: encoder("hccm", THREE, categories=3))
    assert "pictures of 6 x 5: this VGG halves them 5 times" in user_error(encoder, "vgg16")


def test_pictures_for_nets_from_scratch_are_no_checkpoints(tmp_path):
    words = user_error(raw_encoders.load, {"image": str(tmp_path)}, [RAW])
    assert "'image' was made for encoders that train from scratch; name one of those, cnn:cnn" in words
    words = user_error(raw_encoders.load, {"image": str(tmp_path)}, [VECTORS])
    assert "config.data.features has no raw set of that name" in words


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    root = tmp_path_factory.mktemp("planted") / "data"
    synthetic(root, interactions=2000, users=60, items=50, raw=True)
    return root


def small(config, root):
    length = min(config.data.history_length, 5)
    config.data.update(root=str(root), batch_size=64, history_length=length)
    config.model.backbone_settings.hidden = (8,)
    config.model.cnn.widths = (4, 6)
    config.data.augment.crop = min(config.data.augment.crop, 14)  # of 16
    return config


@pytest.mark.parametrize("variant", sorted(pictures.SYSTEMS))
def test_a_step_moves_the_whole_net(planted, variant):
    """Each of the configs' systems: every parameter of its encoder learns, and so does what its norms have seen."""
    config = small(pictures.get_config(variant), planted)
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    before = jax.tree.map(np.array, state.params["encoders"])
    for k in range(2):  # behind gates that are one at first, nothing moves in the first step
        batch = parts.program.place(parts.work.source[k])
        state, logged = parts.program.train_step(state, parts.work.constants, batch)
    after = trees.named_leaves(state.params["encoders"])
    moved = {path for path, leaf in trees.named_leaves(before).items() if (np.asarray(after[path]) != leaf).any()}
    assert moved == set(after) and np.isfinite(logged["loss"])
    batch = parts.program.place(parts.work.evaluation("valid")[0])
    logits = parts.program.predict(state, batch)
    assert np.isfinite(np.asarray(logits)).all() and np.ptp(np.asarray(logits)) > 0


def test_lemur_reads_a_net_from_scratch_too(planted):
    config = small(lemur_config.get_config(), planted)
    config.data.features = ("raw_image", "raw_text")
    config.model.encoders = {"raw_image": "cnn:se"}
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    before = jax.tree.map(np.array, state.params["encoders"]["raw_image"])
    batch = parts.program.place(parts.work.source[0])
    state, _ = parts.program.train_step(state, parts.work.constants, batch)
    kernel = state.params["encoders"]["raw_image"]["stem"]["conv"]["kernel"]
    assert (np.asarray(kernel) != before["stem"]["conv"]["kernel"]).any()


def test_a_run_goes_on_with_its_own_net_alone_and_one_that_stands_still_is_told(planted, tmp_path):
    config = small(pictures.get_config("se"), planted)
    config.train.update({"epochs": 0.1, "eval_every": 0, "patience": 0})
    config.optim.multipliers = (("^encoders/", 0.0),)
    with pytest.warns(
        UserWarning, match="encoders/raw_image: frozen at fresh, random values, by .*encoder_trains; set"
    ):
        train.train(config.to_dict(), tmp_path / "run")
    config.model.encoders = {"raw_image": "cnn:cbam"}
    words = user_error(train.train, config.to_dict(), tmp_path / "run")
    assert "belongs to another config (config.model.encoders.raw_image: cnn:se -> cnn:cbam)" in words


@pytest.mark.parametrize("name", ["cnn", "hccm", "dicm"])
def test_stored_inputs_of_another_encoders_upper_part_are_no_pictures(name):
    """They are bits of numbers, u16, which a net would have read as pixels."""
    manifest = {
        "kind": "image",
        "encoder": "lite",
        "below": "block11",
        "raw": {"shape": [2, 2, 3], "numbers": "float16"},
    }
    maps = FeatureSet("maps", np.zeros((4, 1, 12), np.uint16), np.ones((4, 1), bool), manifest)
    folders = {"maps": f"cnn:{name}"}
    refused = user_error(lambda: raw_encoders.load(folders, [maps], scratch=Scratch(SIZES, categories=3)))
    assert "'maps' holds what block11 of lite reads, and only that encoder goes on" in refused
