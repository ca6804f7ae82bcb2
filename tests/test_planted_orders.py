"""Orders of the paper's tables that planted data show, at small size.

docs/results.md has them at full size, and what does not appear.
"""

import json

import pytest

from em3_jax.data.readers.synthetic import synthetic
from em3_jax.trials import runs
from reproduce import tables
from tests.conftest import ROOT

pytestmark = pytest.mark.seconds(190)

CHANGES = {
    "data.history_length": 20, "model.fusion_settings.width": 32, "model.fusion_settings.ffn_width": 64,
    "model.backbone_settings.dropout": 0.0, "tables.learning_rate": 0.02, "optim.learning_rate": 1e-3,  # as of base.py
    "train.epochs": 12.0, "train.eval_every": 100, "train.patience": 2,
}  # fmt: skip
RUNS = (
    "id_only", "em3", "only_image_first", "only_text", "only_image_first_text", "only_item_part", "only_user_part",
    "fusion_one_flow", "fusion_two_flow", "pretraining", "pe",
)  # fmt: skip


@pytest.fixture(scope="module")
def auc(tmp_path_factory):
    """Name of the run in `reproduce.tables` -> test AUC, of seed 0."""
    root = tmp_path_factory.mktemp("orders")
    data = synthetic(root / "data", interactions=16_000, users=320, items=400, seed=1)
    config = str(ROOT / "configs" / "em3_synthetic.py")
    settings = runs.settings(config, "", CHANGES).data
    needed = {name: run for number in (2, 3, 6, 7) for name, run in tables.make(number, data, settings).runs.items()}
    needed = {name: needed[name] for name in RUNS}
    jobs = runs.make_jobs(needed, config=config, changes=CHANGES, data=data.root, seeds=1, root=root / "runs")
    runs.overlay(data.root, root / "runs" / "data")
    result = {}
    for name, job in zip(RUNS, jobs.values(), strict=True):
        runs.execute(job)
        if job.splits:
            report = json.loads((job.directory / "eval_test.json").read_text(encoding="utf-8"))
            result[name] = report["slices"]["all"]["auc"]
    return result


def test_more_content_is_worth_more(auc):
    assert auc["only_image_first_text"] > max(auc["only_image_first"], auc["only_text"])
    assert auc["em3"] > auc["only_image_first_text"] + 0.01, "all frames against the first"


def test_item_and_user_together_are_worth_more_than_either(auc):
    assert auc["em3"] > max(auc["only_item_part"], auc["only_user_part"]) + 0.005


def test_fq_former_is_not_behind_the_flows(auc):
    assert auc["em3"] > max(auc["fusion_one_flow"], auc["fusion_two_flow"])


def test_vectors_of_the_catalogue_alone_help_and_training_end_to_end_helps_more(auc):
    assert auc["em3"] - 0.01 > auc["pe"] > auc["id_only"] + 0.05
