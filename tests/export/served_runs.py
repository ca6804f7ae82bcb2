"""Small runs of each kind that is served, and what a service is asked of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from configs import lemur as lemur_config
from em3_jax import train
from em3_jax.data.batches import Buckets
from em3_jax.export import command as export
from em3_jax.serving.service import Model
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
from tests.small_runs import small_config

PLAIN = export.Settings(batch_size=16, platforms=("cpu",))
REQUESTS = 1000


def lemur_settings(dataset) -> dict:
    config = lemur_config.get_config()
    config.data.root, config.data.features = str(dataset.root), ("image", "text")
    config.data.history_length, config.data.batch_size = 6, 64
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    config.model.backbone_settings.hidden = (8,)
    config.model.short_history = 4
    return config.to_dict()


def em3_settings(dataset, **overrides) -> dict:
    config = small_config(dataset, data__features=("image", "text"), data__history_length=6, data__batch_size=64)
    for name, value in overrides.items():
        config.model[name] = value
    return config.to_dict()


def without_history(dataset) -> dict:
    config = em3_settings(dataset, content_parts=("item",), backbone="deepctr")
    config["data"]["history_length"] = 0
    return config


SETTINGS = {
    "em3": lambda dataset: em3_settings(
        dataset, content_parts=("item", "user", "similarity"), content_score="cosine", content_events=True
    ),
    "ids": lambda dataset: em3_settings(dataset, content="none", backbone="deepfm"),
    "lemur": lemur_settings,
    "no_history": without_history,
    "bf16": lambda dataset: em3_settings(dataset, precision="bf16", backbone="dcnv2", content_events=True),
}


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """name -> folder of a run of a few steps on the tiny dataset, which has every kind of field."""
    made = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            config = SETTINGS[name](tiny.dataset)
            config["train"] |= {"epochs": 4.0, "log_every": 2, "eval_every": 100, "patience": 0}
            train.train(config, made[name])
        return made[name]

    return run


def expected_logits(directory: Path, requests: list[dict]) -> np.ndarray:
    """What `eval.py`'s prediction gives for the candidates of all requests, one after the other, as rows of a dataset."""
    run = Run.open(directory)
    parts = run.experiment
    dataset = parts.work.dataset
    rows = np.concatenate([np.full(len(request["candidates"]), request["row"]) for request in requests])
    columns = {name: np.asarray(column)[rows] for name, column in dataset.interactions.items()}
    columns["item"] = np.concatenate([request["candidates"] for request in requests]).astype(np.int32)
    builder = parts.work.builder(dataclasses.replace(dataset, interactions=columns))
    state, _ = Checkpoints(directory, run.data_hash).restore(parts.program.shapes)
    size, logits = 512, []
    for start in range(0, len(rows), size):
        some = np.minimum(start + np.arange(size), len(rows) - 1)
        batch = builder(some, buckets=Buckets(dataset.num_items, builder.num_rows, encode=dataset.num_items))
        logits.append(np.asarray(parts.program.predict(state, parts.program.place(batch))))
    return np.concatenate(logits)[: len(rows)]


def make_requests(dataset, count: int) -> list[dict]:
    """Of varied sizes: the user, history and context of some row of the log, and items drawn as candidates."""
    random = np.random.default_rng(3)
    rows = random.integers(0, len(dataset.interactions["user"]), count)
    return [{"row": row, "candidates": random.integers(0, dataset.num_items, random.integers(1, 40))} for row in rows]


def ask(model: Model, dataset, request: dict):
    columns, row = dataset.interactions, request["row"]
    events = slice(columns["history_start"][row], columns["history_end"][row])
    ids, users = (table.column("id").to_numpy() for table in (dataset.item_table, dataset.user_table))
    return model.score(
        users[columns["user"][row]],
        ids[dataset.events["item"][events]],
        ids[request["candidates"]],
        context={field.name: int(columns[f"context_{field.name}"][row]) for field in dataset.fields.context},
        history_fields={f.name: dataset.events[f"field_{f.name}"][events] for f in dataset.fields.event},
    )
