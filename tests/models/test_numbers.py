"""Embeddings of numbers against their formulas, one number at a time in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core import numbers as core
from em3_jax.core.numbers import Fit, Number, Numbers
from em3_jax.core.ranges import Ranges
from em3_jax.models.numbers import EmbeddedNumbers, NumberEmbedding, NumberSettings, piece_edges, piecewise_linear

W, SETTINGS = 5, NumberSettings(frequencies=3, frequency_scale=0.5)
TRAINING = np.r_[np.random.default_rng(0).lognormal(1.0, 1.0, 60), -3.0, 0.0]
ASKED = np.r_[TRAINING[:10], -1e9, 1e9, TRAINING.min(), TRAINING.max(), 0.0].astype(np.float32)


def number(kind: str, training=TRAINING, missing: bool = False, bins: int = 6) -> Number:
    return Number("x", kind, Fit.of(training), Ranges.fitted(training, bins).edges, missing)


def embedded(of: Number, x, seed: int = 1):
    """(vectors [m, W], parameters in f64)."""
    module = NumberEmbedding(of, SETTINGS, W)
    params = module.init(jax.random.key(0), jnp.zeros(1), jnp.float32)["params"]
    random = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), params)
    found = module.apply({"params": params}, jnp.asarray(x, jnp.float32), jnp.float32)
    return np.asarray(found), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def ple(x: float, edges: np.ndarray) -> list[float]:
    """Gorishniy et al. 2022, eq. 1, as it is written."""
    pieces = len(edges) - 1
    found = []
    for t in range(1, pieces + 1):
        if x < edges[t - 1] and t > 1:
            found.append(0.0)
        elif x >= edges[t] and t < pieces:
            found.append(1.0)
        else:
            found.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return found


def inputs(kind: str, x: float, params) -> np.ndarray:
    if kind == "piecewise":
        edges = Ranges.fitted(TRAINING, 6).edges
        return np.array(ple(x, np.array([TRAINING.min(), *edges, TRAINING.max()], np.float32).astype(np.float64)))
    if kind == "log":
        logs = np.sign(TRAINING) * np.log(1 + np.abs(TRAINING))
        return np.array([(np.sign(x) * np.log(1 + abs(x)) - logs.mean()) / logs.std()])
    z = (x - TRAINING.mean()) / TRAINING.std()
    if kind == "standardised":
        return np.array([z])
    angle = 2 * np.pi * params["frequency"] * z
    return np.r_[np.sin(angle), np.cos(angle)]


@pytest.mark.parametrize("kind", core.KINDS[1:])
def test_vectors_are_those_of_the_formula(kind):
    near = ASKED[np.abs(ASKED) < 100]
    found, params = embedded(number(kind), near)
    for x, vector in zip(near.astype(np.float64), found, strict=True):
        expected = inputs(kind, x, params) @ params["linear"]["kernel"] + params["linear"]["bias"]
        expected = np.maximum(expected, 0) if kind == "periodic" else expected
        np.testing.assert_allclose(vector, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", core.KINDS[1:])
def test_what_is_missing_is_a_vector_that_is_learnt_or_the_mean(kind):
    found, params = embedded(number(kind, missing=True), [np.nan, 1.0])
    np.testing.assert_array_equal(found[0], params["missing"].astype(np.float32))
    of = number(kind)
    mean = {"log": np.expm1(of.fit.log_mean)}.get(kind, of.fit.mean)
    found, params = embedded(of, [np.nan, mean])
    assert "missing" not in params
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)

    def loss(params, x):
        out = NumberEmbedding(number(kind, missing=True), SETTINGS, W).apply({"params": params}, x, jnp.float32)
        return jnp.sum(out**2)

    params = embedded(number(kind, missing=True), [0.0])[1]
    gradient = jax.grad(loss)(jax.tree.map(jnp.float32, params), jnp.array([jnp.nan, 2.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient)) and gradient["missing"].any()


@pytest.mark.parametrize("kind", core.KINDS[1:])
def test_numbers_far_from_all_that_was_seen_are_finite(kind):
    for training in (TRAINING, np.full(9, 7.0), np.full(3, 1_700_000_123.0), np.array([0.0, core.MOST])):
        found, _ = embedded(number(kind, training), [-core.MOST, core.MOST, 7.0, training[0]])
        assert np.isfinite(found).all()


@pytest.mark.parametrize(
    "training", [np.full(5, 2.0), np.full(5, 3e7), np.array([1.0, 2.0]), np.array([1.0, 1, 1, 2, 3]), TRAINING]
)
def test_pieces_go_from_the_least_to_the_largest(training):
    edges = piece_edges(number("piecewise", training))
    assert (np.diff(edges) > 0).all() and edges[0] == np.float32(training.min())
    assert edges[-1] == np.float32(training.max()) or training.min() == training.max()
    total = np.asarray(piecewise_linear(jnp.asarray(edges), edges)).sum(axis=1)
    np.testing.assert_allclose(total, np.arange(len(edges)), atol=1e-6)


def test_what_is_fitted_is_of_the_numbers_that_are_there():
    fit = Fit.of(np.r_[TRAINING, np.nan])
    values = TRAINING.astype(np.float32).astype(np.float64)
    logs = np.sign(values) * np.log1p(np.abs(values))
    expected = [f(one) for one in (values, logs) for f in (np.mean, np.std)] + [values.min(), values.max()]
    np.testing.assert_allclose(fit, expected)
    assert Fit.from_json(fit.to_json()) == fit and Fit.from_json({"edges": []}) is None
    assert Fit.of(np.full(3, 4.0))[:2] == (4.0, 1.0)
    hour = Fit.of(1.7e9 + np.arange(3600.0))  # of an hour the logarithms differ by less than 32 bits tell apart
    assert hour.std == pytest.approx(1.7e9 / 2**20, rel=1e-5) and hour.log_std == pytest.approx(
        np.log(1.7e9) / 2**20, rel=1e-3
    )
    assert Fit.of(np.full(3, 1_700_000_123.0))[:2] == (np.float32(1_700_000_123), 1.0), (
        "or the one value is far from it"
    )


def test_each_group_has_its_numbers():
    numbers = Numbers(
        item=(number("log"), Number("y", "periodic", Fit.of(TRAINING), (), False)), event=(number("log"),)
    )
    module = EmbeddedNumbers(numbers, SETTINGS, W)
    batch = {"item_number": jnp.ones((7, 2)), "history_number": jnp.ones((3, 4, 1))}
    found, params = module.init_with_output(jax.random.key(0), batch, jnp.float32)
    assert {group: vectors.shape for group, vectors in found.items()} == {"item": (7, 2, W), "event": (3, 4, 1, W)}
    assert set(params["params"]) == {"item_x", "item_y", "event_x"}
