"""Several seeds: in turn each is its own run to the bit, together to a millionth; what they draw is their own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import em3_jax as em3
from em3_jax.core import trees
from tests.conftest import user_error
from tests.planted_pairs import planted_pairs
from tests.small_runs import small

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.filterwarnings("ignore:features .* random weights")]

SEEDS, STEPS = (3, 0), 4
KINDS = {"em3": {}, "ids": {"model__content": "none", "tables__optimizer": "lazy_adam"}}


@pytest.fixture(scope="module", params=KINDS)
def settings(request, planted) -> dict:
    """EM3, with CIC, and IDs alone with lazy Adam; both with dropout, as the config has it."""
    return small(planted, **KINDS[request.param])


@pytest.fixture(scope="module")
def experiment(settings) -> em3.Experiment:
    return em3.Experiment(settings)


def stepped(runs, count: int = STEPS) -> tuple:
    """(states after steps, the scalars of each), of an experiment or of several seeds."""
    states, logged = runs.init(), []
    for step in range(count):
        states, scalars = runs.train_step(states, runs.batch(step))
        logged.append(jax.device_get(scalars))
    return states, logged


@pytest.fixture(scope="module")
def alone(settings) -> dict:
    """Seed -> (state, scalars, metrics on validation) of a run of its own."""
    result = {}
    for seed in SEEDS:
        own = em3.Experiment(settings | {"seed": seed})
        state, logged = stepped(own)
        result[seed] = (state, logged, own.evaluate(state))
    return result


def differences(one, other) -> dict[str, float]:
    """Leaf -> the largest difference."""
    one, other = trees.named_leaves(one), trees.named_leaves(other)
    assert one.keys() == other.keys()
    return {
        name: float(np.max(abs(np.asarray(leaf, np.float64) - other[name]), initial=0)) for name, leaf in one.items()
    }


def test_in_turn_each_is_its_own_run_bit_for_bit(experiment, alone):
    runs = experiment.seeds(SEEDS)
    assert not runs.together  # on CPUs
    states, logged = stepped(runs)
    for k, (seed, (state, own, _)) in enumerate(alone.items()):
        mine, expected = trees.named_leaves(runs.state(states, seed)), trees.named_leaves(state)
        assert {name: np.asarray(leaf).tobytes() for name, leaf in mine.items()} == {
            name: np.asarray(leaf).tobytes() for name, leaf in expected.items()
        }
        assert [{name: value[k] for name, value in scalars.items()} for scalars in logged] == own
    np.testing.assert_equal(runs.evaluate(states), {seed: metrics for seed, (_, _, metrics) in alone.items()})


def test_together_each_is_its_own_run_to_a_millionth(experiment, alone):
    """But where a key's bias moves: it has no gradient, only rounding, which Adam makes steps of; and the query with it."""
    runs = experiment.seeds(SEEDS, together=True)
    states, logged = stepped(runs)
    assert states.step.tolist() == [STEPS, STEPS]
    for k, (seed, (state, own, _)) in enumerate(alone.items()):
        apart = {name for name, by in differences(runs.state(states, seed), state).items() if by > 1e-6}
        assert {"/".join(name.split("/")[-3:-1]) for name in apart} <= {"attention/key", "attention/query"}
        for mine, expected in zip(logged, own, strict=True):
            assert mine.keys() == expected.keys()
            np.testing.assert_allclose([of[k] for of in mine.values()], list(expected.values()), rtol=1e-6)
    scored = runs.evaluate(states)
    assert scored.keys() == alone.keys()
    for seed, found in scored.items():
        np.testing.assert_equal(found, experiment.evaluate(runs.state(states, seed)))


@pytest.mark.parametrize("together", [False, True])
def test_seeds_draw_dropout_of_their_own(experiment, together):
    """From one state, on one batch, they give losses of their own."""
    runs = experiment.seeds(SEEDS, together)
    copies = [experiment.init(1) for _ in SEEDS]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies) if together else tuple(copies)
    batches = experiment.seeds([4], together).batch(0)
    batches = jax.tree.map(lambda one: jnp.concatenate([one, one]), batches) if together else 2 * batches
    one, other = runs.train_step(states, batches)[1]["loss"].tolist()
    assert one != other and one == pytest.approx(other, rel=0.2)


def test_batches_of_different_shapes_are_steps_of_their_own(experiment):
    """As where one seed's batch names more items; what is stacked goes on from there."""
    found = []
    for together in (False, True):
        runs = experiment.seeds(SEEDS, together)
        usual = runs._sources[1].buckets
        wider = dataclasses.replace(usual, rows=usual.rows + 64)
        runs._sources[1] = dataclasses.replace(runs._sources[1], buckets=wider)
        batches = runs.batch(0)
        assert isinstance(batches, tuple) and len({batch["row_id"].shape for batch in batches}) == 2
        states, scalars = runs.train_step(runs.init(), batches)
        assert isinstance(states, tuple) is not together
        found.append(([runs.state(states, seed) for seed in SEEDS], scalars))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("model", ["bpr", "freedom"])
def test_pairs_come_in_the_order_of_each_seed(model, tmp_path):
    planted_pairs(tmp_path)
    overrides = {"data.root": tmp_path / "data", "data.batch_size": 256, "model.retrieval_settings.width": 8}
    batches = em3.Experiment(em3.load_config(f"retrieval:{model}", overrides)).seeds([0, 7]).batch(1)
    for seed, batch in zip((0, 7), batches, strict=True):
        own = em3.Experiment(em3.load_config(f"retrieval:{model}", overrides | {"seed": seed})).batch(1)
        assert {name: np.asarray(of).tobytes() for name, of in batch.items()} == {
            name: np.asarray(of).tobytes() for name, of in own.items()
        }
    assert not np.array_equal(batches[0]["user"], batches[1]["user"])


def test_seeds_that_are_none_are_refused(experiment):
    assert experiment.seeds(np.arange(2)).seeds == (0, 1)
    for seeds in ((), 3):
        assert "there is none; give one or more" in user_error(experiment.seeds, seeds)
    for seed in (-1, 1.5, True, "1", 1 << 32):
        assert "is none; each is a whole number from 0 to 4294967295" in user_error(experiment.seeds, (0, seed))
    assert "1 is there 2 times" in user_error(experiment.seeds, (1, 0, 1))
    runs = experiment.seeds(SEEDS)
    assert "2 is none of the seeds 3, 0" in user_error(runs.state, runs.init(), 2)
    assert "steps count from 0" in user_error(runs.batch, -1)
