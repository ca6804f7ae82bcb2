"""config.train.init_parts: what a run takes of another one."""

import jax
import numpy as np
import pytest

from em3_jax import train
from em3_jax.core import trees
from em3_jax.tables import packing
from em3_jax.training import experiment
from em3_jax.training.run import Run
from em3_jax.training.warm_start import warm_start
from tests.conftest import user_error
from tests.features.test_raw import make_config, world  # noqa: F401

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]


def config_of(world, **changes) -> dict:  # noqa: F811
    """A raw run whose encoders train, from where `changes` say."""
    config = make_config(world.raw, world.folders, **changes)
    config["optim"]["multipliers"] = ()
    config["train"] |= {"eval_every": 2, "patience": 0}
    config["train"]["epochs"] = 4 * 32 / len(experiment.build(config).work.source.rows)
    return config


@pytest.fixture(scope="module")
def earlier(world, tmp_path_factory):  # noqa: F811
    directory = tmp_path_factory.mktemp("runs") / "earlier"
    train.train(config_of(world), directory)
    return directory


def leaves(state) -> dict[str, np.ndarray]:
    state = packing.unpacked({"params": state.params, "tables": state.tables})
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(jax.device_get(state)).items()}


TAKEN = {"all": ("params/", "tables/"), "all_but_ids": ("params/",), "encoders": ("params/encoders/",)}


@pytest.mark.parametrize("parts", TAKEN)
def test_the_parts_that_are_named_are_taken_and_the_others_stay_fresh(world, earlier, parts):  # noqa: F811
    parts_of_run = experiment.build(config_of(world))
    fresh = leaves(parts_of_run.program.init())
    trained = leaves(Run.open(earlier).state())
    data_hash = parts_of_run.work.dataset.meta["data_hash"]
    found = leaves(warm_start(parts_of_run.program.init(), earlier, data_hash, parts))
    moved = {name for name in fresh if not np.array_equal(fresh[name], trained[name])}
    assert {name.split("/")[1] for name in moved} >= {"encoders", "model", "embedding"}
    for name, value in found.items():
        expected = trained if name.startswith(TAKEN[parts]) else fresh
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_encoders_may_come_from_another_dataset_and_nothing_else_may(world, earlier, tmp_path):  # noqa: F811
    state = lambda: experiment.build(config_of(world)).program.init()  # noqa: E731
    assert leaves(warm_start(state(), earlier, "another", "encoders"))
    for parts in ("all", "all_but_ids"):
        assert "was trained on another dataset" in user_error(warm_start, state(), earlier, "another", parts)


def test_what_cannot_be_taken_is_one_line(world, earlier, tmp_path):  # noqa: F811
    def error(config):
        message = user_error(train.train, config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        return message

    named = {"init_from": str(earlier), "init_parts": "encoders"}
    alone = config_of(world)
    alone["train"]["init_parts"] = "all_but_ids"
    assert error(alone).startswith("config.train.init_parts=all_but_ids: there is no run to take them from")
    alone["train"]["init_parts"] = "encoder"
    assert "did you mean 'encoders'?" in error(alone)
    end_to_end = make_config(world.encoded)
    end_to_end["train"] |= named
    assert "config.train.init_parts=encoders: this model has none" in error(end_to_end)
    frozen = tmp_path / "frozen"
    settings = make_config(world.encoded)
    settings["train"] |= {"epochs": 0.2, "patience": 0}
    train.train(settings, frozen)
    raw = config_of(world)
    raw["train"] |= named | {"init_from": str(frozen)}
    assert "is absent there" in (message := error(raw)) and "the same encoders" in message
