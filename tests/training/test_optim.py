"""optim: learning-rate multipliers, weight decay, schedules and clipping, each by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.tables import id_table
from em3_jax.training import optim

PLAIN = {
    "learning_rate": 0.01,
    "warmup_steps": 0,
    "decay_steps": 0,
    "weight_decay": 0.0,
    "l2": 0.0,
    "clip_norm": 0.0,
    "multipliers": (),
}


def make_params():
    random = np.random.default_rng(0)
    layer = lambda: {"kernel": random.normal(size=(3, 4)), "bias": random.normal(size=4)}  # noqa: E731
    tree = {"model": {"fusion": {"fc": layer()}, "dnn": layer()}, "cic": {"ids": layer()}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def run(params, steps: int = 1, gradient=None, **settings):
    """(params, optimizer state) after some steps with one gradient, ones by default."""
    optimizer = optim.dense_optimizer(params, **PLAIN | settings)
    gradient = jax.tree.map(jnp.ones_like, params) if gradient is None else gradient
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def changes(params, **settings) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(new) - np.asarray(old)
        for (name, old), new in zip(
            trees.named_leaves(params).items(), jax.tree.leaves(run(params, **settings)[0]), strict=True
        )
    }


# Multipliers.


def test_factor_zero_keeps_the_bits_and_has_no_optimizer_state():
    params = make_params()
    settings = {"multipliers": ((r"model/fusion/", 0.0),), "weight_decay": 0.5}
    after, state = run(params, steps=3, **settings)
    for (name, old), new in zip(trees.named_leaves(params).items(), jax.tree.leaves(after), strict=True):
        if "fusion" in name:
            np.testing.assert_array_equal(new, old)
        else:
            assert (np.asarray(new) != np.asarray(old)).all()
    _, whole = run(params, steps=1)
    moments = 2 * trees.num_bytes(params["model"]["fusion"])
    assert trees.num_bytes(whole) - moments - 8 <= trees.num_bytes(state) <= trees.num_bytes(whole) - moments + 8


def test_a_factor_scales_the_update_and_the_first_match_wins():
    params = make_params()
    plain = changes(params)
    scaled = changes(params, multipliers=(("cic", 0.1), ("kernel", 3.0), ("cic/ids/kernel", 7.0)))
    for name, change in scaled.items():
        factor = 0.1 if name.startswith("cic") else 3.0 if name.endswith("kernel") else 1.0
        np.testing.assert_allclose(change, factor * plain[name], rtol=1e-4)


@pytest.mark.parametrize("pattern", ["fussion", "^fusion", "kernel$x"])
def test_a_pattern_without_a_match_is_an_error_that_names_it(pattern):
    with pytest.raises(UserError, match="multipliers") as error:
        optim.dense_optimizer(make_params(), **PLAIN | {"multipliers": (("bias", 0.5), (pattern, 0.1))})
    assert repr(pattern) in str(error.value) and "\n" not in str(error.value)


def test_frozen_says_which_parameters_have_factor_zero():
    frozen = optim.frozen(make_params(), (("fusion/fc/bias", 1.0), ("fusion", 0.0), ("cic", 0.5)))
    assert {name for name, is_frozen in frozen.items() if is_frozen} == {"model/fusion/fc/kernel"}
    assert frozen.keys() == trees.named_leaves(make_params()).keys()


# Weight decay and clipping.


def test_weight_decay_is_decoupled_and_on_matrices_only():
    params = make_params()
    plain, decayed = changes(params), changes(params, weight_decay=0.3)
    for name, leaf in trees.named_leaves(params).items():
        extra = -PLAIN["learning_rate"] * 0.3 * np.asarray(leaf) if name.endswith("kernel") else 0.0
        np.testing.assert_allclose(decayed[name] - plain[name], extra * np.ones(leaf.shape), atol=1e-7)


def test_what_has_no_gradient_does_not_decay_and_all_else_as_adamw_has_it():
    """As the kernel beside a LoRA adapter: it stands still, bit for bit, whatever the multipliers."""
    params = make_params()
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["model"]["fusion"] = jax.tree.map(jnp.zeros_like, gradient["model"]["fusion"])
    after, state = run(params, steps=3, gradient=gradient, weight_decay=0.3)
    still = params["model"]["fusion"], after["model"]["fusion"]
    jax.tree.map(np.testing.assert_array_equal, *still)
    matrices = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)  # noqa: E731
    plain = optax.adamw(PLAIN["learning_rate"], weight_decay=0.3, mask=matrices)
    expected, of_plain = params, plain.init(params)
    for _ in range(3):
        updates, of_plain = plain.update(gradient, of_plain, expected)
        expected = optax.apply_updates(expected, updates)
    for part in ("model/dnn", "cic"):
        for name, leaf in trees.named_leaves(expected).items():
            if name.startswith(part):
                np.testing.assert_allclose(trees.named_leaves(after)[name], leaf, rtol=1e-6)
    # States are those of adamw, as checkpoints have them.
    names = [name.split("inner_state/")[1] for name in trees.named_leaves(state)]
    assert sorted(names) == sorted(trees.named_leaves(of_plain) | {"2/count": 0})


@pytest.mark.parametrize("size,bound", [(10.0, 1.0), (0.5, 1.0), (10.0, 0.0)])
def test_gradients_are_clipped_by_their_global_norm(size, bound):
    """Seen through Adam's first moment, which is 0.1 times the clipped gradient after one step."""
    params = make_params()
    direction = jax.tree.map(np.cos, params)
    gradient = jax.tree.map(lambda leaf: leaf * size / norm(direction), direction)
    _, state = run(params, gradient=gradient, clip_norm=bound)
    moments = [leaf for name, leaf in trees.named_leaves(state).items() if "/mu/" in name]
    assert norm(moments) == pytest.approx(0.1 * (min(size, bound) if bound else size), rel=1e-5)


