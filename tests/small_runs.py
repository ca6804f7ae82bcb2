"""The shipped config of planted data, shrunk, and what is compared of its runs."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from configs import em3_synthetic
from em3_jax.training import checkpoint, experiment

STEPS = 24


def small_config(planted, **overrides):
    """The shipped config of planted data, shrunk."""
    config = em3_synthetic.get_config()
    config.data.root = str(planted.root)
    config.data.batch_size = 128
    config.data.history_length = 8
    config.model.backbone_settings.hidden = (16,)
    config.model.fusion_settings.width = 16
    config.model.fusion_settings.ffn_width = 16
    config.model.cic.negatives = 16
    config.train.epochs = STEPS * 128 / len(planted.split_rows("train"))
    config.train.log_every = 2
    config.train.eval_every = 6
    config.train.patience = 0
    for name, value in overrides.items():
        *path, key = name.split("__")
        section = config
        for part in path:
            section = section[part]
        section[key] = value
    return config


def small(planted, **overrides) -> dict:
    return small_config(planted, **overrides).to_dict()


def arguments(planted, directory) -> list[str]:
    """The command line of `small_config`."""
    config = small_config(planted)
    changed = {
        "data.root": config.data.root, "data.batch_size": 128, "data.history_length": 8,
        "model.backbone_settings.hidden": "(16,)",
        "model.fusion_settings.width": 16, "model.fusion_settings.ffn_width": 16, "model.cic.negatives": 16,
        "data.features": "image,text", "train.epochs": config.train.epochs, "train.log_every": 2,
        "train.eval_every": 6, "train.patience": 0,
    }  # fmt: skip
    options = [f"--config.{name}={value}" for name, value in changed.items()]
    return [sys.executable, "train.py", "--config=configs/em3_synthetic.py", f"--workdir={directory}", *options]


def records(directory) -> list[dict]:
    """The lines of metrics.jsonl without the timings."""
    lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def final_state(planted, directory) -> dict[str, np.ndarray]:
    parts = experiment.build(small_config(planted).to_dict())
    state, _ = checkpoint.Checkpoints(directory).restore(jax.eval_shape(parts.program.init), STEPS)
    return {name: np.asarray(leaf) for name, leaf in checkpoint._flat(state).items()}


def check_same_state(planted, one, other) -> None:
    expected, got = final_state(planted, one), final_state(planted, other)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert value.tobytes() == got[name].tobytes(), name


def check_same_run(planted, one, other) -> None:
    check_same_state(planted, one, other)
    assert records(one) == records(other)
