"""Retrieval end to end: it learns, resumes bit for bit, evaluates what it says, and names mistakes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import retrieval as configs
from em3_jax import cli, train
from em3_jax import evaluate as evaluation
from em3_jax.core.errors import UserError
from em3_jax.data import prepare
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.pairs import training_pairs
from em3_jax.data.readers.mmrec import mmrec
from em3_jax.evaluation import compare
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.evaluation.full_ranking import NO_ITEM
from em3_jax.metrics import KS
from em3_jax.tasks.retrieval import setup as wiring_retrieval
from em3_jax.training import checkpoint, experiment
from tests.conftest import ROOT, user_error
from tests.evaluation.test_full_ranking import plain_metrics
from tests.planted_pairs import COLD_ITEMS, ITEMS, NEW_USERS, USERS, planted_pairs, write_folder

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

EPOCHS = 8
BATCH = 128


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Dataset:
    return planted_pairs(tmp_path_factory.mktemp("pairs"))


def small_config(pairs, model: str = "lightgcn", **changes) -> dict:
    """The shipped config, shrunk; LightGCN prunes its graph here, so that a resume has to make the same one again."""
    config = configs.get_config(model).to_dict()
    config["data"] |= {"root": str(pairs.root), "batch_size": BATCH, "edge_dropout": 0.5}
    config["model"]["retrieval_settings"]["width"] = 16
    config["optim"]["learning_rate"] = 0.02
    config["train"] |= {"epochs": float(EPOCHS), "log_every": 3}
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


def records(directory) -> list[dict]:
    lines = (Path(directory) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def finished(pairs, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "finished"
    train.train(small_config(pairs), directory)
    return directory


def test_it_learns_and_evaluates_once_an_epoch(pairs, finished):
    evaluated = [line for line in records(finished) if "valid/recall@20" in line]
    rows = len(training_pairs(pairs).user)
    steps = -(-rows // BATCH)
    total = -(-EPOCHS * rows // BATCH)
    assert [line["step"] for line in evaluated] == [*range(steps, total, steps), total]
    chance = 20 / ITEMS
    assert evaluated[-1]["valid/recall@20"] > 2 * chance
    losses = [line["train/ranking_loss"] for line in records(finished) if "train/ranking_loss" in line]
    assert losses[-1] < losses[0]


def final_state(pairs, directory, config: dict | None = None) -> dict[str, np.ndarray]:
    parts = experiment.build(config or small_config(pairs))
    step = checkpoint.Checkpoints(directory).steps("latest")[-1]
    state, _ = checkpoint.Checkpoints(directory).restore(jax.eval_shape(parts.program.init), step)
    return {name: np.asarray(leaf) for name, leaf in checkpoint._flat(state).items()}


def test_a_terminated_run_ends_bit_identical(pairs, finished, tmp_path):
    directory = tmp_path / "killed"
    changed = {
        "data.root": pairs.root, "data.batch_size": BATCH, "data.edge_dropout": 0.5, "model.retrieval_settings.width": 16,
        "optim.learning_rate": 0.02, "train.epochs": EPOCHS, "train.log_every": 3,
    }  # fmt: skip
    options = [f"--config.{name}={value}" for name, value in changes_as_text(changed).items()]
    command = [sys.executable, "train.py", "--config=configs/retrieval.py:lightgcn", f"--workdir={directory}", *options]
    log = directory / "metrics.jsonl"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 4):
            time.sleep(0.002)
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=600)
    assert run.returncode == 128 + signal.SIGTERM and "SIGTERM: saved step" in output
    saved = checkpoint.Checkpoints(directory).steps("latest")[-1]
    assert 0 < saved < records(finished)[-1]["step"]
    train.train(small_config(pairs), directory)
    expected, got = final_state(pairs, finished), final_state(pairs, directory)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert value.tobytes() == got[name].tobytes(), name
    assert evaluated_lines(finished) == evaluated_lines(directory)  # its window of log lines was cut at the signal


def changes_as_text(changes: dict) -> dict[str, str]:
    return {name: str(value) for name, value in changes.items()}


def evaluated_lines(directory) -> list[dict]:
    return [line for line in records(directory) if "valid/recall@20" in line]


@pytest.fixture(scope="module")
def reports(finished) -> dict[str, dict]:
    return {split: evaluation.evaluate(finished, split) for split in ("valid", "test")}


def test_evaluation_prints_the_validation_numbers_of_training_exactly(finished, reports):
    logged = max(evaluated_lines(finished), key=lambda line: line["valid/recall@20"])
    assert reports["valid"]["step"] == logged["step"]
    slices = reports["valid"]["slices"]["all"]
    assert {name: slices[name.removeprefix("valid/")] for name in logged if name != "step"} == {
        name: value for name, value in logged.items() if name != "step"
    }


@pytest.mark.parametrize("split,code", [("valid", 1), ("test", 2)])
def test_the_report_is_that_of_a_plain_loop(pairs, finished, reports, split, code):
    parts = experiment.build(small_config(pairs))
    state, _ = checkpoint.Checkpoints(finished).restore(jax.eval_shape(parts.program.init))
    users, items = (np.asarray(x) for x in parts.program.predict(state, {}))
    columns = {name: np.asarray(pairs.interactions[name]) for name in ("user", "item", "split")}
    train_items = {
        user: set(columns["item"][(columns["user"] == user) & (columns["split"] == 0)]) for user in range(USERS)
    }
    lists = np.full((USERS, 50), NO_ITEM)
    for user in range(USERS):  # valid positives stay candidates on test
        order = sorted(
            set(range(ITEMS)) - train_items[user], key=lambda item: (-float(users[user] @ items[item]), item)
        )
        lists[user] = order[:50]
    saved = np.load(finished / f"eval_{split}_items.npy")
    in_split = columns["split"] == code
    user, item = columns["user"][in_split], columns["item"][in_split]
    counted = np.array([bool(train_items[u]) for u in user])
    ranked = np.unique(user[counted])
    agree = (saved[ranked] == lists[ranked]).mean()
    assert agree > 0.999 and (np.delete(saved, ranked, axis=0) == NO_ITEM).all()  # rounding may swap two scores
    degree = np.array([len(train_items[user]) for user in range(USERS)])
    cold = ~np.isin(item, columns["item"][columns["split"] == 0])
    assert (cold >= (item >= ITEMS - COLD_ITEMS)).all() and cold.any()
    parts_of = {"all": counted, "cold items": counted & cold, "warm items": counted & ~cold}
    for first, end in ((1, 5), (5, 10), (10, 20)):
        parts_of[f"users of {first}-{end - 1} pairs"] = counted & (degree[user] >= first) & (degree[user] < end)
    report = reports[split]["slices"]
    for name, keep in parts_of.items():
        expected = plain_metrics(saved, user[keep], item[keep])
        assert report[name]["n"] == len(expected) and report[name]["positives"] == keep.sum()
        for metric in (f"{m}@{k}" for m in ("recall", "ndcg", "precision", "map") for k in KS):
            mean = np.mean([values[metric] for values in expected.values()]) if expected else np.nan
            assert report[name][metric] == pytest.approx(mean, nan_ok=True), (name, metric)
    new = set(user[~counted])
    assert report["all"]["users_left_out"] == len(new) and new <= set(range(USERS - NEW_USERS, USERS))


def test_the_page_names_slices_and_who_is_left_out(reports):
    page = ranking_evaluation.table(reports["test"]["slices"]).splitlines()
    assert "recall@20" in page[0] and "ndcg@10" in page[0]
    assert [line[:10].strip() for line in page[1:3]] == ["all", "cold items"]
    assert (
        page[-1]
        == f"left out: {reports['test']['slices']['all']['users_left_out']} users without a training interaction"
    )


def test_the_report_does_not_depend_on_the_blocks(pairs, finished, reports):
    for user_block, item_block in ((1, 1), (10_000, 1024)):
        config = small_config(pairs, eval__user_block=user_block, eval__item_block=item_block)
        parts = experiment.build(config)
        state, _ = checkpoint.Checkpoints(finished).restore(jax.eval_shape(parts.program.init))
        slices, arrays, moved_by, _ = parts.evaluate(state, "test")
        for name, values in slices.items():
            np.testing.assert_equal(values, {metric: reports["test"]["slices"][name][metric] for metric in values})
        assert moved_by["user"].moved.keys() >= {("all", "recall@20"), ("warm items", "ndcg@10")}
        np.testing.assert_array_equal(arrays["items"], np.load(finished / "eval_test_items.npy"))


def test_training_users_are_ranked_without_leaving_out_what_they_learnt(finished):
    slices = evaluation.evaluate(finished, "train")["slices"]
    assert slices["all"]["recall@20"] > 0.5 and slices["cold items"]["n"] == 0


def test_early_stopping_on_recall(pairs, tmp_path):
    config = small_config(pairs, optim__learning_rate=0.0, train__patience=2, train__epochs=100.0)
    assert train.train(config, tmp_path / "run")["stopped_by"] == "patience"


def test_a_run_starts_from_another(pairs, finished, tmp_path):
    config = small_config(pairs, optim__learning_rate=0.0, train__epochs=1.0, train__init_from=str(finished))
    best = max(line["valid/recall@20"] for line in evaluated_lines(finished))
    assert train.train(config, tmp_path / "run")["best_value"] == best


@pytest.mark.parametrize("model", [name for name in configs.MODELS if name not in ("lightgcn",)])
def test_each_model_trains_by_its_config(pairs, tmp_path, model):
    config = small_config(pairs, model, train__epochs=2.0, optim__learning_rate=1e-3)
    config["data"]["edge_dropout"] = configs.get_config(model).data.edge_dropout
    result = train.train(config, tmp_path / "run")
    assert 0 < result["best_value"] < 1
    assert evaluation.evaluate(tmp_path / "run", "test")["slices"]["all"]["n"] > 0


def test_lattice_carries_who_was_nearest_from_step_to_step(pairs, tmp_path):
    """What a search found stands in the state, moved by no gradient, until its turn comes again."""
    config = small_config(pairs, "lattice", train__epochs=2.0, optim__learning_rate=1e-3)
    config["model"]["retrieval_settings"]["search_every"] = 1000
    train.train(config, tmp_path / "run")
    state = final_state(pairs, tmp_path / "run", config)
    steps = int(state["step"])
    assert steps > 2 and state["params.model.found.age"] == steps
    # All steps read who was nearest to the first step's projections: those of a run that ends with it.
    config["train"]["epochs"] = 1 / steps
    train.train(config, tmp_path / "first")
    first = final_state(pairs, tmp_path / "first", config)
    assert first["step"] < steps and first["params.model.found.age"] == first["step"]
    names = [name for name in first if name.startswith("params.model.found.") and not name.endswith("age")]
    assert names
    for name in names:
        np.testing.assert_array_equal(first[name], state[name])
        assert {len(set(row)) for row in state[name].astype(int).tolist()} == {10}


# Mistakes.


def build(config: dict):
    return experiment.build(config)


def test_a_dataset_with_negatives_is_refused(tmp_path):
    dataset = mmrec(tmp_path / "out", source=write_folder(tmp_path / "in"), as_clicks=True)
    message = user_error(build, small_config(dataset))
    assert "its rows are clicks against negatives" in message and "without --as-clicks" in message


def test_a_validation_split_without_a_user_to_rank_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    text = "userID\titemID\tx_label\n" + "0\t0\t0\n0\t1\t0\n1\t2\t1\n0\t2\t2\n1\t0\t1\n"
    (tmp_path / "in" / "interactions.tsv").write_text(text)
    dataset = mmrec(tmp_path / "out", source=tmp_path / "in")
    message = user_error(build, small_config(dataset))
    assert "no user of the valid split has a training interaction" in message


def test_a_folder_with_an_empty_validation_split_is_refused_by_prepare(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "baby.inter").write_text("userID\titemID\tx_label\n0\t0\t0\n0\t1\t2\n")
    with pytest.raises(SystemExit) as code:
        cli.run(lambda: prepare.main(["mmrec", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out")]))
    assert code.value.code == 2
    assert capsys.readouterr().err.strip().endswith("no row has x_label 1 (valid); all three parts are needed")


MISTAKES = {
    "model": (("model", "retrieval"), "fredom", r"config\.model\.retrieval='fredom'.*did you mean 'freedom'"),
    "setting": (("model", "retrieval_settings", "layer"), 2, r"config\.model\.retrieval_settings\.layer: unknown key"),
    "metric": (("eval", "metric"), "recal@20", r"config\.eval\.metric=recal@20: .*did you mean 'recall@20'"),
    "activity": (("eval", "activity"), (5, 1), r"config\.eval\.activity: .* must ascend"),
    "data key": (("data", "label"), "click", r"config\.data\.label: unknown key"),
    "section": (("tables",), {}, r"config\.tables: unknown key"),
    "feature set": (("data", "features"), ("audio",), r"features/audio: no such feature set.*image, text"),
    "dropout": (("data", "edge_dropout"), 1.0, r"config\.data\.edge_dropout=1\.0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(pairs, mistake):
    path, value, message = MISTAKES[mistake]
    config = section = small_config(pairs)
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(UserError, match=message) as error:
        build(config)
    assert "\n" not in str(error.value)


def test_the_config_names_an_unknown_model():
    with pytest.raises(ValueError, match="no model 'freedm'; there are: em3, "):
        configs.get_config("freedm")


def test_a_star_stands_for_all_feature_sets(pairs):
    parts = build(small_config(pairs, "vbpr", data__features=("*",)))
    assert [features.name for features in parts.work.feature_sets] == ["image", "text"]
    assert set(parts.work.constants.features) == {"image", "text"}
    np.testing.assert_array_equal(
        parts.work.constants.features["text"], open_dataset(pairs.root).features("text").tokens[:, 0]
    )


def test_runs_stand_side_by_side(finished, reports):
    models = [compare.load(f"{name}={finished}", "test") for name in ("a", "b")]
    rows = compare.compare(models, "recall@20")
    lists = np.load(finished / "eval_test_items.npy")
    users = (lists != NO_ITEM).any(axis=1).sum()
    share = reports["test"]["slices"]["all"]["recall@20"]
    assert rows["all"]["a"]["se"] == reports["test"]["slices"]["all"]["recall@20_se"]
    assert 0 < rows["all"]["a"]["se"] < np.sqrt(share * (1 - share) / (users - 1)) + 1e-9, "of a share"
    assert rows["all"]["a"]["mean"] == pytest.approx(reports["test"]["slices"]["all"]["recall@20"])
    assert "recall@20 on test" in compare.table(models, rows, "recall@20", "test")
    assert "these runs have none; did you mean" in user_error(compare.compare, models, "recal@20")


def test_a_zero_vector_is_a_missing_modality(pairs, monkeypatch):
    vectors = wiring_retrieval.item_vectors

    def lacking(features):
        found = np.array(vectors(features))
        if features.name == "image":
            found[7] = 0.0
        return found

    monkeypatch.setattr(wiring_retrieval, "item_vectors", lacking)
    present = build(small_config(pairs, "em3")).work.constants.graphs.present
    assert present.keys() == {"image", "text"} and np.asarray(present["text"]).all()
    assert np.flatnonzero(~np.asarray(present["image"])).tolist() == [7]
