"""Sparse products against dense matrices, forward and backward; LightGCN against matrix powers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import gather
from em3_jax.models.retrieval import propagation
from em3_jax.models.retrieval.propagation import along_items, layer_mean, product, propagate
from tests.models.retrieval import dense


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


def random_matrix(nodes: int, share: float, seed: int = 0) -> np.ndarray:
    """[N, N], not symmetric; node 0 has no entries, node 1 has all."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(nodes, nodes)) * (random.random((nodes, nodes)) < share)
    matrix[0], matrix[1] = 0, random.normal(size=nodes)
    return matrix


@pytest.mark.parametrize("width", [1, 3, 8])
@pytest.mark.parametrize("nodes,share", [(3, 0.0), (20, 0.1), (20, 0.9), (70, 0.3)])
@pytest.mark.parametrize("padding", [0, 5])
def test_the_product_in_groups_is_the_product(width, nodes, share, padding):
    matrix = random_matrix(nodes, share)
    x = np.random.default_rng(1).normal(size=(nodes, 4)).astype(np.float32)
    got = jax.jit(product)(dense.adjacency(matrix, width, padding), x)
    np.testing.assert_allclose(got, matrix @ x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_those_of_the_dense_product(symmetric):
    matrix = random_matrix(30, 0.3)
    matrix = matrix + matrix.T if symmetric else matrix
    graph, transpose = dense.adjacency(matrix, 4, 2), dense.adjacency(matrix.T, 3, 1)
    random = np.random.default_rng(2)
    x, target = (random.normal(size=(30, 3)).astype(np.float32) for _ in range(2))
    back = graph if symmetric else transpose
    of_x = jax.jit(jax.grad(lambda x: jnp.sum(target * propagate(graph, back, x))))(x)
    np.testing.assert_allclose(of_x, matrix.T @ target, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("summed", [propagation._added, propagation._summed])
def test_further_groups_are_added_alike_on_all_platforms(summed):
    random = np.random.default_rng(0)
    receiver = np.sort(random.integers(0, 9, 40)).astype(np.int32)  # 9 = padding
    receiver[-3:] = 9
    rows, more = random.normal(size=(9, 3)).astype(np.float32), random.normal(size=(40, 3)).astype(np.float32)
    expected = np.concatenate([rows, np.zeros((1, 3))])
    np.add.at(expected, receiver, more)
    np.testing.assert_allclose(jax.jit(summed)(jnp.asarray(rows), more, receiver), expected[:9], rtol=1e-5, atol=1e-5)
    target = random.normal(size=(9, 3)).astype(np.float32)
    gradient = jax.grad(lambda more: jnp.sum(target * summed(jnp.asarray(rows), more, receiver)))(more)
    np.testing.assert_array_equal(gradient, np.concatenate([target, np.zeros((1, 3))])[receiver])


def test_a_product_with_trained_weights_has_both_gradients():
    matrix = random_matrix(30, 0.3)
    graph = dense.adjacency(matrix, 4, 2)
    random = np.random.default_rng(2)
    x, target = (random.normal(size=(30, 3)).astype(np.float32) for _ in range(2))

    @jax.jit
    def gradients(weights, x):
        def total(weights, x):
            trained = graph._replace(weight=weights[0], more_weight=weights[1])
            return jnp.sum(target * product(trained, x, take=gather.rows))

        return jax.grad(total, argnums=(0, 1))(weights, x)

    of_weights, of_x = gradients((graph.weight, graph.more_weight), x)
    np.testing.assert_allclose(of_x, matrix.T @ target, rtol=1e-4, atol=1e-4)
    outer = np.concatenate([target @ x.T, np.zeros((1, 30))])  # d / dA of sum(target * A x); nothing of padding is read
    for found, row, column in (
        (of_weights[0], np.arange(30), graph.sender),
        (of_weights[1], graph.more_receiver, graph.more_sender),
    ):
        np.testing.assert_allclose(found, outer[row[:, None], column], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_layer_mean_is_the_mean_of_matrix_powers(layers):
    random = np.random.default_rng(3)
    users, items = (random.normal(size=(n, 4)).astype(np.float32) for n in (dense.NUM_USERS, dense.NUM_ITEMS))
    graph = dense.adjacency(dense.A, padding=3)
    got = jax.jit(layer_mean, static_argnums=3)(graph, users, items, layers)
    for one, other in zip(got, dense.light_gcn(users, items, layers), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert got[0].shape == users.shape and got[1].shape == items.shape


def test_nodes_without_an_edge_keep_their_share_of_themselves():
    users, items = np.ones((dense.NUM_USERS, 2), np.float32), np.ones((dense.NUM_ITEMS, 2), np.float32)
    got_users, got_items = layer_mean(dense.adjacency(dense.A), users, items, 2)
    np.testing.assert_allclose(got_users[4], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(got_items[1], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_every_layer_of_the_item_graph_reads_the_one_before(layers):
    graphs = {name: dense.item_graph(matrix) for name, matrix in dense.ITEMS.items()}
    mixed = sum(dense.SHARE[name] * matrix for name, matrix in dense.ITEMS.items())
    x = np.random.default_rng(4).normal(size=(dense.NUM_ITEMS, 3)).astype(np.float32)
    expected = np.linalg.matrix_power(mixed, layers) @ x
    np.testing.assert_allclose(along_items(graphs, dense.SHARE, x, layers), expected, rtol=1e-4, atol=1e-5)
