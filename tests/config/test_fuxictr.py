"""Experiments of FuxiCTR as a mapping and a recipe: what they become, what is told, and a run from end to end."""

import sys
import tomllib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
    for key in ("batch_norm", "attention_hidden_activations", "normalizer", "monitor"):
        assert f"{key}" in said, key
    assert "din_use_softmax" not in said and "attention_dropout" not in said and "num_workers" not in said
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
    assert not found.model.backbone_settings.attention_softmax and found.train.plateau_factor == 0.1
    assert found.data.unknown_below == 2 and found.data.unknown_alpha == 0.0 and found.tables.init_scale == 1e-4
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
    assert found.model.backbone_settings.cross_layers == 4 and found.data.history_length == 5  # their mean
    assert found.data.unknown_alpha == 0.0 and found.data.unknown_below == 2
    columns = [{**one, "share_embedding": "pid"} if one["name"] == "clicks" else one for one in DATA["feature_cols"]]
    notes = fuxictr.convert(given, DATA | {"feature_cols": columns}, "x", tmp_path, item="ad").notes
    assert any("several values a row, and no history" in note for note in notes)


def test_ids_of_models_that_read_them_as_fields_among_others(tmp_path):
    columns = [{"name": ["C1", "C2", "C3"], "type": "categorical"}]
    made = fuxictr.convert({"model": "DeepFM"}, DATA | {"feature_cols": columns}, "x", tmp_path)
    mapping = tomllib.loads(made.mapping)
    assert mapping["columns"] == {"user": "C2", "item": "C1", "label": "clk"} and mapping["context_fields"] == ["C3"]
    assert any(note.startswith("item: no column says it, and 'C1' stands for it") for note in made.notes)


MMOE = {
    "model": "MMoE", "dataset_id": "tiny", "loss": ["binary_crossentropy"] * 2 + ["mse"], "num_tasks": 3,
    "task": ["binary_classification"] * 2 + ["regression"], "num_experts": 3, "expert_hidden_units": [16, 8],
    "gate_hidden_units": [8], "tower_hidden_units": [4], "embedding_dim": 8, "batch_size": 128, "epochs": 1,
    "monitor": "buy_AUC",
}  # fmt: skip


def test_several_labels_become_heads(tmp_path):
    data = DATA | {"label_col": [{"name": "clk"}, {"name": "buy"}, {"name": "watched"}]}
    made = fuxictr.convert(MMOE, data, "x", tmp_path, item="ad")
    mapping = tomllib.loads(made.mapping)
    assert mapping["labels"] == {"buy": "buy"} and mapping["amounts"] == {"watched": "watched"}
    (tmp_path / "recipe.py").write_text(made.recipe)
    found = parse.parse(recipes.load(str(tmp_path / "recipe.py"), ""))
    heads = found.model.heads
    assert (heads.kind, heads.labels, dict(heads.losses)) == ("mmoe", ("buy", "watched"), {"watched": "squared"})
    assert heads.experts == 3 and heads.hidden == (4,) and found.model.backbone_settings.hidden == (16, 8)
    assert found.eval.metric == "buy_auc"
    assert any(note.startswith("gate_hidden_units [8]: gates have no hidden layer") for note in made.notes)
    made = fuxictr.convert(MMOE | {"monitor": "AUC"}, data, "x", tmp_path, item="ad")
    assert "'eval.metric': 'mean_auc'" in made.recipe
    first = {"task": ["regression"] * 3}
    assert "the first label is one of 0 and 1" in user_error(
        lambda: fuxictr.convert(MMOE | first, data, "x", tmp_path, item="ad")
    )


