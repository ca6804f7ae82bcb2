"""A small run that what is asked of rows is asked of."""

from pathlib import Path

import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from tests.small_runs import small_config


@pytest.fixture(scope="session")
def scored(planted, tmp_path_factory) -> Path:
    """The folder of a run on the planted data, its test split evaluated."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    config = small_config(planted, data__batch_size=128, eval__batch_size=64)
    config.train.epochs = 1.0
    train.train(config, folder)
    evaluation.evaluate(folder, "test")
    return folder
