"""Nearest neighbours against plain loops: ties, absent rows, rows of zeros, and the approximate index."""

import subprocess
import sys

import numpy as np
import pytest

from em3_jax.serving import neighbours
from em3_jax.serving.neighbours import Neighbours
from tests.conftest import ROOT, user_error


def by_loops(vectors, present, queries, count, leave_out=None):
    """The same by the definition: every cosine in f64, sorted by (cosine, row)."""
    rows, cosines = np.full((len(queries), count), -1), np.full((len(queries), count), np.nan, np.float32)
    for n, query in enumerate(np.asarray(queries, np.float64)):
        found = []
        for row, vector in enumerate(np.asarray(vectors, np.float64)):
            if present[row] and vector.any() and query.any() and (leave_out is None or row != leave_out[n]):
                length = np.sqrt((vector * vector).sum()) * np.sqrt((query * query).sum())
                found.append((-np.float32((vector * query).sum() / length), row))
        for k, (negative, row) in enumerate(sorted(found)[:count]):
            rows[n, k], cosines[n, k] = row, -negative
    return rows, cosines


@pytest.fixture(scope="module")
def space():
    """(vectors, present): some rows are absent, some zero, some the same as others, some of other lengths."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((300, 12)).astype(np.float32)
    vectors[100:140] = vectors[7]  # a tie longer than what Faiss is asked for
    vectors[140:150] = 3.0 * vectors[8]
    vectors[[0, 20, 299]] = 0.0
    return vectors, random.random(300) < 0.9


@pytest.mark.parametrize("count", [1, 3, 12, 299, 400])
def test_exact_neighbours_are_those_of_plain_loops(space, count):
    vectors, present = space
    own = np.array([7, 8, 100, 145, 0, 250, 299])
    queries = vectors[own]
    for leave_out in (None, own, np.where(own % 2, own, -1)):
        rows, cosine = Neighbours(vectors, present).search(queries, count, leave_out)
        expected_rows, expected = by_loops(vectors, present, queries, count, leave_out)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(cosine, expected, rtol=0, atol=1e-6)
        assert rows.dtype == np.int64 and cosine.dtype == np.float32
    assert np.isnan(cosine[4]).all() and (rows[4] == -1).all()  # a query of zeros


def test_ties_go_to_the_lower_row(space):
    vectors, _ = space
    rows, cosine = Neighbours(vectors, np.ones(300, bool)).search(vectors[[120]], 5, np.array([100]))
    np.testing.assert_array_equal(rows, [[7, 101, 102, 103, 104]])
    np.testing.assert_array_equal(cosine, np.ones((1, 5), np.float32))


def test_an_answer_does_not_depend_on_the_other_queries(space, monkeypatch):
    vectors, present = space
    index = Neighbours(vectors, present)
    together = index.search(vectors, 6)
    alone = [index.search(vectors[[k]], 6) for k in range(len(vectors))]
    for part in range(2):
        np.testing.assert_array_equal(together[part], np.concatenate([found[part] for found in alone]))
    monkeypatch.setattr(neighbours, "_BLOCK", 64)
    for part in range(2):
        np.testing.assert_array_equal(together[part], Neighbours(vectors, present).search(vectors, 6)[part])


def test_nobody_is_there():
    rows, cosine = Neighbours(np.ones((4, 2), np.float32), np.zeros(4, bool)).search(np.ones((2, 2)), 3)
    assert (rows == -1).all() and np.isnan(cosine).all()
    rows, _ = Neighbours(np.ones((1, 2), np.float32), np.ones(1, bool)).search(np.ones((1, 2)), 1, np.array([0]))
    assert rows.tolist() == [[-1]]


def test_the_approximate_index_finds_nearly_all():
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 8)).astype(np.float32)
    present = random.random(3000) < 0.9
    own = np.arange(200)
    index = Neighbours(vectors, present, approximate=True)
    rows, cosine = index.search(vectors[:200], 10, own)
    expected, expected_cosine = Neighbours(vectors, present).search(vectors[:200], 10, own)
    hits = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, expected, strict=True)])
    assert hits > 0.98
    same = rows == expected
    np.testing.assert_array_equal(cosine[same], expected_cosine[same])
    assert present[rows[rows >= 0]].all() and not (rows == own[:, None]).any()
    assert (np.diff(cosine, axis=1) <= 0).all()


def test_bad_input(space, monkeypatch):
    vectors, present = space
    broken = vectors.copy()
    broken[5, 2] = np.nan
    assert "row 5: NaN" in user_error(Neighbours, broken, np.ones(300, bool))
    Neighbours(broken, np.arange(300) != 5)  # what is not there does no harm
    index = Neighbours(vectors, present)
    assert "query" in user_error(index.search, broken[[5]], 3)
    with pytest.raises(ValueError, match="wide"):
        index.search(np.ones((1, 3)), 3)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in user_error(Neighbours, vectors, present)


def test_importing_it_loads_neither_faiss_nor_jax():
    heavy = {"jax", "flax", "faiss", "em3_jax.core.types"}
    program = f"import sys, em3_jax.serving.neighbours; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