def test_a_log_of_numbers_without_ids_from_its_files_to_a_report(tmp_path, monkeypatch):
    """As AliExpress's: valid and test are one file, paths are of the folder above; a column that FuxiCTR makes."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    random, header = np.random.default_rng(0), "a,b,c,x,clk,buy,watched,w\n"
    for part, count in (("train", 400), ("test", 150)):
        rows = []
        for _ in range(count):
            a, b, c = random.integers(0, 5, 3)
            click = int(random.random() < 0.2 + 0.6 * (a == b))
            rows.append(f"{a},{b},{c},{random.random():.3f},{click},{click * (c % 2)},{c * click},{1 + c}\n")
        (tmp_path / f"{part}.csv").write_text(header + "".join(rows))
    columns = [{"name": ["a", "b", "c"], "type": "categorical"}, {"name": "x", "type": "numeric"}]
    columns += [{"name": "weekday", "type": "categorical", "preprocess": "convert_weekday"}]
    labels = [{"name": "clk"}, {"name": "buy"}, {"name": "watched"}]
    data = DATA | {"feature_cols": columns, "label_col": labels, "weight_col": {"name": "w"}, "valid_data": "test.csv"}
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "model.yaml").write_text(yaml.safe_dump({"x": MMOE | {"monitor": "AUC"}}))
    (tmp_path / "config" / "data.yaml").write_text(yaml.safe_dump({"tiny": data}))
    called(tmp_path / "config", "--out", str(tmp_path / "made"))
    mapping = tomllib.loads((tmp_path / "made" / "mapping.toml").read_text())
    assert mapping["columns"]["weight"] == "w" and "weekday" not in mapping["context_fields"]
    prepare.main(["table", "--mapping", str(tmp_path / "made" / "mapping.toml"), "--out", str(tmp_path / "data")])
    config = recipes.load(str(tmp_path / "made" / "recipe.py"), "")
    config.data.root = str(tmp_path / "data")
    train.train(config, tmp_path / "run")
    report = evaluation.evaluate(tmp_path / "run", "test")["slices"]["all"]
    assert report["n"] == 150 and np.isfinite(report["auc"])


SIM = {
    "model": "SIM", "dataset_id": "long", "gsu_type": "soft", "topk": 4, "short_seq_len": 3, "max_len": 16, "alpha": 1,
    "attention_dim": 8, "dnn_hidden_units": [16], "embedding_dim": 8, "batch_size": 64, "epochs": 1, "learning_rate": 1e-2,
}  # fmt: skip
LONG = {
    "data_format": "parquet", "train_data": "train.parquet", "valid_data": "valid.parquet", "test_data": "test.parquet",
    "user_info": "user_info.parquet", "item_info": "item_info.parquet", "rebuild_dataset": False,
    "feature_cols": [
        {"name": ["user_index", "seq_len"], "type": "meta"}, {"name": "item_index", "type": "meta"},
        {"name": ["item_id", "cate_id"], "type": "categorical", "source": "item", "vocab_size": 30},
    ],
    "label_col": {"name": "label"},
}  # fmt: skip


def test_long_histories_of_which_rows_read_a_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    random, users, items = np.random.default_rng(1), 12, 25
    past = [random.integers(1, items, 40).tolist() for _ in range(users)]
    pq.write_table(pa.table({"user_index": range(users), "full_item_seq": past}), tmp_path / "user_info.parquet")
    of_items = {"item_index": range(items), "item_id": range(items), "cate_id": [k % 4 for k in range(items)]}
    pq.write_table(pa.table(of_items), tmp_path / "item_info.parquet")
    rows = [(user, past[user][k], k, int(random.random() < 0.5)) for k in range(10, 40) for user in range(users)]
    for part, k in {"train": 0, "valid": 240, "test": 300}.items():
        chosen = rows[k : k + (240 if part == "train" else 60)]
        names = ("user_index", "item_index", "seq_len", "label")
        pq.write_table(pa.table(dict(zip(names, zip(*chosen, strict=True), strict=True))), tmp_path / f"{part}.parquet")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"SIM_x": SIM}))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"long": LONG}))
    called(tmp_path, "--out", str(tmp_path / "made"))
    prepare.main(["table", "--mapping", str(tmp_path / "made" / "mapping.toml"), "--out", str(tmp_path / "data")])
    dataset = open_dataset(tmp_path / "data")
    log, events = dataset.interactions, dataset.events["item"]
    ids = {"user": dataset.user_table["id"].to_pylist(), "item": dataset.item_table["id"].to_pylist()}
    for row in (0, 77, len(log["item"]) - 1):
        user, item = ids["user"][log["user"][row]], ids["item"][log["item"][row]]
        start, end = log["history_start"][row], log["history_end"][row]
        seen = [int(ids["item"][k]) for k in events[start:end]]
        assert seen == past[int(user)][: end - start] and past[int(user)][end - start] == int(item)
    config = recipes.load(str(tmp_path / "made" / "recipe.py"), "")
    found = parse.parse(config).data
    assert (found.history_length, found.similar_by, found.similar_length, found.similar_within) == (3, "cate_id", 4, 16)
    config.data.root = str(tmp_path / "data")
    assert np.isfinite(train.train(config, tmp_path / "run")["best_value"])


@pytest.mark.parametrize(
    "model, data, words",
    [
        ({"model": "AutoInt"}, {}, "model 'AutoInt'"),
        ({"din_target_field": None}, {}, "--item: no column says the item"),
        ({"model": "MMoE"}, {}, "MMoE learns several labels, and label_col names 1"),
        ({}, {"user_info": "users.parquet"}, "user_info: no column 'seq_len'"),
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
        ({"dnn_hidden_units": "[64, 32"}, {}, "dnn_hidden_units [64, 32: is no list of numbers"),
        ({"net_dropout": 1.5}, {}, "config.model.backbone_settings.dropout"),
        ({"embedding_dim": 0}, {}, "config.tables.width"),
        ({"reduce_lr_on_plateau": "perhaps"}, {}, "reduce_lr_on_plateau perhaps: is neither true nor false"),
        ({"din_sequence_field": "pid"}, {}, "din_sequence_field pid: no active column of type sequence"),
    ],
)
def test_what_cannot_be_converted_is_told(model, data, words, tmp_path):
    changed = DIN | model
    columns = [{**one} for one in DATA["feature_cols"]]
    said = user_error(lambda: fuxictr.convert(changed, DATA | {"feature_cols": columns} | data, "x", tmp_path))
    assert words in said


def test_a_group_that_is_no_column_is_told(tmp_path):
    made = fuxictr.convert(DIN | {"group_id": "sesion"}, DATA, "x", tmp_path)
    assert "group_id sesion: is no column; gAUC is that of users" in made.notes


def test_files_that_are_none(files):
    assert "which section" in user_error(lambda: called(files, "--out", str(files / "made")))
    (files / "model.yaml").write_text("tuner_space: {seed: [1, 2]}")
    assert "a config of FuxiCTR's tuner" in user_error(lambda: called(files, "--out", str(files / "made")))
    (files / "model.yaml").write_text("a: [")
    assert "not YAML" in user_error(lambda: called(files, "--out", str(files / "made")))
    (files / "model.yaml").unlink()
    assert "cannot be read" in user_error(lambda: called(files, "--out", str(files / "made")))


def test_three_files_are_the_three_parts(files):
    log = ",".join(str(files / f"{part}.csv") for part in ("train", "valid", "test", "train"))
    options = ["--split", "files", "--time-unit", "none", "--columns", "user=userid,item=ad,label=clk"]
    said = user_error(prepare.main, ["table", "--interactions", log, *options, "--out", str(files / "x")])
    assert "4 files" in said and "give 3" in said
    log = ",".join(str(files / f"{part}.csv") for part in ("train", "test"))
    prepare.main(["table", "--interactions", log, *options, "--out", str(files / "two")])
    dataset = open_dataset(files / "two")
    assert [len(dataset.split_rows(part)) for part in ("train", "valid", "test")] == [540, 60, 200]


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
        ("net_regularizer", "l2(1e-4)", "l2", 1e-4),
        ("attention_units", [24], "attention_hidden", 24),
        ("dropout_rates", 0.3, "dropout", 0.3),
        ("din_use_softmax", "False", "attention_softmax", False),
        ("din_use_softmax", "True", "attention_softmax", True),
    ],
)
def test_forms_of_a_value(key, value, setting, expected, tmp_path):
    (tmp_path / "recipe.py").write_text(fuxictr.convert(DIN | {key: value}, DATA, 'a"""b\\', tmp_path).recipe)
    found = parse.parse(recipes.load(str(tmp_path / "recipe.py"), ""))
    of = {"l2": found.optim if key == "net_regularizer" else found.tables, "metric": found.eval}.get(
        setting, found.model.backbone_settings
    )
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