def test_frozen_parameters_have_no_say_in_clipping():
    params = make_params()
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["cic"] = jax.tree.map(lambda leaf: 1e6 * leaf, gradient["cic"])
    _, state = run(params, gradient=gradient, clip_norm=1.0, multipliers=(("cic", 0.0),))
    moments = [leaf for name, leaf in trees.named_leaves(state).items() if "/mu/" in name]
    assert norm(moments) == pytest.approx(0.1, rel=1e-5)


# Schedules: with one constant gradient, Adam's step is the learning rate itself.


def learning_rates(steps: int, **settings) -> np.ndarray:
    """[steps] the learning rates of the steps."""
    params = {"x": jnp.zeros(2)}
    optimizer = optim.dense_optimizer(params, **PLAIN | settings)
    state = optimizer.init(params)
    update = jax.jit(lambda state: optimizer.update({"x": jnp.ones(2)}, state, params))
    rates = []
    for _ in range(steps):
        updates, state = update(state)
        rates.append(-float(updates["x"][0]))
    return np.array(rates)


def test_without_warm_up_and_decay_the_rate_is_constant():
    np.testing.assert_allclose(learning_rates(5), [0.01] * 5, rtol=1e-4)


def test_warm_up_is_linear_from_zero_and_then_constant():
    expected = 0.01 * np.minimum(np.arange(8) / 4, 1)
    np.testing.assert_allclose(learning_rates(8, warmup_steps=4), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_cosine_falls_to_zero_over_the_decay_steps_after_warm_up(warmup):
    steps = np.arange(14)
    cosine = 0.5 * (1 + np.cos(np.pi * np.minimum((steps - warmup) / 8, 1)))
    expected = 0.01 * np.where(steps < warmup, steps / max(warmup, 1), cosine)
    rates = learning_rates(14, warmup_steps=warmup, decay_steps=8)
    np.testing.assert_allclose(rates, expected, rtol=1e-4, atol=1e-8)


def test_multipliers_scale_the_whole_schedule():
    settings = {"warmup_steps": 2, "decay_steps": 5}
    rates = learning_rates(6, **settings)
    np.testing.assert_allclose(learning_rates(6, multipliers=(("x", 0.2),), **settings), 0.2 * rates, rtol=1e-4)


def test_l2_is_a_part_of_the_gradient_of_what_trains():
    params = make_params()
    settings = {"l2": 0.3, "clip_norm": 0.5, "multipliers": (("^cic", 0.0),)}
    trained = {name: leaf for name, leaf in trees.named_leaves(params).items() if not name.startswith("cic")}
    clip = 0.5 / norm([1 + 0.3 * leaf for leaf in trained.values()])
    moments = run(params, **settings)[1]
    first = {name: leaf for name, leaf in trees.named_leaves(moments).items() if "mu" in name.split("/")}
    expected = sorted(float(np.sum(0.1 * clip * (1 + 0.3 * leaf))) for leaf in trained.values())
    found = sorted(float(np.sum(leaf)) for leaf in first.values())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_l2_leaves_alone_what_has_no_gradient():
    """Such as the kernel beside a LoRA adapter, and what is known of an amount."""
    params = make_params()
    gradient = jax.tree.map(jnp.ones_like, params)
    gradient["model"]["dnn"] = jax.tree.map(jnp.zeros_like, gradient["model"]["dnn"])
    trained, _ = run(params, steps=3, gradient=gradient, l2=0.3, clip_norm=0.5)
    assert_same = lambda one, other: jax.tree.map(np.testing.assert_array_equal, one, other)  # noqa: E731
    assert_same(trained["model"]["dnn"], params["model"]["dnn"])
    assert not np.array_equal(trained["model"]["fusion"]["fc"]["kernel"], params["model"]["fusion"]["fc"]["kernel"])


# Row optimizers.


def test_an_unknown_row_optimizer_is_an_error_that_lists_the_known():
    with pytest.raises(UserError, match=r"'adamw'.*rowwise_adagrad, lazy_adam"):
        id_table.row_optimizer("adamw", 0.1)
