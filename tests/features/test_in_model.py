"""Encoders in the model, by themselves: chunks, categories, views of pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.config.schema.ranking import Augment
from em3_jax.core import trees
from em3_jax.features import augment, convert, in_model
from em3_jax.models.encoders import STATISTICS, Given
from tests.conftest import user_error

SIDE, ITEMS, SLOTS = 12, 7, 2
RESNET = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [6, 8], "depths": [1, 2], "layer_type": "basic"}


@pytest.fixture(scope="module")
def encoder() -> tuple:
    """(module, parameters) of a small ResNet."""
    module = convert.encoder_from_config(RESNET)
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    return module, params


def made(encoder: tuple, **how) -> in_model.RawEncoder:
    module, params = encoder

    def function(params, pixels, given):
        found, changed = module.apply({"params": params}, pixels / 128.0 - 1, given, mutable=[STATISTICS])
        return (found.tokens, found.mask), changed.get(STATISTICS, {})

    return in_model.of_images("image", params, module.parts(), function, (SIDE, SIDE, 3), in_model.How(**how))


def content(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (ITEMS, SLOTS, SIDE * SIDE * 3), np.uint8)
    return pixels, random.random((ITEMS, SLOTS)) < 0.8


def loss_of(encoder: in_model.RawEncoder, trains: bool):
    pixels, mask = content()

    def loss(params):
        given = Given(trains=encoder.trains if trains else None)
        found = encoder.encode(params, pixels, mask, given)
        weight = jnp.arange(found.tokens.size, dtype=jnp.float32).reshape(found.tokens.shape) % 7 - 3
        return jnp.sum(found.tokens * found.mask[..., None] * weight) / 100, found.statistics

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("devices", [1, 7, 2])
def test_chunks_give_the_values_and_gradients_of_the_whole(encoder, devices):
    """7 items of 2 pictures, 3 of a device at once: chunks are filled up; 14 do not divide over 4 devices, but over 2."""
    params = encoder[1]
    whole, one = (loss_of(made(encoder, **how), False)(params) for how in ({}, {"chunk": 3, "devices": devices}))
    np.testing.assert_allclose(one[0][0], whole[0][0], rtol=1e-5)
    for name, leaf in trees.named_leaves(whole[1]).items():
        np.testing.assert_allclose(trees.named_leaves(one[1])[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_chunk_has_statistics_of_its_own_and_running_ones_are_their_mean(encoder):
    """Ghost batch normalisation: of the first norm, which alone reads the same in both."""
    pixels, mask = content()
    chunked = made(encoder, chunk=ITEMS)  # pictures of a device: two chunks of 7
    given = Given(trains=chunked.trains)
    found = chunked.encode(encoder[1], pixels, mask, given).statistics["stem"]["norm"]
    flat, valid = pixels.reshape(-1, 1, SIDE * SIDE * 3), mask.reshape(-1, 1)
    parts = [
        made(encoder).encode(encoder[1], flat[some], valid[some], given).statistics["stem"]["norm"]
        for some in (slice(0, 7), slice(7, 14))
    ]
    share = np.array([valid[:7].sum(), valid[7:].sum()]) / valid.sum()
    for name in ("mean", "var"):
        expected = share[0] * parts[0][name] + share[1] * parts[1][name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
        assert np.abs(parts[0][name] - parts[1][name]).max() > 1e-4


def gradient_of(encoder: tuple, trains: str, chunk: int):
    """(params, pixels, mask) -> the gradient of a mean of what an encoder makes, frozen as the dial says."""
    one = made(encoder, trains={"image": trains}, chunk=chunk)

    def loss(params, pixels, mask):
        def hold(name: str, leaf: jax.Array) -> jax.Array:
            return leaf if one.trains(name) else jax.lax.stop_gradient(leaf)

        return one.encode(trees.map_named(hold, params), pixels, mask, Given(trains=one.trains)).tokens.mean()

    return jax.grad(loss)


def test_chunks_and_a_frozen_lower_part_take_less_memory(encoder):
    def temporaries(trains: str, chunk: int, pictures: int = 32) -> int:
        pixels = jax.ShapeDtypeStruct((pictures, 1, SIDE * SIDE * 3), jnp.uint8)
        mask = jax.ShapeDtypeStruct((pictures, 1), bool)
        lowered = jax.jit(gradient_of(encoder, trains, chunk)).lower(encoder[1], pixels, mask)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    whole = temporaries("all", 0)
    assert temporaries("all", 4) < 0.5 * whole
    assert temporaries("head", 0) < 0.7 * whole


def test_of_a_frozen_lower_part_nothing_is_computed_again(encoder):
    """A chunk's backward pass begins where the first part that trains does: the forward pass has 9 convolutions, the head 2."""

    def convolutions(trains: str, chunk: int) -> int:
        made_ = jax.make_jaxpr(gradient_of(encoder, trains, chunk))(encoder[1], *content())
        return str(made_).count("conv_general_dilated[")

    assert convolutions("head", ITEMS) - convolutions("head", 0) <= 2
    assert convolutions("all", ITEMS) - convolutions("all", 0) >= 8


