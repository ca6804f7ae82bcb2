"""Experiments of FuxiCTR as a mapping and a recipe: what they become, what is told, and a run from end to end."""

import sys
import tomllib

import numpy as np
import pytest
import yaml

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import convert_config, fuxictr, parse, recipes
from em3_jax.data import prepare
from em3_jax.data.format import open_dataset
from tests.conftest import user_error

DIN = {
    "model": "DIN", "dataset_id": "tiny", "loss": "binary_crossentropy", "metrics": ["logloss", "AUC"],
    "task": "binary_classification", "optimizer": "adam", "learning_rate": 1.0e-2, "embedding_regularizer": "l2(1.e-6)",
    "net_regularizer": 0, "batch_size": 128, "embedding_dim": 8, "dnn_hidden_units": [16, 8], "dnn_activations": "relu",
    "attention_hidden_units": [12], "attention_hidden_activations": "Dice", "attention_output_activation": None,
    "attention_dropout": 0, "din_target_field": "ad", "din_sequence_field": "clicks", "din_use_softmax": False,
    "net_dropout": 0.1, "batch_norm": True, "epochs": 2, "shuffle": True, "seed": 7, "monitor": {"AUC": 1, "logloss": -1},
    "monitor_mode": "max",
}  # fmt: skip
DATA = {
    "data_root": "../data", "data_format": "csv", "train_data": "train.csv", "valid_data": "valid.csv",
    "test_data": "test.csv", "min_categr_count": 2,
    "feature_cols": [
        {"name": ["userid", "ad", "pid"], "active": True, "dtype": "str", "type": "categorical"},
        {"name": "price", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
        {"name": "old", "active": False, "dtype": "str", "type": "categorical"},
        {"name": "clicks", "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "max_len": 5,
         "share_embedding": "ad"},
    ],
    "label_col": {"name": "clk", "dtype": "float"},
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """The two files and the three of a small log."""
    random, header = np.random.default_rng(0), "userid,ad,pid,price,clicks,clk\n"
    for name, rows in (("train", 600), ("valid", 200), ("test", 200)):
        lines = []
        for _ in range(rows):
            user, ad = random.integers(0, 30), random.integers(0, 20)
            past = "^".join(f"a{k}" for k in random.integers(0, 20, random.integers(0, 8)))
            click = int(random.random() < 0.2 + 0.6 * (ad % 2 == user % 2))
            lines.append(f"u{user},a{ad},p{ad % 3},{random.random():.3f},{past},{click}\n")
        (tmp_path / f"{name}.csv").write_text(header + "".join(lines))
    (tmp_path / "model.yaml").write_text(
        yaml.safe_dump({"Base": {"early_stop_patience": 2}, "DIN_x": DIN, "other": {}})
    )
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"tiny": DATA}))
    return tmp_path


def called(folder, *more):
    sys.argv = ["em3 convert-config", "fuxictr", str(folder / "model.yaml"), str(folder / "data.yaml"), *more]
    convert_config.main()


