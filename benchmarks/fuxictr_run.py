"""One run of FuxiCTR, in an environment that has it: called by benchmarks.fuxictr, nothing of ours is imported.

    python -P fuxictr_run.py <folder with model_config.yaml and dataset_config.yaml> <experiment> <seed> <threads>

Its own config reader, feature processor, loader, model, fit and evaluation. The wheel holds DIN and
DCNv2 in their LongCTR form, which takes a batch as (columns, items of history and candidate, mask);
`Rows` makes that of the rows of the plain loader, which is what the DIN of its model zoo does: attention
of the candidate's ID over the history's, the pooled vector beside all embeddings. Prints a line of JSON.
"""

import copy
import json
import logging
import os
import sys
import time

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr.utils import load_config
from model_zoo.LongCTR.DCNv2.DCNv2 import DCNv2
from model_zoo.LongCTR.DIN.DIN import DIN

MODELS = {"DIN": DIN, "DCNv2": DCNv2}


def prepared(params: dict) -> dict[str, str]:
    """Part -> file of encoded columns, by FuxiCTR's own processor; its `build_dataset` without Ray."""
    processor, files = FeatureProcessor(**params), {}
    tables = {
        part: processor.preprocess(processor.read_data(params[f"{part}_data"], data_format=params["data_format"]))
        for part in ("train", "valid", "test")
    }
    processor.fit(tables["train"], min_categr_count=params["min_categr_count"])
    for part, table in tables.items():
        columns = {name: np.array(values) for name, values in table.collect().to_dict(as_series=False).items()}
        files[part] = f"{processor.data_dir}/{part}.npz"
        np.savez(files[part], **processor.transform(columns))
    return files


def rows_of(model: type, item: str, history: str) -> type:
    """The model on rows of the plain loader."""

    class Rows(model):  # type: ignore[misc, valid-type]
        def forward(self, inputs):
            others = {name: column.long() for name, column in inputs.items()}
            past, target = others.pop(history), others.pop(item)
            both = torch.cat([past, target[:, None]], dim=1).flatten()
            return super().forward((others, {item: both}, (past != 0).float()))

        def get_labels(self, inputs):
            return inputs[self.feature_map.labels[0]].float().view(-1, 1)

        def train_epoch(self, data):
            start = time.perf_counter()
            super().train_epoch(data)
            self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - start - self.evaluating]
            self.evaluating = 0.0

        evaluating = 0.0

        def eval_step(self):
            start = time.perf_counter()
            super().eval_step()
            self.evaluating += time.perf_counter() - start

    return Rows


def main() -> None:
    folder, experiment, seed, threads = sys.argv[1:]
    params = load_config(folder, experiment) | {"seed": int(seed), "gpu": -1}
    logging.disable(logging.INFO)
    torch.set_num_threads(int(threads))
    seed_everything(params["seed"])
    files = prepared(params)
    feature_map = FeatureMap(params["dataset_id"], f"{params['data_root']}/{params['dataset_id']}")
    feature_map.load(f"{feature_map.data_dir}/feature_map.json", params)
    item, history = params["din_target_field"], params["din_sequence_field"]
    of_model = copy.deepcopy(feature_map)
    of_model.features.pop(history)  # is read by way of the item's table
    of_model.features[item]["source"] = "item"
    model = rows_of(MODELS[params["model"]], item, history)(of_model, **params)
    os.makedirs(model.model_dir, exist_ok=True)
    loaders = {
        part: NpzDataLoader(
            feature_map,
            file,
            batch_size=params["batch_size"],
            shuffle=part == "train",
            num_workers=params["num_workers"],
        )
        for part, file in files.items()
    }
    start = time.perf_counter()
    model.fit(loaders["train"], epochs=params["epochs"], validation_data=loaders["valid"])
    whole = time.perf_counter() - start
    rows = len(np.load(files["train"])[feature_map.labels[0]])
    result = {
        "auc": float(model.evaluate(loaders["test"])["AUC"]),
        "valid_auc": float(model.evaluate(loaders["valid"])["AUC"]),
        "epochs": len(model.seconds),
        "examples_per_second": rows / float(np.median(model.seconds)),
        "seconds": whole,
        "parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