# ---- views of pictures --------------------------------------------------------------------------------


def drawn(items, step: int = 3, seed: int = 0) -> augment.Drawn:
    return augment.Drawn(jax.random.key(seed), jnp.asarray(step), jnp.asarray(items, jnp.int32))


def views(pixels: np.ndarray, one: augment.Drawn | None, crop: int = 8, mirror: bool = True) -> np.ndarray:
    shaped = jnp.asarray(pixels.reshape(-1, SLOTS, SIDE, SIDE, 3))
    return np.asarray(augment.view(shaped, Augment(crop=crop, mirror=mirror), one))


def test_views_are_parts_of_the_picture_still_u8():
    pixels, _ = content()
    found = views(pixels, drawn(range(ITEMS)))
    assert found.shape == (ITEMS, SLOTS, 8, 8, 3) and found.dtype == np.uint8
    corners = set()
    for item in range(ITEMS):
        for slot in range(SLOTS):
            picture = pixels[item, slot].reshape(SIDE, SIDE, 3)
            places = [
                (y, x, mirrored)
                for y in range(5)
                for x in range(5)
                for mirrored in (False, True)
                if np.array_equal(picture[y : y + 8, x : x + 8][:, :: -1 if mirrored else 1], found[item, slot])
            ]
            assert len(places) == 1
            corners |= set(places)
    assert len(corners) > 6 and {mirrored for _, _, mirrored in corners} == {False, True}


def test_views_are_a_function_of_seed_step_and_item_alone():
    pixels, _ = content()
    order = np.array([4, 0, 2])
    whole = views(pixels, drawn(range(ITEMS)))
    np.testing.assert_array_equal(views(pixels[order], drawn(order)), whole[order])
    for other in (drawn(range(ITEMS), step=4), drawn(range(ITEMS), seed=1), drawn(range(1, ITEMS + 1))):
        assert (views(pixels, other) != whole).any()


def test_prediction_takes_the_centre():
    pixels, _ = content()
    pictures = pixels.reshape(ITEMS, SLOTS, SIDE, SIDE, 3)
    np.testing.assert_array_equal(views(pixels, None), pictures[:, :, 2:10, 2:10])
    np.testing.assert_array_equal(views(pixels, None, crop=0), pictures)
    np.testing.assert_array_equal(views(pixels, drawn(range(ITEMS)), crop=0, mirror=False), pictures)


def test_an_encoder_cuts_the_centre_out_and_takes_views_as_they_are(encoder):
    one, pixels = made(encoder, augment=Augment(crop=8)), content()[0]
    mask = np.ones((ITEMS, SLOTS), bool)
    centre = pixels.reshape(ITEMS, SLOTS, SIDE, SIDE, 3)[:, :, 2:10, 2:10].reshape(ITEMS, SLOTS, -1)
    expected = one.encode(encoder[1], centre, mask)
    np.testing.assert_array_equal(one.encode(encoder[1], pixels, mask).tokens, expected.tokens)
    random = one.view(pixels, drawn(range(ITEMS)))
    assert random.shape == centre.shape and random.dtype == jnp.uint8
    assert np.abs(one.encode(encoder[1], random, mask).tokens - expected.tokens).max() > 1e-3


def test_a_crop_larger_than_the_pictures_is_refused(encoder):
    message = user_error(lambda: made(encoder, augment=Augment(crop=13)))
    assert "config.data.augment.crop=13" in message and "12 x 12 pixels; give 12 at most" in message


def test_the_category_of_an_item_is_that_of_its_pictures():
    seen = []

    def function(params, pixels, given):
        seen.append((given.category, given.mask))
        return (jnp.zeros((len(pixels), 1, 3)), jnp.ones((len(pixels), 1), bool)), {}

    one = in_model.of_images("image", {}, (), function, (SIDE, SIDE, 3), in_model.PLAINLY)
    pixels, mask = content()
    counts = np.arange(ITEMS) != 3
    one.encode({}, pixels, mask, Given(mask=counts, category=np.arange(ITEMS, dtype=np.int32)))
    category, counted = seen[0]
    np.testing.assert_array_equal(category, np.repeat(np.arange(ITEMS), SLOTS))
    np.testing.assert_array_equal(counted, (mask & counts[:, None]).ravel())
