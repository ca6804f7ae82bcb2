"""Codebooks: k-means by hand, dead codes, and what becomes of items without content."""

import numpy as np
import pytest

from em3_jax.core import rng
from em3_jax.data.format import FeatureSet
from em3_jax.features import kmeans, rq_vae
from em3_jax.features.codes import Coder
from em3_jax.models.quantiser import nearest
from tests.conftest import user_error

pytestmark = pytest.mark.quickly_compiled

KEY = rng.numpy_key(0, "codebook", 0)


def clouds(number: int, each: int, width: int = 3) -> np.ndarray:
    random = np.random.default_rng(number)
    centers = 20.0 * random.standard_normal((number, width))
    return (np.repeat(centers, each, axis=0) + random.standard_normal((number * each, width))).astype(np.float32)


def test_centers_are_the_means_of_clouds_that_lie_apart():
    vectors = clouds(4, 10)
    centers = kmeans.kmeans(vectors, 4, KEY)
    means = vectors.reshape(4, 10, 3).mean(axis=1)
    order = [int(np.argmin(((means - center) ** 2).sum(axis=1))) for center in centers]
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(centers, means[order], rtol=1e-4, atol=1e-4)


def test_no_center_is_left_without_vectors_and_the_end_is_one_of_lloyd():
    vectors = np.random.default_rng(2).standard_normal((300, 4)).astype(np.float32)
    centers = kmeans.kmeans(vectors, 32, KEY)
    code = np.asarray(nearest(vectors, centers))
    assert len(np.unique(code)) == 32
    for k in range(32):
        np.testing.assert_allclose(centers[k], vectors[code == k].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_fewer_different_vectors_than_codes_leave_codes_unused():
    vectors = np.repeat(clouds(3, 1), 5, axis=0)
    codes = np.asarray(nearest(vectors, kmeans.kmeans(vectors, 8, KEY)))
    assert len(np.unique(codes)) == 3


def test_each_level_explains_more_and_the_seed_decides_all():
    vectors = np.random.default_rng(4).standard_normal((400, 6)).astype(np.float32)
    books = kmeans.residual_kmeans(vectors, 3, 16, seed=5)
    np.testing.assert_array_equal(books, kmeans.residual_kmeans(vectors, 3, 16, seed=5))
    assert not np.array_equal(books, kmeans.residual_kmeans(vectors, 3, 16, seed=6))
    left, before = vectors, np.inf
    for book in books:
        left = left - book[np.asarray(nearest(left, book))]
        assert (left**2).sum() < before
        before = (left**2).sum()


def features(name: str, values: np.ndarray, mask: np.ndarray) -> FeatureSet:
    tokens = np.where(mask[..., None], values, 0).astype(np.float32)
    return FeatureSet(name, tokens, mask, {})


@pytest.fixture(scope="module")
def sets() -> list[FeatureSet]:
    random = np.random.default_rng(6)
    of_image, of_text = random.random((90, 2)) < 0.8, random.random((90, 1)) < 0.8
    of_image[3], of_text[3] = False, False
    image = random.standard_normal((90, 2, 8)) * 100.0
    return [features("image", image, of_image), features("text", random.standard_normal((90, 1, 5)), of_text)]


@pytest.mark.parametrize("kind", ["rq_kmeans", "rq_vae"])
def test_codes_are_the_same_whichever_items_are_asked_for(sets, kind, monkeypatch):
    monkeypatch.setattr(rq_vae, "STEPS", 200)
    monkeypatch.setattr(rq_vae, "WARM", 100)
    coder, again = (Coder.fitted(kind, sets, 2, 8, seed=1) for _ in range(2))
    every = coder.codes(sets, np.arange(90))
    np.testing.assert_array_equal(every, again.codes(sets, np.arange(90)))
    some = np.array([80, 3, 41])
    np.testing.assert_array_equal(coder.codes(sets, some), every[some])
    kept = Coder(kind, {name: np.array(array) for name, array in coder.arrays.items()})
    np.testing.assert_array_equal(kept.codes(sets, some), every[some])
    there = np.delete(np.arange(90), 3)
    assert 0.2 < coder.explained(sets, every[there], there) < 1


def test_each_set_weighs_the_same_whatever_its_scale_and_a_missing_one_says_nothing(sets):
    coder = Coder.fitted("rq_kmeans", sets, 1, 8, seed=0)
    (vectors,) = coder._vectors(sets, np.arange(90))
    for one, part in zip(sets, (vectors[:, :8], vectors[:, 8:]), strict=True):
        there = one.mask.any(axis=1)
        np.testing.assert_allclose((part[there] ** 2).sum(axis=1).mean(), 1, rtol=1e-4)
        np.testing.assert_allclose(part[there].mean(axis=0), 0, atol=1e-5)
        assert not part[~there].any()


def test_more_codes_than_items_are_refused(sets):
    assert "of 90 items 8" in user_error(Coder.fitted, "rq_kmeans", sets, 1, 256, 0)
