"""torch-rechub 0.9.0's DIN in the race, see protocol.py.

Its DataGenerator (no worker processes, its default), DIN, activation units, CTRTrainer with early stopping. Widths are
FuxiCTR's, so that torch rivals are alike; weight decay is the trainer's default. Ratings of events are a second history,
whose candidate is padding. An epoch of the trainer is a quarter of one, so that it evaluates as often as ours.
"""

from pathlib import Path

import numpy as np
import torch
from encode import load, save
from protocol import Reports, Shares, main
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DIN
from torch_rechub.trainers import CTRTrainer
from torch_rechub.utils.data import DataGenerator

WIDTH, HIDDEN, ATTENTION, BATCH = 16, [256, 128, 64], [64], 1024
EVALUATIONS, EPOCHS, PATIENCE = 4, 30, 4


class Trainer(CTRTrainer):
    """The trainer, reporting its evaluations."""

    def evaluate(self, model, data_loader):
        with self.reports.evaluating():
            auc = super().evaluate(model, data_loader)
        if not self.reports.valid(np.array(self.scores), self.shares.examples):
            raise SystemExit
        return auc


def features_of(columns: dict, sizes: dict[str, int]) -> tuple[list, list, list]:
    """(of the row, histories, candidates)."""
    item, history = columns["item"], columns["history"]
    made = [SparseFeature(name, sizes[name], WIDTH, padding_idx=0) for name in columns["single"] if name != item]
    made += [SequenceFeature(name, sizes[name], WIDTH, "mean", padding_idx=0) for name in columns["lists"]]
    events = [SequenceFeature(history[item], sizes[item], WIDTH, "concat", shared_with=item, padding_idx=0)]
    candidates = [SparseFeature(item, sizes[item], WIDTH, padding_idx=0)]
    for of_event, name in history.items():
        if of_event != item:
            events.append(SequenceFeature(name, sizes[name], WIDTH, "concat", padding_idx=0))
            candidates.append(SparseFeature(f"candidate_{name}", sizes[name], WIDTH, shared_with=name))
    return made, events, candidates


def train(work: Path, _name: str, seed: int, threads: int) -> None:
    reports = Reports(work)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    columns, sizes, parts = load(work)
    made, events, candidates = features_of(columns, sizes)
    labels = {part: arrays.pop(columns["label"]) for part, arrays in parts.items()}
    for arrays in parts.values():
        arrays |= {one.name: np.zeros(len(arrays[columns["item"]]), np.int64) for one in candidates[1:]}
    generator = DataGenerator(parts["train"], labels["train"])
    valid = {"x_val": parts["valid"], "y_val": labels["valid"], "x_test": parts["valid"], "y_test": labels["valid"]}
    loader, valid_loader, _ = generator.generate_dataloader(**valid, batch_size=BATCH)
    model = DIN(made, events, candidates, {"dims": HIDDEN}, {"dims": ATTENTION})
    trainer = Trainer(model, n_epoch=EVALUATIONS * EPOCHS, earlystop_patience=PATIENCE, model_path=str(work))
    trainer.reports, trainer.shares = reports, Shares(loader, EVALUATIONS, lambda batch: len(batch[1]))
    counted = trainer.evaluate_fn

    def keep(targets, predictions):
        trainer.scores = predictions
        return counted(targets, predictions)

    trainer.evaluate_fn = keep
    reports.training()
    trainer.fit(trainer.shares, valid_loader)


if __name__ == "__main__":
    main(save, train)
