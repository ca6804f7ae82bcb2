"""FuxiCTR 2.3.10's DIN and DCNv2 in the race, see protocol.py.

Its own feature processor, loader (one worker process, its default), models, fit and metrics. The wheel holds both models
in their LongCTR form, which takes a batch as (columns, what events and candidate hold, mask); `rows_of` makes that of the
rows of the plain loader. Ratings of events are a column of the item's side, on which the candidate has 0 (padding).
Layers and rates are its MovieLens and model-zoo ones; see SETTINGS.
"""

import copy
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN.DIN import DIN
from protocol import Reports, main

SETTINGS = {
    "verbose": 0, "early_stop_patience": 4, "save_best_only": True, "group_id": None, "gpu": -1, "batch_size": 1024,
    "loss": "binary_crossentropy", "metrics": ["AUC"], "task": "binary_classification", "optimizer": "adam",
    "learning_rate": 1.0e-3, "net_regularizer": 0, "embedding_regularizer": 1.0e-5, "embedding_dim": 16,
    "net_dropout": 0, "batch_norm": False, "epochs": 30, "monitor": "AUC", "monitor_mode": "max",
}  # fmt: skip
MODELS = {
    "DIN": (DIN, {
        "dnn_hidden_units": [256, 128, 64], "dnn_activations": "relu", "attention_hidden_units": [64],
        "attention_hidden_activations": "Dice", "attention_output_activation": None, "attention_dropout": 0,
        "din_use_softmax": False,
    }),
    "DCNv2": (DCNv2, {
        "model_structure": "parallel", "use_low_rank_mixture": False, "num_cross_layers": 3,
        "parallel_dnn_hidden_units": [256, 128, 64], "stacked_dnn_hidden_units": [], "dnn_activations": "relu",
    }),
}  # fmt: skip
EVALUATIONS = 4  # an epoch, as often as ours; its default is one
DATASET = "rows"


def prepare(rows: Path, work: Path) -> None:
    """Encodes the rows with FuxiCTR's processor; its `build_dataset` without Ray."""
    columns = json.loads((rows / "rows.json").read_text())
    features = [{"name": columns["single"], "active": True, "dtype": "str", "type": "categorical"}]
    of_list = {"active": True, "dtype": "str", "type": "sequence", "splitter": "^", "padding": "pre"}
    for name, length in columns["lists"].items():
        features.append(of_list | {"name": name, "max_len": length})
    for of_event, name in columns["history"].items():
        shared = {"share_embedding": of_event} if of_event in columns["single"] else {}
        features.append(of_list | {"name": name, "max_len": columns["length"]} | shared)
    params = {
        "data_root": str(work), "dataset_id": DATASET, "feature_cols": features,
        "label_col": {"name": columns["label"], "dtype": "float"}, "min_categr_count": 1,
    }  # fmt: skip
    processor = FeatureProcessor(**params)
    parts = ("train", "valid")
    tables = {
        part: processor.preprocess(processor.read_data(str(rows / f"{part}.csv"), data_format="csv")) for part in parts
    }
    processor.fit(tables["train"], min_categr_count=1)
    for part, table in tables.items():
        values = {name: np.array(column) for name, column in table.collect().to_dict(as_series=False).items()}
        np.savez(work / f"{part}.npz", **processor.transform(values))
    (work / "rows.json").write_text(json.dumps(columns))


def rows_of(model: type, columns: dict, reports: Reports) -> type:
    """The model, on rows of the plain loader, reporting its evaluations."""
    item, (history, *others) = columns["item"], columns["history"].values()

    class Rows(model):  # type: ignore[misc, valid-type]
        trained = 0

        def forward(self, inputs):
            of_row = {name: column.long() for name, column in inputs.items()}
            past = of_row.pop(history)
            events = {item: torch.cat([past, of_row.pop(item)[:, None]], dim=1).flatten()}
            for name in others:
                values = of_row.pop(name)
                events[name] = torch.cat([values, torch.zeros_like(values[:, :1])], dim=1).flatten()
            return super().forward((of_row, events, (past != 0).float()))

        def get_labels(self, inputs):
            return inputs[self.feature_map.labels[0]].float().view(-1, 1)

        def train_step(self, batch_data):
            self.trained += len(batch_data[item])
            return super().train_step(batch_data)

        def eval_step(self):
            with reports.evaluating():
                super().eval_step()
                if not reports.valid(self.scores, self.trained):
                    self._stop_training = True
            self.trained = 0

        def evaluate_metrics(self, y_true, y_pred, metrics, group_id=None):
            self.scores = y_pred
            return super().evaluate_metrics(y_true, y_pred, metrics, group_id)

    return Rows


def train(work: Path, name: str, seed: int, threads: int) -> None:
    """The run of a model."""
    reports = Reports(work)
    columns = json.loads((work / "rows.json").read_text())
    kind, settings = MODELS[name]
    params = SETTINGS | settings | {"seed": seed, "model_id": name, "dataset_id": DATASET, "data_root": str(work)}
    params["model_root"] = str(work / "checkpoints")
    logging.disable(logging.INFO)
    torch.set_num_threads(threads)
    seed_everything(seed)
    feature_map = FeatureMap(DATASET, str(work / DATASET))
    feature_map.load(str(work / DATASET / "feature_map.json"), params | {"feature_specs": None})
    loaders = {
        part: NpzDataLoader(
            feature_map,
            str(work / f"{part}.npz"),
            batch_size=params["batch_size"],
            shuffle=part == "train",
            num_workers=1,
        )
        for part in ("train", "valid")
    }
    of_model = copy.deepcopy(feature_map)
    first, *others = columns["history"].values()
    of_model.features.pop(first)  # is read by way of the item's table
    of_model.features[columns["item"]]["source"] = "item"
    for other in others:
        of_model.features[other] |= {"source": "item", "type": "categorical"}
        of_model.features[other].pop("feature_encoder", None)
    model = rows_of(kind, columns, reports)(of_model, **params, eval_steps=len(loaders["train"]) // EVALUATIONS)
    os.makedirs(model.model_dir, exist_ok=True)
    reports.training()
    model.fit(loaders["train"], epochs=params["epochs"], validation_data=loaders["valid"])


if __name__ == "__main__":
    main(prepare, train)
