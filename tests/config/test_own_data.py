"""configs/own_data.py: a table of one's own is prepared and trained with a config that reads what it holds."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from em3_jax import train
from em3_jax.config import recipes
from em3_jax.data.readers.table import table
from tests.conftest import ROOT, user_error

pytestmark = pytest.mark.quickly_compiled

PATH = str(ROOT / "configs" / "own_data.py")
ITEMS, ROWS = 40, 900


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A dataset of own tables, with a ready feature set."""
    folder = tmp_path_factory.mktemp("mine")
    draw = np.random.default_rng(0)
    item = draw.integers(0, ITEMS, ROWS)
    log = {
        "user": np.char.add("u", draw.integers(0, 30, ROWS).astype(str)), "item": item,
        "label": (draw.random(ROWS) < 0.2 + 0.6 * (item % 2)).astype(int), "time": np.arange(ROWS),
    }  # fmt: skip
    pa.csv.write_csv(pa.table(log), folder / "clicks.csv")
    about = {"item": np.arange(ITEMS), "brand": np.arange(ITEMS) % 7, "title": [f"title {k}" for k in range(ITEMS)]}
    pa.csv.write_csv(pa.table(about), folder / "items.csv")
    np.save(folder / "v.npy", draw.normal(size=(ITEMS, 8)).astype(np.float32))
    table(
        folder / "data", interactions=folder / "clicks.csv", items=folder / "items.csv", item_fields=("brand",),
        item_text=("title",), features={"v": str(folder / "v.npy")},
    )  # fmt: skip
    return folder / "data"


def test_the_config_is_made_for_the_dataset(mine):
    config = recipes.read(PATH, {"data.root": str(mine)})
    assert config.data.root == str(mine) and config.data.features == ("v",)
    assert config.model.cic.id_fields == ("item", "brand") and config.model.content == "end_to_end"
    assert config.data.batch_size == 64 and config.train.eval_every == 720 // 64 // 2
    ids = recipes.read(f"{PATH}:id_only", {"data.root": str(mine)})
    assert ids.model.content == "none"


def test_it_trains(mine, tmp_path):
    config = recipes.read(PATH, {"data.root": str(mine), "train.epochs": "1", "data.history_length": "5"})
    assert train.train(config, tmp_path / "run")["step"] == 12


def test_without_content_the_model_runs_on_ids_alone(mine, tmp_path):
    copy = tmp_path / "data"
    (copy / "features").mkdir(parents=True)
    meta = json.loads((mine / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps(meta))
    assert recipes.read(PATH, {"data.root": str(copy)}).model.content == "none"
    (copy / "dataset.json").write_text(json.dumps(meta | {"only_clicks": True}))
    assert "holds clicks alone; train configs/retrieval.py on it" in user_error(
        recipes.read, PATH, {"data.root": str(copy)}
    )


def test_variants_learn_the_further_labels_of_the_dataset(mine, tmp_path):
    meta = json.loads((mine / "dataset.json").read_text())
    further = {"labels": {"buy": "bought", "like": "liked"}, "amounts": {"dwell": "seconds"}}
    (tmp_path / "dataset.json").write_text(json.dumps(meta | further))
    for kind in ("shared_bottom", "mmoe", "ple"):
        heads = recipes.read(f"{PATH}:id_only,{kind}", {"data.root": str(tmp_path)}).model.heads
        assert (heads.kind, heads.labels, dict(heads.losses)) == (kind, ("buy", "like", "dwell"), {"dwell": "log"})
    heads = recipes.read(f"{PATH}:esmm", {"data.root": str(tmp_path)}).model.heads
    assert (heads.kind, heads.labels, dict(heads.losses)) == ("esmm", ("buy",), {})
    assert "no further label for mmoe; prepare it" in user_error(recipes.read, f"{PATH}:mmoe", {"data.root": str(mine)})


def test_a_dataset_that_is_not_there_is_left_to_training(tmp_path):
    config = recipes.read(PATH, {"data.root": str(tmp_path / "none")})
    assert "no such dataset folder" in user_error(train.train, config, tmp_path / "run")
