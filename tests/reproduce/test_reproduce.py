"""The paper's tables by one command: the runs, their reuse, the numbers on the page."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import stats

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import recipes
from em3_jax.core import strict_json
from em3_jax.training import experiment
from em3_jax.trials import runs
from reproduce import report, results, search, tables
from reproduce.command import reproduce
from tests.conftest import ROOT, user_error

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(80)]

CONFIG = str(ROOT / "configs" / "em3_synthetic.py")
CHANGES = {
    "data.batch_size": 128, "data.history_length": 6, "model.backbone_settings.hidden": (16,), "train.epochs": 0.5,
    "model.fusion_settings.width": 16, "model.fusion_settings.ffn_width": 16, "model.cic.negatives": 16,
}  # fmt: skip
DATA = {"features": ("image",), "history_length": 50}


def call(planted, out, numbers, seeds=2, **changes):
    settings = {"config": CONFIG, "changes": CHANGES | changes, "parallel": 2, "command": "the command"}
    return reproduce(numbers, str(planted.root), seeds, str(out), **settings)


@pytest.fixture(scope="module")
def pages(planted, tmp_path_factory):
    """(folder, pages) of tables 5 and 7."""
    out = tmp_path_factory.mktemp("reports") / "out"
    features = sorted(path.name for path in (planted.root / "features").iterdir())
    result = call(planted, out, (5, 7))
    assert sorted(path.name for path in (planted.root / "features").iterdir()) == features  # the dataset is as it was
    return out, result


def test_the_page_has_the_numbers_of_the_runs(pages):
    out, (five, _) = pages
    auc = {
        run: [json.loads((out / "runs" / f"{run}-{k}" / "eval_test.json").read_text())["slices"]["all"]["auc"] for k in (0, 1)]
        for run in ("id_only", "without_cic", "em3")
    }  # fmt: skip
    result = json.loads((out / "table5.json").read_text())
    (group,) = result["groups"]
    assert [row["label"] for row in group["rows"]] == ["baseline (IDs alone)", "w/o CIC", "w/ CIC"]
    for row, run in zip(group["rows"], auc, strict=True):
        assert row["auc"]["values"] == auc[run]
        assert row["gain"] == pytest.approx(
            100 * (np.mean(auc[run]) - np.mean(auc["id_only"])) / np.mean(auc["id_only"])
        )
        assert row["auc"]["sd"] == pytest.approx(abs(auc[run][0] - auc[run][1]) / np.sqrt(2))
    p = stats.ttest_rel(auc["em3"], auc["id_only"]).pvalue
    last = group["rows"][2]["auc"]
    assert last["p"] == last["p_seeds"] == pytest.approx(p)
    assert last["low"] < last["difference"] < last["high"], "over the test rows"
    line = next(line for line in five.splitlines() if line.startswith("| w/ CIC"))
    assert f"{np.mean(auc['em3']):.4f}" in line and "| 0.7033 | +0.242 % |" in line and f"| {p:.2g} |" in line
    assert "the command" in five and "(Bayes)" in five
    assert (out / "table5.png").read_bytes().startswith(b"\x89PNG") and (out / "table5.md").read_text() == five


def test_a_run_is_the_run_of_train_py(planted, pages, tmp_path):
    out, _ = pages
    config = json.loads((out / "runs" / "em3-1" / "run.json").read_text())["config"]
    config["data"]["root"] = str(planted.root)
    train.train(config, tmp_path / "alone")
    alone = evaluation.evaluate(tmp_path / "alone", "test")["slices"]
    written = (out / "runs" / "em3-1" / "eval_test.json").read_text()
    for name, values in strict_json.loads_report(written)["slices"].items():
        np.testing.assert_equal(values, alone[name])  # NaN where undefined
        assert "auc_se" in values or not np.isfinite(values["auc"])


def test_frozen_vectors_come_from_the_run_of_the_same_seed(pages):
    out, _ = pages
    root = out / "runs"
    for name, source in (("pe", "pretraining"), ("task_specific_pe", "em3")):
        for seed in (0, 1):
            config = json.loads((root / f"{name}-{seed}" / "run.json").read_text())["config"]
            assert (
                config["data"]["features"] == [f"vectors_{source}_{seed}"]
                and config["model"]["content"] == "pre_extracted"
            )
            manifest = json.loads(
                (root / "data" / "features" / f"vectors_{source}_{seed}" / "manifest.json").read_text()
            )
            assert manifest["encoder"].startswith(f"{source}-{seed}, step")


def test_what_is_finished_is_reused_and_what_is_missing_is_made(planted, pages, capfd):
    out, before = pages
    stamps = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/finished.json")}
    (out / "runs" / "without_cic-1" / "finished.json").unlink()
    assert call(planted, out, (5,)) == before[:1]
    assert "6 runs: 5 finished before, 1 to do" in capfd.readouterr().out
    changed = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.parent.name for path in changed} == {"without_cic-1"}


def test_runs_of_another_config_are_refused(planted, pages):
    out, _ = pages
    message = user_error(lambda: call(planted, out, (5,), **{"train.epochs": 0.25}))
    assert "made with another config (config.train.epochs: 0.5 -> 0.25)" in message


def test_a_terminated_command_goes_on_where_it_was(planted, pages, tmp_path):
    out, _ = pages
    options = [f"--config.{key}={value}" for key, value in CHANGES.items() if key != "train.epochs"]
    long = ["--config.train.epochs=400", "--config.train.patience=0", "--config.train.eval_every=100000"]
    short = ["--config.train.epochs=0.5"]
    command = [sys.executable, "-m", "em3_jax.reproduce", "--table", "5", "--data", str(planted.root), "--seeds", "1"]
    command += ["--search", "0"]
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        [*command, "--out", str(stopped), *options, *long], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = stopped / "runs" / "id_only-0" / "metrics.jsonl"
    while not log.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert list((stopped / "runs" / "id_only-0" / "checkpoints" / "latest").glob("[0-9]*"))
    assert not list((stopped / "runs").glob("*/finished.json"))

    again = subprocess.run(
        [*command, "--out", str(tmp_path / "done"), "--keep", str(tmp_path / "kept.json"), *options, *short],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "[3/3]" in again.stdout
    result = json.loads((tmp_path / "done" / "table5.json").read_text())["groups"][0]["rows"]
    expected = json.loads((out / "table5.json").read_text())["groups"][0]["rows"]
    assert [row["auc"]["values"][0] for row in result] == [row["auc"]["values"][0] for row in expected]
    kept = results.read(tmp_path / "kept.json")  # what a page shows
    assert [row["auc"]["values"] for row in kept["rows"]] == [row["auc"]["values"] for row in result]
    (source,) = kept["sources"]
    assert source["seeds"] == [0] and source["config"] == "configs/em3_synthetic.py" and source["date"]
    assert source["command"].startswith("em3 reproduce --table 5 ") and f"--keep {tmp_path}" in source["command"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "8"], "give numbers from 1 to 7, all, or 10, lemur or images alone"),
        (["--table", "3,10"], "give numbers from 1 to 7, all, or 10, lemur or images alone"),
        (["--table", "3", "--models", "em3"], "--models: of tables 10, lemur and images"),
        (["--table", "3", "--no-grid"], "--no-grid: of table 10 alone"),
        (["--table", "10", "--models", "em4"], "--models em4: no such model; did you mean 'em3'"),
        (["--table", "10", "--seeds", "0"], "--seeds and --jobs: must be at least 1"),
        (["--table", "5", "--seeds", "0"], "--seeds and --jobs: must be at least 1"),
        (["--table", "5", "--search", "-1"], "--search at least 0"),
        (["--table", "5", "--keep", "page.md"], "--keep page.md: must be a .json file in a folder that is there"),
        (["--table", "5", "--config.model.fusoin=mean"], "config.model.fusoin: unknown key; did you mean 'fusion'?"),
        (["--table", "5", "--config.train.epochs=many"], "config.train.epochs=many: give a number above 0"),
        (["--table", "5", "--seed=3", "--tabel=3"], "unknown option"),
        (["--table", "5", "--config", "nowhere.py"], "nowhere.py: no such file; known: configs/em3_lora.py"),
    ],
)
def test_mistakes_are_one_line(planted, tmp_path, arguments, message, monkeypatch, capsys):
    from reproduce import command

    whole = ["reproduce", "--data", str(planted.root), "--out", str(tmp_path / "out"), *arguments]
    monkeypatch.setattr(sys, "argv", whole)
    assert message in user_error(command.main)
    assert not (tmp_path / "out").exists()


def test_the_tables_of_a_dataset(planted):
    made = [
        tables.make(number, planted, {"features": ("image", "text"), "history_length": 20}) for number in tables.NUMBERS
    ]
    labels = [[row.label for group in table.groups for row in group.rows] for table in made]
    assert labels[1] == ["baseline (IDs alone)", "only image", "only text", "image & text", "video & text"]
    assert made[1].runs["only_image_first_text"].changes == {"data.features": ("image[0]", "text")}
    assert [row.paper for row in made[1].groups[0].rows] == [0.7016, 0.7024, 0.7022, 0.7027, 0.7033]
    assert len(made[0].groups) == 1  # planted data have no conversions
    for table in made:
        used = {row.run for group in table.groups for row in group.rows}
        needs = {name for run in table.runs.values() for name in (run.init_from, run.vectors_of) if name}
        assert set(table.runs) == used | needs
    one = tables.make(2, planted, {"features": ("text",)})
    assert [row.label for row in one.groups[0].rows] == ["baseline (IDs alone)", "only text"] and set(one.runs) == {
        "id_only",
        "em3",
    }


def test_the_runs_of_a_table_fit_a_config_that_slows_content_down(planted, tmp_path):
    """Multipliers must match a parameter, and some runs have no such parameters."""
    changes = {"data.features": ("image", "text"), "model.cic.id_fields": ("item",), "data.batch_size": 64}
    needed = {name: run for number in (6, 7) for name, run in tables.make(number, planted, DATA).runs.items()}
    config = str(ROOT / "configs" / "em3_movielens.py")
    jobs = runs.make_jobs(needed, config=config, changes=changes, data=planted.root, seeds=1, root=tmp_path)
    for job in jobs.values():
        data = replace(job.config.data, root=str(planted.root), features=("image", "text"))
        assert experiment.build(replace(job.config, data=data)).work.headline


def test_gains_are_counted_as_the_paper_counts_them():
    """Tables 1 to 7 print 0.256 %, 0.242 %, ... of these AUCs."""
    rows = [{"auc": {"values": [0.7016], "mean": 0.7016}, "paper": 0.7016}]
    rows += [{"auc": {"values": [auc], "mean": auc}, "paper": auc} for auc in (0.7033, 0.7029, 0.7021)]
    for row in rows:
        report._gains(row, rows[0], "auc")
    assert [f"{row['gain']:.3f}" for row in rows[1:]] == ["0.242", "0.185", "0.071"]
    assert [f"{row['paper_gain']:.3f}" for row in rows[1:]] == ["0.242", "0.185", "0.071"]


def test_a_change_for_all_runs_leaves_alone_what_a_variant_sets(planted, tmp_path):
    needed = {name: run for number in (4, 7) for name, run in tables.make(number, planted, DATA).runs.items()}
    changes = {"train.epochs": 3.0, "eval.batch_size": 64, "optim.multipliers": (("^cic/", 0.5),), "tables.width": 4}
    jobs = runs.make_jobs(needed, config=CONFIG, changes=changes, data=planted.root, seeds=1, root=tmp_path)
    plain, pretraining, lora = (jobs[f"{name}-0"].config for name in ("em3", "pretraining", "length_50_lora"))
    assert (plain.train.epochs, plain.eval.batch_size, plain.tables.width) == (3.0, 64, 4)
    assert (pretraining.train.epochs, pretraining.eval.batch_size) == (200.0, 256)
    assert ("^model/fusion/", 0.0) in lora.optim.multipliers and lora.train.epochs == 3.0


def test_baseline_and_model_try_as_many_settings_and_validation_chooses(planted, tmp_path):
    """What a search chooses, every row of the table has; test is not opened for the others."""
    settings = {"config": CONFIG, "changes": CHANGES, "parallel": 2, "command": "the command", "search_count": 2}
    (page,) = reproduce((5,), str(planted.root), 1, str(tmp_path), **settings)
    tried = json.loads((tmp_path / "table5.json").read_text())["search"]
    assert {name: len(points) for name, points in tried.items()} == {"id_only": 2, "em3": 2}
    best = {}
    for name, points in tried.items():
        folders = [tmp_path / "runs" / f"{name}_point{k}-0" for k in range(2)]
        assert points[0]["settings"] == {} and points[1]["settings"]
        assert not any((folder / "eval_test.json").exists() for folder in folders), "test is for the chosen one"
        valid = [json.loads((folder / "finished.json").read_text())["best_value"] for folder in folders]
        assert [one["valid"] for one in points] == valid
        best[name] = points[int(np.argmax(valid))]
        assert best[name]["chosen"] and sum(one["chosen"] for one in points) == 1
        assert f"{best[name]['valid']:.4f}**" in page
    for run, source in (("id_only", "id_only"), ("em3", "em3"), ("without_cic", "em3")):
        config = json.loads((tmp_path / "runs" / f"{run}-0" / "run.json").read_text())["config"]
        for key, value in best[source]["settings"].items():
            is_left_out = run == "without_cic" and key == "model.cic.weight"
            assert recipes.lookup(ConfigDict(config), key) == (0.0 if is_left_out else value)


def test_a_search_draws_what_the_run_reads_and_the_user_has_not_set():
    run = tables.EM3
    drawn = search.points(CONFIG, run, {}, 40)
    assert drawn[0] == {} and len(drawn) == 40 == len({tuple(point.values()) for point in drawn})
    assert all(set(point) == set(search.SPACE) - {"model.sqdc.weight"} for point in drawn[1:])
    assert drawn[:6] == search.points(CONFIG, run, {}, 6), "a larger budget begins with the smaller one"
    baseline = search.points(CONFIG, tables.ID_ONLY, {"tables.l2": 0.1}, 3)[1]
    assert set(baseline) == {"model.backbone_settings.dropout", "tables.learning_rate", "optim.learning_rate"}
    without = search.points(CONFIG, run._replace(changes={"model.cic.weight": 0.0}), {}, 2)[1]
    assert "model.cic.weight" not in without
    lemur = search.points(str(ROOT / "configs" / "lemur.py"), run, {}, 2)[1]
    assert "model.sqdc.weight" in lemur and "model.cic.weight" not in lemur
