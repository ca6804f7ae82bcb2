"""RecBole 1.2.1's DIN in the race, see protocol.py.

Its atomic files with ready-made splits and histories (`benchmark_filename`), Dataset, loaders, DIN, Trainer with early
stopping. Its DIN reads histories and candidates with all columns of the item, and no columns of the user nor of events:
its docstring says so. `mlp_hidden_size` is both of the DNN and of the attention. An epoch of the trainer is a quarter of
one, so that it evaluates as often as ours.
"""

import csv
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from protocol import Reports, Shares, main
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender.din import DIN
from recbole.trainer import Trainer
from recbole.utils import init_logger, init_seed

EVALUATIONS, EPOCHS, PATIENCE = 4, 30, 4
SETTINGS = {
    "embedding_size": 16, "mlp_hidden_size": [128, 64], "learning_rate": 1e-3, "train_batch_size": 1024,
    "eval_batch_size": 1024, "epochs": EVALUATIONS * EPOCHS, "stopping_step": PATIENCE, "train_neg_sample_args": None,
    "metrics": ["AUC"], "valid_metric": "AUC", "use_gpu": False, "show_progress": False, "reproducibility": True,
    "USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LABEL_FIELD": "click", "ITEM_LIST_LENGTH_FIELD": "item_length",
    "alias_of_item_id": ["item_id_list"], "LIST_SUFFIX": "_list", "benchmark_filename": ["train", "valid", "valid"],
    "eval_args": {"group_by": None, "order": "TO", "mode": "labeled"}, "save_dataset": False,
}  # fmt: skip
DATASET = "rows"


def prepare(rows: Path, work: Path) -> None:
    """Its atomic files: rows.train.inter, rows.valid.inter, rows.item."""
    columns = json.loads((rows / "rows.json").read_text())
    folder, item, history = work / DATASET, columns["item"], columns["history"][columns["item"]]
    folder.mkdir(parents=True, exist_ok=True)
    items: dict[str, list[str]] = {}
    for part in ("train", "valid"):
        with (
            open(rows / f"{part}.csv", encoding="utf-8", newline="") as source,
            open(folder / f"{DATASET}.{part}.inter", "w", encoding="utf-8") as out,
        ):
            out.write("user_id:token\titem_id:token\titem_id_list:token_seq\tclick:float\n")
            for row in csv.DictReader(source):
                events = row[history].replace("^", " ")
                out.write(f"{row['user_id']}\t{row[item]}\t{events}\t{row[columns['label']]}\n")
                items[row[item]] = [row[name].replace("^", " ") for name in columns["of_item"]]
    kinds = [f"{name}:{'token_seq' if name in columns['lists'] else 'token'}" for name in columns["of_item"]]
    lines = ["\t".join([name, *values]) for name, values in items.items()]
    (folder / f"{DATASET}.item").write_text("\n".join(["\t".join(["item_id:token", *kinds]), *lines]) + "\n")
    (work / "of_item.json").write_text(json.dumps(columns["of_item"]))


class Reporting(Trainer):
    """The trainer, reporting its evaluations."""

    def _neg_sample_batch_eval(self, batched_data):
        out = super()._neg_sample_batch_eval(batched_data)
        self.scores.append(out[1].numpy())
        return out

    def _valid_epoch(self, valid_data, show_progress=False):
        with self.reports.evaluating():
            self.scores = []
            out = super()._valid_epoch(valid_data, show_progress)
        if not self.reports.valid(np.concatenate(self.scores), self.shares.examples):
            raise SystemExit
        return out


def train(work: Path, _name: str, seed: int, threads: int) -> None:
    reports = Reports(work)
    loaded = {"inter": ["user_id", "item_id", "item_id_list", "click"]}
    loaded["item"] = ["item_id", *json.loads((work / "of_item.json").read_text())]
    settings = SETTINGS | {"data_path": str(work), "load_col": loaded, "seed": seed, "MAX_ITEM_LIST_LENGTH": 50}
    sys.argv = sys.argv[:1]  # it reads the command line as well
    config = Config(model=DIN, dataset=DATASET, config_dict=settings | {"checkpoint_dir": str(work / "saved")})
    torch.set_num_threads(threads)
    init_seed(seed, config["reproducibility"])
    init_logger(config)
    logging.disable(logging.INFO)
    train_loader, valid_loader, _ = data_preparation(config, create_dataset(config))
    model = DIN(config, train_loader._dataset).to(config["device"])
    trainer = Reporting(config, model)
    trainer.reports, trainer.shares = reports, Shares(train_loader, EVALUATIONS, len)
    reports.training()
    trainer.fit(trainer.shares, valid_loader, verbose=False)


if __name__ == "__main__":
    main(prepare, train)
