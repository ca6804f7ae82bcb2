"""A tiny catalogue, and what the papers' formulas share, with dense matrices in f64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.sparse import Adjacency, Entries, grouped
from em3_jax.models.retrieval import Graphs, ItemGraph

NUM_USERS, NUM_ITEMS, D, K = 6, 9, 8, 2  # D as in tests/models/fusion/naive.py
WIDTHS = {"image": 7, "text": 5}
SHARE = {"image": 0.25, "text": 0.75}
USER = np.array([0, 3, 1, 5, 0, 2], np.int32)
POSITIVE = np.array([2, 4, 2, 8, 0, 2], np.int32)  # item 2 is in the batch several times, item 1 never
NEGATIVE = np.array([5, 2, 7, 3, 6, 6], np.int32)
BATCH = (USER, POSITIVE, NEGATIVE)


def adjacency(matrix: np.ndarray, width: int = 2, padding: int = 0) -> Adjacency:
    """The entries of a dense matrix by rows, in groups of `width`; `padding` groups at the end."""
    receiver, sender = np.nonzero(matrix)
    entries = Entries(receiver.astype(np.int32), sender.astype(np.int32), matrix[receiver, sender].astype(np.float32))
    groups = len(grouped(entries, len(matrix), width=width).more_sender) + padding if padding else None
    return grouped(entries, len(matrix), width=width, groups=groups)


def item_graph(matrix: np.ndarray) -> ItemGraph:
    """A matrix with the same number of entries in all rows, and its transpose, as training gets them."""
    return ItemGraph(adjacency(matrix, np.count_nonzero(matrix[0])), adjacency(matrix.T))


def interactions() -> np.ndarray:
    """[NUM_USERS, NUM_ITEMS] 0/1; user 4 and item 1 have none."""
    taken = np.random.default_rng(0).random((NUM_USERS, NUM_ITEMS)) < 0.4
    taken[4] = taken[:, 1] = False
    return taken.astype(np.float64)


def normalised(taken: np.ndarray) -> np.ndarray:
    """[N, N] D^-1/2 A D^-1/2 of the bipartite graph; nodes without an edge have zero rows."""
    users, items = taken.shape
    graph = np.block([[np.zeros((users, users)), taken], [taken.T, np.zeros((items, items))]])
    degree = np.maximum(graph.sum(axis=1), 1)
    return graph / np.sqrt(degree[:, None] * degree[None, :])


A = normalised(interactions())


def item_matrix(seed: int, neighbours: int = 3) -> np.ndarray:
    """[NUM_ITEMS, NUM_ITEMS] an item graph: the item itself and others at random, with random weights."""
    random = np.random.default_rng(seed)
    matrix = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for i in range(NUM_ITEMS):
        others = random.choice(np.delete(np.arange(NUM_ITEMS), i), neighbours - 1, replace=False)
        matrix[i, [i, *others]] = random.uniform(0.2, 1.0, neighbours)
    return matrix


ITEMS = {"image": item_matrix(1), "text": item_matrix(2)}


def features() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {name: random.normal(size=(NUM_ITEMS, width)).astype(np.float32) for name, width in WIDTHS.items()}


def graphs() -> Graphs:
    item_graphs = {name: item_graph(matrix) for name, matrix in ITEMS.items()}
    present = {name: np.ones(NUM_ITEMS, bool) for name in ITEMS}
    return Graphs(adjacency(A, padding=3), item_graphs, present)


def random_params(model) -> dict:
    """Parameters of the model, all of them random."""
    keys = {name: jax.random.key(k) for k, name in enumerate(("params", "dropout", "negatives"))}
    shapes = jax.eval_shape(lambda: model.init(keys, features(), graphs(), *BATCH, method="loss"))["params"]
    random = np.random.default_rng(4)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(0, 0.5, leaf.shape), jnp.float32), shapes)


def f64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def light_gcn(users: np.ndarray, items: np.ndarray, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of A^k x over k = 0 .. K, by matrix powers."""
    x = np.concatenate([users, items])
    x = sum(np.linalg.matrix_power(A, k) @ x for k in range(layers + 1)) / (layers + 1)
    return x[:NUM_USERS], x[NUM_USERS:]


def bpr(users: np.ndarray, items: np.ndarray) -> float:
    """The pairwise loss of the batch, triple by triple."""
    score = users @ items.T
    terms = [np.log1p(np.exp(score[u, j] - score[u, i])) for u, i, j in zip(*BATCH, strict=True)]
    return float(np.mean(terms))


def squared(*tables: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean over the batch of the squared entries of (table, rows)."""
    return sum(float(np.sum(table[rows] ** 2)) for table, rows in tables) / len(USER)


def cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, m] of the rows of x and y."""
    return x @ y.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)[None, :]


def info_nce(x: np.ndarray, y: np.ndarray, temperature: float) -> float:
    """-ln softmax at the diagonal, a mean over the rows."""
    score = np.exp(cosines(x, y) / temperature)
    return float(np.mean([-np.log(row[k] / row.sum()) for k, row in enumerate(score)]))


def released_cic(content: np.ndarray, ids: np.ndarray, drawn: np.ndarray, temperature: float) -> float:
    """EM3's contrast as released, item by item with the drawn negatives [NUM_ITEMS, H]."""
    total = 0.0
    for x, y in ((content, ids), (ids, content)):
        similarity = np.exp(cosines(x, y) / temperature)
        for i in range(len(x)):
            total -= np.log(similarity[i, i] / (similarity[i, i] + similarity[i, drawn[i]].sum())) / len(x)
    return 0.5 * total