def test_an_experiment_from_its_files_to_a_report(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    called(files, "--experiment", "DIN_x", "--out", str(files / "made"))
    said = capsys.readouterr().out
    for key in (
        "batch_norm",
        "din_use_softmax",
        "attention_hidden_activations",
        "min_categr_count",
        "normalizer",
        "monitor",
    ):
        assert f"{key}" in said, key
    assert "attention_dropout" not in said and "num_workers" not in said
    mapping = tomllib.loads((files / "made" / "mapping.toml").read_text())
    assert mapping["columns"] == {"user": "userid", "item": "ad", "label": "clk", "history": "clicks"}
    assert mapping["context_fields"] == ["pid"] and mapping["context_numbers"] == ["price"]
    prepare.main(["table", "--mapping", str(files / "made" / "mapping.toml"), "--out", str(files / "data")])
    dataset = open_dataset(files / "data")
    assert [len(dataset.split_rows(part)) for part in ("train", "valid", "test")] == [600, 200, 200]
    assert dataset.meta["split_rule"] == "by files"
    config = recipes.load(str(files / "made" / "recipe.py"), "")
    found = parse.parse(config)
    assert found.model.backbone == "din" and found.tables.width == 8 and found.data.history_length == 5
    assert found.model.backbone_settings.hidden == (16, 8) and found.tables.l2 == 1e-6 and found.train.patience == 2
    assert found.model.backbone_settings.attention_hidden == 12 and found.seed == 7 and found.eval.metric == "auc"
    config.data.root = str(files / "data")
    train.train(config, files / "run")
    assert evaluation.evaluate(files / "run", "test")["slices"]["all"]["n"] == 200


@pytest.mark.parametrize("model, backbone", [("DCNv2", "dcnv2"), ("DeepFM", "deepfm"), ("WideDeep", "wide_deep")])
def test_the_other_models_make_configs_that_are_right(model, backbone, tmp_path):
    given = {
        "model": model,
        "learning_rate": 1e-3,
        "hidden_units": [32, 16],
        "num_cross_layers": 4,
        "embedding_dim": 10,
    }
    given |= {"parallel_dnn_hidden_units": given.pop("hidden_units")} if model == "DCNv2" else {}
    made = fuxictr.convert(given, DATA, "x", tmp_path, item="ad")
    (tmp_path / "recipe.py").write_text(made.recipe)
    config = recipes.load(str(tmp_path / "recipe.py"), "")
    found = parse.parse(config)
    assert found.model.backbone == backbone and found.model.backbone_settings.hidden == (32, 16)
    assert found.model.backbone_settings.cross_layers == 4 and found.data.history_length == 0
    assert any("a sequence that no attention reads" in note for note in made.notes)


@pytest.mark.parametrize(
    "model, data, words",
    [
        ({"model": "AutoInt"}, {}, "model 'AutoInt'"),
        ({"model": "DeepFM"}, {}, "--item: no column says the item"),
        ({}, {"train_data": "train.npz"}, "holds what FuxiCTR has encoded"),
        ({}, {"train_data": ["a.csv", "b.csv"]}, "train_data"),
        ({}, {"train_data": "C:\\data\\tr.csv"}, "a path of another system"),
        ({}, {"valid_data": None}, "valid_data"),
        ({}, {"label_col": None}, "label_col"),
        ({}, {"label_col": {"name": None}}, "label_col"),
        ({}, {"feature_cols": []}, "feature_cols"),
        ({}, {"feature_cols": ["userid"]}, "feature_cols: is no list of columns"),
        ({"dnn_hidden_units": "many"}, {}, "dnn_hidden_units many: is no number"),
        ({"learning_rate": "fast"}, {}, "learning_rate fast: is no number"),
        ({"batch_size": [1]}, {}, "batch_size [1]: is no number"),
        ({"net_dropout": 1.5}, {}, "config.model.backbone_settings.dropout"),
        ({"embedding_dim": 0}, {}, "config.tables.width"),
        ({"din_sequence_field": "pid"}, {}, "din_sequence_field pid: no active column of type sequence"),
    ],
)
def test_what_cannot_be_converted_is_told(model, data, words, tmp_path):
    changed = DIN | model | ({"din_target_field": None} if model.get("model") == "DeepFM" else {})
    columns = [{**one} for one in DATA["feature_cols"]]
    said = user_error(lambda: fuxictr.convert(changed, DATA | {"feature_cols": columns} | data, "x", tmp_path))
    assert words in said


def test_files_that_are_none(files):
    assert "which section" in user_error(lambda: called(files, "--out", str(files / "made")))
    (files / "model.yaml").write_text("a: [")
    assert "not YAML" in user_error(lambda: called(files, "--out", str(files / "made")))
    (files / "model.yaml").unlink()
    assert "cannot be read" in user_error(lambda: called(files, "--out", str(files / "made")))


def test_three_files_are_the_three_parts(files):
    log = ",".join(str(files / f"{part}.csv") for part in ("train", "valid"))
    options = ["--split", "files", "--time-unit", "none", "--columns", "user=userid,item=ad,label=clk"]
    said = user_error(prepare.main, ["table", "--interactions", log, *options, "--out", str(files / "x")])
    assert "2 files" in said and "give 3" in said


@pytest.mark.parametrize(
    "key, value, setting, expected",
    [
        ("dnn_hidden_units", 16, "hidden", (16,)),
        ("dnn_hidden_units", "16", "hidden", (16,)),
        ("dnn_hidden_units", "[16, 8]", "hidden", (16, 8)),
        ("attention_hidden_units", "64", "attention_hidden", 64),
        ("embedding_regularizer", "l1_l2(1e-6,1e-5)", "l2", 1e-5),
        ("embedding_regularizer", "l1(1e-5)", "l2", 0.0),
        ("embedding_regularizer", "none", "l2", 0.0),
        ("monitor", {}, "metric", "auc"),
    ],
)
def test_forms_of_a_value(key, value, setting, expected, tmp_path):
    (tmp_path / "recipe.py").write_text(fuxictr.convert(DIN | {key: value}, DATA, 'a"""b\\', tmp_path).recipe)
    found = parse.parse(recipes.load(str(tmp_path / "recipe.py"), ""))
    of = {"l2": found.tables, "metric": found.eval}.get(setting, found.model.backbone_settings)
    assert getattr(of, setting) == expected


def test_labels_and_columns_of_odd_names(tmp_path):
    columns = [*DATA["feature_cols"], {"name": 'a\n"b', "type": "categorical"}, {"name": "off", "active": "False"}]
    data = DATA | {"feature_cols": columns, "label_col": [{"name": ["clk"]}, {"name": "buy"}]}
    made = fuxictr.convert(DIN, data, "x", tmp_path)
    mapping = tomllib.loads(made.mapping)
    assert mapping["columns"]["label"] == "clk" and mapping["context_fields"] == ["pid", 'a\n"b']
    assert any(note.startswith("label buy") for note in made.notes)
    assert "both are 'ad'" in user_error(lambda: fuxictr.convert(DIN, DATA, "x", tmp_path, user="ad"))
    assert "no column 'clicks' of single values" in user_error(
        lambda: fuxictr.convert(DIN, DATA, "x", tmp_path, user="clicks")
    )
