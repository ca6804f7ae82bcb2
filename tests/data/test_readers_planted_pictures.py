"""Planted pictures show what their docstring says, and only with the category where it says so."""

import hashlib

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data.format import Dataset
from em3_jax.data.readers import planted_pictures
from em3_jax.data.readers.planted_world import make_world
from em3_jax.data.readers.synthetic import CATEGORIES, synthetic

SIZES = {"interactions": 500, "users": 20, "items": 1_500}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    out = tmp_path_factory.mktemp("data") / "category"
    return synthetic(out, **SIZES, seed=3, raw=True, pictures="category")


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    shown = np.linspace(1, 0.1, 6)
    return make_world(3, SIZES["users"], SIZES["items"], 6, 0.15, 0.1).content * shown


def pixels_of(dataset: Dataset) -> np.ndarray:
    features = dataset.features("raw_image")
    return np.asarray(features.tokens).reshape(-1, *features.manifest["raw"]["shape"])


def responses(pixels: np.ndarray, motifs: np.ndarray) -> np.ndarray:
    """[I, motifs]: how strongly each motif stands anywhere, with its sign: one convolution, the mean of its cubes."""
    seen = np.fft.rfft2(pixels.astype(np.float32) - 127.5, axes=(1, 2))
    shape = pixels.shape[1:3]
    kernel = np.fft.rfft2(motifs, s=shape, axes=(1, 2)).conj()
    found = [np.fft.irfft2((seen * one).sum(axis=-1), s=shape, axes=(1, 2)) / motifs[0].size for one in kernel]
    return np.stack([np.cbrt((one.astype(np.float64) ** 3).mean(axis=(1, 2))) for one in found], axis=1)


def explained(x: np.ndarray, content: np.ndarray) -> float:
    """Share of the content's variance that ridge regression on x [I, d] explains, on other items."""
    x = np.concatenate([x / x.std(axis=0).clip(1e-9), np.ones((len(x), 1))], axis=1)
    half = len(x) // 2
    gram = x[:half].T @ x[:half] + 5 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:half].T @ content[:half])
    rest = ((x[half:] @ weights - content[half:]) ** 2).sum()
    return 1 - rest / ((content[half:] - content[half:].mean(axis=0)) ** 2).sum()


def by_category(x: np.ndarray, category: np.ndarray) -> np.ndarray:
    """[I, d C]: x [I, d] in the place of the item's category, 0 in the others'."""
    one_hot = np.eye(len(CATEGORIES))[category]
    return (x[:, :, None] * one_hot[:, None]).reshape(len(x), -1)


def test_plain_pictures_and_datasets_keep_their_bytes(tmp_path):
    dataset = synthetic(tmp_path / "plain", interactions=500, users=20, items=60, raw=True)
    pixels = np.ascontiguousarray(dataset.features("raw_image").tokens)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == (
        "ebecebb696dc1fa880b424375e0f1791c08ef55d12d72f82bd2270d9ad8de2cc"
    )
    assert dataset.meta["source_hash"] == "fd44bec2711200fa3149bc7f1b0c4f158f4cba856465225900391bb971cd7487"
    assert dataset.features("raw_image").manifest["raw"]["shape"] == [16, 16, 3]


def test_pictures_change_nothing_else_and_are_a_function_of_the_arguments(dataset, tmp_path):
    again = synthetic(tmp_path / "again", **SIZES, seed=3, raw=True, pictures="category")
    plain = synthetic(tmp_path / "plain", **SIZES, seed=3, raw=True)
    assert (pixels_of(again) == pixels_of(dataset)).all()
    assert plain.meta["data_hash"] == dataset.meta["data_hash"]  # users, items and clicks
    assert plain.meta["source_hash"] != dataset.meta["source_hash"]
    assert (plain.features("raw_text").tokens == dataset.features("raw_text").tokens).all()


def test_the_category_says_what_a_picture_means(dataset, content):
    """With the generator's own motifs as filters; a plain linear probe of the pixels sees nothing at all."""
    pixels, category = pixels_of(dataset), dataset.item_field_ids[:, 1] - FIRST_KNOWN
    random = np.random.default_rng([3, 9, 0])  # as `random_of(3, "pictures")`
    found = responses(pixels, planted_pictures.motifs(random, 2 * content.shape[1]))
    alone, both = explained(found, content), explained(by_category(found, category), content)
    assert both > 0.5 > 0.35 > alone, (alone, both)
    small = pixels.reshape(len(pixels), 16, 2, 16, 2, 3).mean(axis=(2, 4)).reshape(len(pixels), -1)
    assert explained(small, content) < 0.1


def test_the_categories_of_an_alphabet_are_not_told_apart_by_their_pictures(dataset):
    pixels, category = pixels_of(dataset), dataset.item_field_ids[:, 1] - FIRST_KNOWN
    mean = np.array([pixels[category == one].mean() for one in range(len(CATEGORIES))])
    assert np.ptp(mean) < 1.5  # of 255
    contrast = np.array([pixels[category == one].std() for one in range(len(CATEGORIES))])
    assert np.ptp(contrast) < 0.1 * contrast.mean()


def test_motifs_are_orthogonal_even_and_of_mean_zero():
    motif = planted_pictures.motifs(np.random.default_rng(0), 12)
    flat = motif.reshape(12, -1)
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], np.eye(12), atol=1e-5)
    np.testing.assert_allclose(motif.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_array_equal(motif, motif[:, :, ::-1])


def test_half_of_a_picture_is_clutter_that_can_be_told_from_the_subject(dataset):
    pixels = pixels_of(dataset).astype(np.float32)
    grain = np.abs(pixels[:, 1:, 1:] - pixels[:, 1:, :-1] - pixels[:, :-1, 1:] + pixels[:, :-1, :-1])
    marked = grain.mean(axis=-1) > 2 * planted_pictures.GRAIN
    assert abs(marked.mean() - 0.5) < 0.05


@pytest.mark.parametrize("side", [16, 24, 48])
def test_plain_pictures_of_other_sizes(side, tmp_path):
    made = synthetic(tmp_path / "made", interactions=200, users=10, items=12, raw=True, picture_side=side)
    assert pixels_of(made).shape == (12, side, side, 3)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"pictures": "cubist"}, "--pictures 'cubist' is unknown; give plain or category"),
        ({"picture_side": 20}, "--picture-side is 20; give a multiple of 8"),
        ({"picture_side": 512}, "--picture-side is 512; give a multiple of 8 from 16 to 256"),
        ({"picture_side": -16}, "--picture-side is -16"),
        ({"pictures": "category", "picture_side": 24}, "--picture-side is 24; pictures by category"),
        ({"pictures": "category", "picture_side": 16}, "--latent is 6, .* give a larger --picture-side"),
        ({"pictures": "category", "latent": 11}, "--latent is 11, .* 10 dimensions at most"),
        ({"pictures": "category", "raw": False}, "--pictures and --picture-side .* add --raw"),
        ({"picture_side": 32, "raw": False}, "--pictures and --picture-side .* add --raw"),
    ],
)
def test_bad_arguments(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        synthetic(tmp_path / "bad", **({"raw": True} | options))
    assert not (tmp_path / "bad").exists()
