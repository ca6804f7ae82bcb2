"""`reproduce --table images`: its rows, the runs they need, and folds whose tests are pooled on one page."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.readers.table import table
from em3_jax.trials import runs
from em3_jax.trials.runs import PlannedRun
from reproduce import command, images
from tests.conftest import ROOT

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

CHANGES = {
    "data.batch_size": 64,
    "data.history_length": 4,
    "model.backbone_settings.hidden": (8,),
    "model.cic.negatives": 0,
    "train.epochs": 1.0,
    "train.log_every": 2,
}


def test_every_system_and_ablation_has_a_row():
    made = images.table()
    names = [row.run for row in made.groups[0].rows]
    assert names[0] == "id_only" and len(set(names)) == len(names)
    systems = {"deepctr", "cnn", "se", "cbam", "cscnn", "hccm", "dicm"}
    assert systems <= set(names) and {"em3_image", "em3_text", "em3_both"} <= set(names)
    assert sum(name.startswith("dicm") for name in names) == 9 and set(made.runs) == set(names)
    assert made.runs["dicm_from_all_but_ids"].init_from == made.runs["dicm_from_all"].init_from == "dicm"


def test_some_rows_bring_the_runs_they_need():
    made = images.table(("dicm_from_all",))
    assert [row.run for row in made.groups[0].rows] == ["id_only", "dicm_from_all"]
    assert set(made.runs) == {"id_only", "dicm", "dicm_from_all"}
    with pytest.raises(UserError, match="--models cscn: no such row; did you mean 'cscnn'"):
        images.table(("cscn",))


def test_every_run_is_a_config(tmp_path):
    if not (ROOT / images.CONFIG).is_file():
        pytest.skip(f"{images.CONFIG} is not here")
    jobs = runs.make_jobs(
        images.table().runs, config=str(ROOT / images.CONFIG), changes={}, data=tmp_path, seeds=1, root=tmp_path
    )
    parts = {name: job.config.train.init_parts for name, job in jobs.items() if name.startswith("dicm_from")}
    assert parts == {"dicm_from_all_but_ids-0": "all_but_ids", "dicm_from_all-0": "all"}


@pytest.fixture(scope="module")
def folds(tmp_path_factory) -> list[Path]:
    """Two of the three folds of a log whose clicks follow a vector that the items' texts show."""
    root, random = tmp_path_factory.mktemp("folds"), np.random.default_rng(0)
    content = random.standard_normal((60, 4)).astype(np.float32)
    user, item = random.integers(0, 12, 900), random.integers(0, 60, 900)
    label = content[item, 0] + random.normal(size=900) > 0
    log = {"user": user, "item": item, "label": label.astype(int), "time": np.arange(900)}
    pa.csv.write_csv(pa.table(log), root / "log.csv")
    pa.csv.write_csv(pa.table({"item": range(60), "fold": np.arange(60) % 3}), root / "items.csv")
    pa.csv.write_csv(pa.table({"user": range(12)}), root / "users.csv")
    np.save(root / "text.npy", content)
    paths = {name: root / f"{name}.csv" for name in ("items", "users")}
    options = {"interactions": root / "log.csv", "features": {"text": root / "text.npy"}, **paths}
    return [table(root / f"fold{k}", split=f"folds:fold:{k}", **options).root for k in (0, 1)]


def test_folds_are_pooled_on_one_page(folds, tmp_path):
    data, config = ",".join(map(str, folds)), str(ROOT / "configs" / "own_data.py")
    settings = {"config": config, "changes": CHANGES, "parallel": 1, "command": "the command", "only": ("em3_text",)}
    (page,) = command.reproduce(("images",), data, 1, str(tmp_path), **settings)
    result = json.loads((tmp_path / "table_images.json").read_text("utf-8"))
    baseline, em3 = result["groups"][0]["rows"]
    assert baseline["n"] == em3["n"] and 560 < em3["n"] < 640  # of both folds
    own = [
        json.loads((tmp_path / "runs" / f"fold{k}" / "em3_text-0" / "eval_test.json").read_text("utf-8"))
        for k in (0, 1)
    ]
    assert em3["n"] == sum(one["slices"]["all"]["n"] for one in own)
    assert all(one["clusters"] == "item" and one["slices"]["all"]["auc_se"] > 0 for one in own)
    assert "those of one item counted as one" in page and "n = " in page
    assert em3["auc"]["low"] < em3["auc"]["difference"] < em3["auc"]["high"]


def test_other_tables_take_one_dataset(folds, tmp_path):
    data = ",".join(map(str, folds))
    with pytest.raises(UserError, match="only tables images and 10 take several datasets"):
        command.reproduce((3,), data, 1, str(tmp_path), config="x", changes={}, parallel=1, command="")


def test_what_a_run_lacks_is_said_before_any_of_them_begins(folds, tmp_path):
    config = str(ROOT / images.CONFIG)
    settings = {"config": config, "changes": {}, "parallel": 1, "command": "", "search_count": 2}
    only = ("cscnn", "dicm_sum", "em3_text")
    words = (
        r"cscnn: \S+/raw_image: no such feature set; this dataset has: text; dicm_sum: \S+/image: no such .*; make them, "
        r"or take the other rows with --models id_only,em3_text$"
    )
    with pytest.raises(UserError, match=words):
        command.reproduce(("images",), str(folds[0]), 1, str(tmp_path), only=only, **settings)
    assert not (tmp_path / "runs").exists()


def test_the_field_that_encoders_are_told_is_looked_for(folds, tmp_path):
    jobs = runs.make_jobs(
        {"told": PlannedRun("told", "cscnn", {"data.features": ("text",)}), "ids": PlannedRun("ids", "id_only")},
        config=str(ROOT / images.CONFIG), changes={}, data=folds[0], seeds=1, root=tmp_path,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^told: config.model.encoder_prior=category: .* no such item field.*: ids$"):
        runs.check_content(jobs.values(), ": {others}")
    runs.check_content([jobs["ids-0"]], "")


def test_folds_of_other_tables_and_the_same_fold_twice_are_refused_before_any_run(folds, tmp_path):
    settings = {"config": str(ROOT / "configs" / "own_data.py"), "changes": CHANGES, "parallel": 1, "command": ""}
    with pytest.raises(UserError, match="test some items twice"):
        command.reproduce(("images",), f"{folds[0]},{folds[0]}", 1, str(tmp_path), only=("id_only",), **settings)
    log = tmp_path / "log.csv"
    rows = np.arange(80)
    pa.csv.write_csv(pa.table({"user": rows % 7, "item": rows % 60, "label": rows % 2, "time": rows}), log)
    other = table(tmp_path / "other", interactions=log).root
    with pytest.raises(UserError, match=f"{other}: its items or users are not those of"):
        command.reproduce(("images",), f"{folds[0]},{other}", 1, str(tmp_path), only=("id_only",), **settings)
    assert not (tmp_path / "runs").exists()
