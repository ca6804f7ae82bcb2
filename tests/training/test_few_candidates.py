"""Runs whose batches have a bound on their candidates, and runs without histories."""

import json

import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import trees
from em3_jax.tables import packing
from em3_jax.training import experiment
from em3_jax.training.run import Run
from tests.conftest import user_error
from tests.grown_tables import grown
from tests.small_runs import small_config
from tests.training.test_sharding import check_equal, on_meshes

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]


def settings(dataset, epochs: float = 1.0, **overrides) -> dict:
    """DeepCTR's: the candidate's content, no history, few candidates for many examples."""
    changes = {
        "data__history_length": 0, "data__order": "by_item", "data__items_per_batch": 8,
        "data__features": ("image",), "model__backbone": "deepctr", "model__content_parts": ("item",),
        "model__cic__weight": 0.0, "train__epochs": epochs, "train__eval_every": 0,
    }  # fmt: skip
    return small_config(dataset, **changes | overrides).to_dict()


def test_a_run_goes_on_bit_for_bit_and_evaluates_once_an_epoch(planted, tmp_path, capsys):
    whole = train.train(settings(planted, 2.0), tmp_path / "whole")
    assert "batches of at most 8 distinct candidates, " in capsys.readouterr().out
    per_epoch = whole["step"] // 2
    train.train(settings(planted, 0.5), tmp_path / "cut")
    train.train(settings(planted, 2.0), tmp_path / "cut")
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid/auc" in line] == [per_epoch, 2 * per_epoch]
    parts = experiment.build(settings(planted, 2.0))
    states = [Run.open(tmp_path / name).checkpoints.restore_latest(parts.program.init()) for name in ("whole", "cut")]
    one, other = (trees.named_leaves(packing.unpacked(state)) for state, _ in states)
    assert one.keys() == other.keys() and int(states[0][0].step) == 2 * per_epoch
    for name, leaf in one.items():
        assert np.asarray(leaf).tobytes() == np.asarray(other[name]).tobytes(), name
    assert 0.3 < evaluation.evaluate(tmp_path / "whole", "test")["slices"]["all"]["auc"] < 1


def test_a_grown_run_keeps_the_bound(tmp_path):
    first, later = grown(tmp_path / "a", later=False), grown(tmp_path / "b", later=True)
    config = settings(first)
    config["data"]["batch_size"] = 32
    before = train.train(config, tmp_path / "run")["step"]
    more = settings(later, train__grow=True)
    more["data"]["batch_size"] = 32
    after = train.train(more, tmp_path / "run")["step"]
    new = np.asarray(later.split_rows("train"))[len(first.split_rows("train")) :]
    items = len(np.unique(later.interactions["item"][new]))
    assert -(-items // 8) <= after - before <= 1.1 * items / 8 + 1
    assert -(-len(new) // 32) < after - before  # most items are shown once or twice


def test_steps_on_several_devices_are_those_of_one(planted):
    none = {"model__backbone_settings__dropout": 0.0, "model__fusion_settings__dropout": 0.0}
    config = settings(planted, **none)  # dropout is another in other places of a block
    config["data"]["batch_size"] = 32
    check_equal(on_meshes(config, "label", [(1, 1), (4, 1)]))


@pytest.mark.parametrize("backbone", ["din", "deepfm", "deepctr"])
@pytest.mark.parametrize("content", ["none", "end_to_end"])
def test_without_histories_a_step_reads_the_candidates_alone(planted, backbone, content):
    config = settings(
        planted, model__backbone=backbone, model__content=content, data__order="shuffled", data__items_per_batch=0
    )
    parts = experiment.build(config)
    batch = parts.work.source[0]
    assert set(batch["item_id"][batch["item_mask"]]) == set(batch["item_id"][batch["item_position"]])
    _, aux = parts.program.train_step(parts.program.init(), parts.work.constants, parts.program.place(batch))
    assert np.isfinite(float(aux["loss"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__items_per_batch": 0},
            "config.data.items_per_batch=0: order by_item needs a number of candidates from 1",
        ),
        ({"data__items_per_batch": 129}, "config.data.items_per_batch=129: order by_item needs a number"),
        ({"data__order": "shuffled"}, "config.data.items_per_batch=8: order 'shuffled' takes items as they come"),
        ({"data__order": "by_items"}, "did you mean 'by_item'?"),
        ({"model__content_parts": ("item", "user")}, "config.data.history_length=0: config.model.content_parts 'user'"),
        ({"data__history_length": 8}, "config.data.history_length=8: neither backbone deepctr nor content reads"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(planted, changes, message):
    assert message in user_error(experiment.build, settings(planted, **changes))
