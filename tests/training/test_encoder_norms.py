"""Batch norms in the training step: what trains has the batch's statistics, what is frozen keeps its bits."""

import jax
import numpy as np
import pytest

from em3_jax import train
from em3_jax.core import trees
from em3_jax.data.format import open_dataset
from em3_jax.training import checkpoint, experiment
from tests import raw_items
from tests.training.test_sharding import on_meshes

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
FROZEN = "^encoders/image/(stem|stage0)"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return raw_items.write_pictures(tmp_path_factory.mktemp("pictures"))


def config_of(data, **changes) -> dict:
    config = raw_items.small_ranking(data, image=str(data.parent / "resnet"))
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config.to_dict()


def bits(tree) -> dict[str, np.ndarray]:
    return {name: np.array(leaf).view(np.uint32) for name, leaf in trees.named_leaves(tree).items()}


def changed(one: dict, other: dict) -> set[str]:
    return {name for name in one if (one[name] != other[name]).any()}


def after(parts: experiment.Experiment, steps: int):
    state = parts.program.init()
    for k in range(steps):
        batch = parts.program.place(parts.work.source[k])
        state, aux = parts.program.train_step(state, parts.work.constants, batch)
    assert "statistics" not in aux
    return state


def test_running_statistics_of_what_trains_move_and_frozen_ones_keep_their_bits(data):
    parts = experiment.build(config_of(data, optim__multipliers=((FROZEN, 0.0), ("^encoders/", 0.1))))
    before = bits(parts.program.init().params["encoders"]["image"])
    moved = changed(before, bits(after(parts, 4).params["encoders"]["image"]))
    assert not any(name.startswith(("stem", "stage0")) for name in moved)
    trained = {name for name in before if not name.startswith(("stem", "stage0"))}
    assert moved == trained and {name.rsplit("/")[-1] for name in moved} == {"kernel", "scale", "bias", "mean", "var"}


def test_prediction_reads_the_running_statistics(data):
    """Which no evaluation changes: an item's score does not depend on the other items of its batch."""
    parts = experiment.build(config_of(data))
    state = after(parts, 2)
    batch = parts.work.evaluation("valid")[0]
    before = bits(state.params)
    logits = np.asarray(parts.program.predict(state, parts.program.place(batch)))
    assert not changed(before, bits(state.params))
    own = state.params["encoders"]["image"]["stage1_block0_conv0"]["norm"]
    assert np.abs(np.asarray(own["mean"])).max() > 0
    by_statistics = jax.tree.map(lambda leaf: leaf, state.params)
    by_statistics["encoders"]["image"]["stage1_block0_conv0"]["norm"] = own | {"mean": own["mean"] + 1}
    others = parts.program.predict(state.replace(params=by_statistics), parts.program.place(batch))
    assert np.abs(np.asarray(others) - logits).max() > 1e-6


def test_steps_on_1_2_and_4_devices_have_the_same_statistics_and_loss(data):
    """Statistics are of the batch, wherever its items lie: on the devices, or on the host."""
    results = on_meshes(config_of(data), "label", ((1, 1), (2, 1), (4, 1, {"placement": "host"})))
    for other in results[1:]:
        for name, value in results[0]["first"].items():
            if not name.endswith("_accuracy"):  # of which ties make a count
                assert other["first"][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    found = [name for name in results[0]["first"] if name.startswith("params/encoders/image") and "/norm/var" in name]
    assert len(found) == 9


def test_a_run_resumes_to_the_same_bits(data, tmp_path):
    rows = len(open_dataset(data).split_rows("train"))

    def run_to(steps: int, name: str) -> int:
        changes = {"train__epochs": steps * 32 / rows, "train__eval_every": 3, "train__patience": 0}
        return train.train(config_of(data, **changes), tmp_path / name)["step"]

    run_to(6, "whole"), run_to(3, "halves")
    assert run_to(6, "halves") == 6
    template = jax.eval_shape(experiment.build(config_of(data)).program.init)
    saved = [checkpoint.Checkpoints(tmp_path / name).restore(template, 6)[0] for name in ("whole", "halves")]
    whole, halves = (bits(state.params) for state in saved)
    assert not changed(whole, halves) and any("/norm/var" in name for name in whole)
