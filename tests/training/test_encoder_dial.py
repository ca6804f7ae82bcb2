"""The dial of config.model.encoder_trains in training: what moves, what has optimizer state, and what merging leaves."""

import json

import jax
import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import trees
from em3_jax.training import checkpoint, experiment, merge, rundir
from tests import raw_items
from tests.conftest import user_error

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
LAST = ("stage1_block1_conv0", "stage1_block1_conv1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return raw_items.write_pictures(tmp_path_factory.mktemp("pictures"))


def config_of(data, trains: str, **model) -> dict:
    config = raw_items.small_ranking(data, image=str(data.parent / "resnet"))
    config.optim.multipliers = (("^encoders/", 0.0),)  # as recipes have it; the dial says more
    config.model.encoder_trains = {"image": trains} if trains else {}
    config.model.update(model)
    return config.to_dict()


def moved(before, after) -> set[str]:
    before, after = trees.named_leaves(before), trees.named_leaves(after)
    return {name for name in before if np.any(np.asarray(before[name]) != np.asarray(after[name]))}


def one_step(parts):
    """(parameters before, state after) a step."""
    state = parts.program.init()
    before = jax.device_get(state.params)
    return before, parts.program.train_step(state, parts.work.constants, parts.program.place(parts.work.source[0]))[0]


def test_the_head_moves_alone_with_its_statistics_and_has_the_only_optimizer_state(data):
    parts = experiment.build(config_of(data, "head"))
    before, state = one_step(parts)
    found = moved(before["encoders"]["image"], state.params["encoders"]["image"])
    assert {name.split("/")[0] for name in found} == set(LAST)
    assert {name.rpartition("/")[2] for name in found} == {"kernel", "scale", "bias", "mean", "var"}
    frozen = {name for name, is_frozen in parts.program.frozen.items() if is_frozen}
    names = trees.named_leaves(before["encoders"]["image"])
    assert frozen == {f"encoders/image/{name}" for name in names if not name.startswith(LAST)}
    slots = {
        name.partition("/encoders/image/")[2] for name in trees.named_leaves(state.opt_state) if "encoders" in name
    }
    assert slots == {name for name in names if name.startswith(LAST)}


def test_adapters_move_alone_and_what_they_begin_with_changes_nothing(data):
    parts, frozen = (experiment.build(config_of(data, trains)) for trains in ("adapters", "none"))
    state = parts.program.init()
    batch = parts.work.evaluation("valid")[0]
    assert set(state.params["adapters"]["image"]["stem"]["conv"]) == {"lora_a", "lora_b"}
    logits = frozen.program.predict(frozen.program.init(), batch)
    np.testing.assert_array_equal(parts.program.predict(state, batch), logits)
    before, state = one_step(parts)
    found = moved(before, state.params)
    assert not any(name.startswith("encoders/") for name in found)
    adapters = {name for name in found if name.startswith("adapters/")}
    names = trees.named_leaves({"adapters": before["adapters"]})
    assert adapters == {name for name in names if name.endswith("lora_b")}  # lora_a from the next step on


def test_a_run_with_adapters_is_merged_and_scores_the_same(data, tmp_path):
    config = config_of(data, "adapters", encoder_rank=2)
    config["train"] |= {"epochs": 1.0, "eval_every": 3, "patience": 0}
    config["optim"]["learning_rate"] = 0.02
    train.train(config, tmp_path / "run")
    merged = merge.merge(tmp_path / "run", tmp_path / "merged")
    assert merged["adapters"] == 9  # convolutions
    record = rundir.read(tmp_path / "merged")
    assert record["config"]["model"]["encoder_trains"] == {"image": "none"}
    reports = [evaluation.evaluate(tmp_path / name, "test")["slices"]["all"] for name in ("run", "merged")]
    assert reports[1] == pytest.approx(reports[0], abs=1e-5)
    logits = [np.load(tmp_path / name / "eval_test_logits.npy") for name in ("run", "merged")]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)
    parts = experiment.build(record["config"])
    state, _ = checkpoint.Checkpoints(tmp_path / "merged").restore(jax.eval_shape(parts.program.init))
    loaded = trees.named_leaves(parts.work.encoders["image"].params)
    apart = {
        name: np.abs(leaf - loaded[name]).max()
        for name, leaf in trees.named_leaves(state.params["encoders"]["image"]).items()
    }
    assert all((apart[name] > 1e-4) == name.endswith("kernel") for name in apart)
    assert "adapters" not in state.params
    json.dumps(record["config"])


def test_what_the_dial_cannot_do_is_said_in_a_line(data):
    message = user_error(experiment.build, config_of(data, "last 4"))
    assert "encoder_trains.image='last 4'" in message and "from 1 to 3" in message
    config = config_of(data, "head")
    config["model"]["encoder_trains"] = {"picture": "head"}
    assert "encoder_trains.picture: no encoder reads" in user_error(experiment.build, config)
    config = config_of(data, "head", content="end_to_end")
    config["model"]["encoders"] = {}
    assert "encoder_trains" in user_error(experiment.build, config)
