"""Item graphs against brute force over the whole similarity matrix; the cache and what it depends on."""

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import item_graph as module
from em3_jax.data.item_graph import cached_item_graph, item_graph

SETTINGS = {"neighbours": 3, "include_self": True, "weights": "binary", "normalisation": "rows"}


def make_features() -> np.ndarray:
    """[40, 6] features with repeated rows, so that cosines tie."""
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    features[5] = features[20] = 2 * features[1]
    features[30:34] = features[7]
    return features


def brute_force(features, neighbours, include_self, weights, normalisation) -> np.ndarray:
    """[I, I] f64 the normalised matrix, item by item with a full sort; ties by index."""
    x = features.astype(np.float64)
    length = np.linalg.norm(x, axis=1)
    graph = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        cosine = [x[i] @ x[j] / (length[i] * length[j]) if length[i] and length[j] else 0.0 for j in range(len(x))]
        order = sorted(range(len(x)), key=lambda j: (j != i, -round(cosine[j], 9), j))  # itself first
        for j in order[:neighbours] if include_self else order[1 : neighbours + 1]:
            if length[i] and length[j]:
                graph[i, j] = 1.0 if weights == "binary" else max(cosine[j], 0.0)
    row = graph.sum(axis=1)
    column = row if normalisation == "rows" else graph.sum(axis=0)
    scale = np.sqrt(row[:, None] * column[None, :])
    return np.divide(graph, scale, out=np.zeros_like(graph), where=scale > 0)


def dense(graph, items: int) -> np.ndarray:
    matrix = np.zeros((items, items))
    np.add.at(matrix, (graph.receiver, graph.sender), graph.weight)
    return matrix


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("weights", ["binary", "cosine"])
@pytest.mark.parametrize("normalisation", ["rows", "both"])
@pytest.mark.parametrize("block_bytes", [1, 4 * 40 * 7, 1 << 20])
def test_graph_equals_brute_force(include_self, weights, normalisation, block_bytes, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    features = make_features()
    graph = item_graph(features, neighbours=3, include_self=include_self, weights=weights, normalisation=normalisation)
    expected = brute_force(features, 3, include_self, weights, normalisation)
    np.testing.assert_allclose(dense(graph, 40), expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(graph.receiver, np.repeat(np.arange(40), 3))
    assert (np.diff(graph.sender.reshape(40, 3), axis=1) > 0).all()


def test_lengths_of_items_do_not_matter():
    features, settings = make_features(), SETTINGS | {"weights": "cosine"}
    scale = np.float32(2.0) ** np.linspace(-60, 80, len(features)).astype(np.int32)
    expected, got = (item_graph(x, **settings) for x in (features, features * scale[:, None]))
    assert np.array_equal(got.sender, expected.sender)
    np.testing.assert_allclose(got.weight, expected.weight, rtol=1e-6)


def test_a_binary_graph_by_row_degrees_has_weights_of_one_in_k():
    graph = item_graph(make_features(), **SETTINGS)
    np.testing.assert_allclose(graph.weight, 1 / 3, rtol=1e-6)


def test_many_equal_items_are_taken_by_index():
    features = np.ones((9, 4), np.float32)
    graph = item_graph(features, **SETTINGS)
    assert graph.sender.reshape(9, 3).tolist() == [
        [0, 1, 2], [0, 1, 2], [0, 1, 2], *([0, 1, i] for i in range(3, 9))
    ]  # fmt: skip
    assert item_graph(features, **SETTINGS | {"include_self": False}).sender.reshape(9, 3)[0].tolist() == [1, 2, 3]


def test_items_without_content_read_none_and_are_read_by_none():
    features = make_features()[:8, :2]
    features[[2, 6]] = 0
    for normalisation in module.NORMALISATIONS:
        matrix = dense(item_graph(features, **SETTINGS | {"neighbours": 7, "normalisation": normalisation}), 8)
        assert not matrix[[2, 6]].any() and not matrix[:, [2, 6]].any()
        assert np.isfinite(matrix).all() and matrix.any()


def test_every_item_can_be_a_neighbour():
    assert item_graph(make_features()[:5], **SETTINGS | {"neighbours": 5}).sender.tolist() == list(range(5)) * 5


@pytest.mark.parametrize(
    "change,message",
    [
        ({"neighbours": 41}, "neighbours=41: must be 1 to 40"),
        ({"neighbours": 40, "include_self": False}, "must be 1 to 39"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"weights": "dot"}, "weights 'dot' is unknown; known: binary, cosine"),
        ({"normalisation": "none"}, "normalisation 'none' is unknown"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(UserError, match=message):
        item_graph(make_features(), **SETTINGS | change)


def test_cache_is_used_and_rebuilt_when_anything_changes(tmp_path, monkeypatch):
    built = []

    def counted(features, **settings):
        built.append(settings)
        return item_graph(features, **settings)

    monkeypatch.setattr(module, "item_graph", counted)
    features = make_features()
    first = cached_item_graph(tmp_path, features, **SETTINGS)
    again = cached_item_graph(tmp_path, features, **SETTINGS)
    assert len(built) == 1
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    changed = features.copy()
    changed[3] = -changed[3]
    other = cached_item_graph(tmp_path, changed, **SETTINGS)
    assert len(built) == 2
    np.testing.assert_array_equal(other.sender, item_graph(changed, **SETTINGS).sender)
    changes = {"neighbours": 4, "include_self": False, "weights": "cosine", "normalisation": "both"}
    for name, value in changes.items():
        cached_item_graph(tmp_path, features, **SETTINGS | {name: value})
    assert len(built) == 2 + len(changes)


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_broken_cache_file_is_replaced(tmp_path, content):
    features = make_features()
    expected = cached_item_graph(tmp_path, features, **SETTINGS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5] if content is None else content)
    np.testing.assert_array_equal(cached_item_graph(tmp_path, features, **SETTINGS).sender, expected.sender)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # nothing half-written is left
    np.testing.assert_array_equal(cached_item_graph(tmp_path, features, **SETTINGS).weight, expected.weight)
