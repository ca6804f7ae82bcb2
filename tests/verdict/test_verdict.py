"""`em3 verdict` from end to end on small planted data: the page, a kill, the same page again, and what it refuses."""

import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from em3_jax import metrics
from em3_jax.config import recipes
from em3_jax.core import strict_json, terminal
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.training import experiment
from em3_jax.trials import runs
from em3_jax.verdict import climb, command, page, words
from em3_jax.verdict.budget import MORE_OF_IDS, Plan
from em3_jax.verdict.command import verdict
from em3_jax.verdict.ladder import FUSION, IDS, LADDER, POPULARITY
from em3_jax.verdict.popularity import PRIOR
from tests import contrast
from tests.conftest import ROOT, user_error, watched

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(90)]

CONFIG = str(ROOT / "configs" / "own_data.py")
CHANGES = {"train.epochs": 1.0, "data.history_length": 6, "data.batch_size": 128}
RUNGS = tuple(rung for rung in LADDER if rung.name in (IDS, "similarity", "make", FUSION))


def call(data, out, **others):
    how = {"budget_seconds": 3600.0, "config": CONFIG, "changes": CHANGES, "rungs": RUNGS, "parallel": 2}
    return verdict(data, out, **{**how, **others})


@pytest.fixture(scope="module")
def made(planted, tmp_path_factory):
    """(folder, verdict) on the planted data."""
    out = tmp_path_factory.mktemp("verdicts") / "one"
    return out, call(planted.root, out)


def test_what_it_says_is_what_its_runs_say(made):
    out, found = made
    assert found == json.loads((out / "verdict.json").read_text())
    seeds = found["seeds"] + MORE_OF_IDS
    top = [json.loads((out / "runs" / f"{IDS}_100-{k}" / "eval_test.json").read_text()) for k in range(seeds)]
    ids = next(row for row in found["ladder"] if row["name"] == IDS)
    assert ids["auc"] == pytest.approx(np.mean([report["slices"]["all"]["auc"] for report in top]))
    chosen = next(row for row in found["ladder"] if row["name"] == found["best"])
    assert found["gain"]["value"] == pytest.approx(chosen["auc"] - ids["auc"])
    assert found["gain"]["low"] <= found["gain"]["value"] <= found["gain"]["high"]
    assert sum(row["share_of_rows"] for row in found["slices"] if row["name"].startswith("items")) == pytest.approx(1)


def test_it_is_chosen_on_validation_and_the_baseline_had_its_choice(made):
    out, found = made
    assert len(found["settings"]) == len(climb.SETTINGS) and sum(one["chosen"] for one in found["settings"]) == 1
    best = max(found["settings"], key=lambda one: one["valid"])
    assert best["chosen"]
    for run in ("similarity_20-0", f"{FUSION}_20-0"):
        config = json.loads((out / "runs" / run / "run.json").read_text())["config"]
        for key, value in best["settings"].items():
            section = config
            for part in key.split("."):
                section = section[part]
            assert section == value, (run, key)
    auc = {row["name"]: json.loads((out / "runs" / f"{row['name']}_20-0" / "eval_valid.json").read_text())["slices"]["all"]["auc"]
           for row in found["ladder"] if row["name"] not in (IDS, "popularity")}  # fmt: skip
    went_on = {row["name"] for row in found["ladder"] if row["share"] > 0.2 and row["name"] not in (IDS, "popularity")}
    assert max(auc, key=auc.get) in went_on and FUSION in went_on and len(went_on) <= 3


def test_stages_read_the_shares_they_say(made, planted):
    out, _ = made
    rows = len(planted.split_rows("train"))
    for percent in (20, 40, 100):
        log = (out / "runs" / f"{IDS}_{percent}-0" / "log.txt").read_text()
        read = int(log.split(" training rows")[0].split()[-1].replace(",", ""))
        assert read == pytest.approx(rows * percent / 100, rel=0.1)


def test_the_page_has_the_numbers_and_asks_nothing_of_the_network(made):
    out, found = made
    text = (out / "verdict.html").read_text()
    assert f"{found['gain']['value']:+.4f}" in text and "http" not in text.replace("http-equiv", "")
    for row in found["ladder"]:
        assert row["label"] in text and f"{row['auc']:.4f}" in text
    assert text.count("<svg") >= 3 and found["command"].split()[0] in text
    assert f"{found['forecast']['value']:+.4f}" in text or found["verdict"] == "harms"
    said = words.text(found)
    assert " ".join(said.split()).startswith(words.headline(found)) and "Not told:" in said
    assert max(map(len, said.splitlines())) <= terminal.WIDTH


def test_killed_it_goes_on_and_the_page_is_the_same(made, planted, tmp_path):
    """Two rungs of the same ladder as a process of its own, killed after its first runs."""
    out, few = tmp_path / "again", RUNGS[:2]
    whole = call(planted.root, tmp_path / "whole", rungs=few)
    code = (
        "from tests.verdict.test_verdict import *\n"
        "if __name__ == '__main__':\n"
        f"    call({str(planted.root)!r}, {str(out)!r}, rungs=RUNGS[:2])\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], cwd=ROOT, env=_env(), start_new_session=True)
    while not list(out.glob("runs/*/finished.json")):
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.1)
    for _ in range(2):  # as `timeout` sends it, to the process and to its group
        process.send_signal(signal.SIGTERM)
    process.wait(timeout=300)
    done = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/finished.json")}
    assert not (out / "verdict.json").exists()
    again = call(planted.root, out, rungs=few)
    assert again == whole
    assert (out / "verdict.html").read_text() == (tmp_path / "whole" / "verdict.html").read_text()
    assert all(path.stat().st_mtime_ns == when for path, when in done.items()), "what was done is not done again"


def _env():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_nothing_is_run_twice(made, planted, monkeypatch):
    out, found = made
    monkeypatch.setattr(runs, "execute", None)
    assert call(planted.root, out) == found


def test_the_command_trains_the_rung_it_recommends(made):
    _, found = made
    assert found["recommended"] in (IDS, found["best"])
    assert ("own_data.py:id_only" in found["command"]) == (found["recommended"] == IDS)


@pytest.mark.parametrize("name", [rung.name for rung in LADDER])
def test_the_commands_that_it_names_can_be_run(made, planted, tmp_path, name):
    """Of every rung: what makes the codes or vectors that it reads is run, what trains it is read and built."""
    out, found = made
    data = runs.overlay(planted.root, tmp_path / "data")
    dataset = dataclasses.replace(planted, root=data)
    ladder = climb.Climb(dataset, CONFIG, CHANGES, LADDER, Plan(1.0, found["seeds"], 0.0), out, 1)
    ladder.folders[FUSION, 1.0] = [out / "runs" / f"{FUSION}_100-0"]
    *before, train = command._training(ladder, name, CONFIG).split(" && ")
    for line in before:
        subprocess.run([sys.executable, "-m", "em3_jax", *shlex.split(line)[1:]], check=True, cwd=ROOT, env=_env())
    flag, *options = shlex.split(train)[2:]
    config = recipes.read(
        flag.removeprefix("--config="), recipes.options(one for one in options if not one.startswith("--workdir"))
    )
    parts = experiment.build(config)
    assert parts.config.data.root == str(data)
    assert bool(parts.work.feature_sets) == (name not in (IDS, "codes"))
    fields = [field.name for field in parts.work.dataset.fields.item]
    assert any(field.startswith("verdict_") for field in fields) == (name == "codes")


def test_another_dataset_or_other_features_need_another_folder(made, tmp_path):
    out, _ = made
    other = synthetic(tmp_path / "other", interactions=1000, users=50, items=50)
    assert "choose another --out" in user_error(lambda: call(other.root, out))


def test_sentences_of_each_verdict(made):
    _, found = made
    gain = {"value": 0.012, "low": 0.009, "high": 0.015, "p": 0.001, "n": 400}
    slices = [
        {"name": "all", "rows": 100, "share_of_rows": 1.0, "share_of_gain": 1.0, "gain": gain},
        {"name": "items never shown", "rows": 31, "share_of_rows": 0.31, "share_of_gain": 0.98, "gain": gain},
        {"name": "items shown 1 to 4", "rows": 69, "share_of_rows": 0.69, "share_of_gain": 0.02,
         "gain": gain | {"low": -0.01}},
    ]  # fmt: skip
    pays = found | {"verdict": "pays", "gain": gain, "slices": slices, "best": "similarity", "cosines": None}
    title = {"name": "title", "value": 0.01, "low": 0.005, "high": 0.02}
    picture = {"name": "picture", "value": 0.0, "low": -0.01, "high": 0.01}
    pays |= {"fusion_passes_at_rows": 412_345, "importance": [title, picture]}
    assert words.headline(pays) == "Content pays: +0.0120 AUC (+0.0090 to +0.0150) over IDs, by IDs + cosines."
    said = " ".join(words.sentences(pays))
    assert "items never shown in training (31% of the impressions)" in said
    assert "about 410,000 training rows" in said and "title carries it, picture adds nothing" in said
    assert "Take IDs alone" in words.headline(pays | {"verdict": "no difference"})
    assert "harms" in words.headline(pays | {"verdict": "harms"})
    without = pays | {"slices": slices[2:]}
    assert any("never shows" in one and "not there" in one for one in words.untold(without))
    assert "<svg" in page.page(pays)
    popular = [row | {"auc": 0.9} if row["name"] == POPULARITY else row for row in found["ladder"]]
    assert any("Popularity of all training rows has 0.9000" in one for one in words.untold(found | {"ladder": popular}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_of_the_page_can_be_read(browser, made, tmp_path, scheme):
    _, found = made
    (tmp_path / "verdict.html").write_text(page.page(found | {"top": 2.0}), "utf-8")  # as if every rung was left behind
    view, _, complaints = watched(browser, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    view.goto((tmp_path / "verdict.html").as_uri())
    assert view.locator("tr.behind").count() == len(found["ladder"])
    assert view.evaluate("document.documentElement.scrollWidth") <= 390 and not complaints
    assert contrast.faint(view) == {}


def test_popularity_is_by_training_rows_alone(made, planted):
    """The smoothed rate of clicks of each item; an item that training does not show has the mean rate."""
    _, found = made
    row = next(one for one in found["ladder"] if one["name"] == POPULARITY)
    train, test = (np.asarray(planted.split_rows(split)) for split in ("train", "test"))
    item, label = planted.interactions["item"], planted.interactions["label"]
    mean = label[train].mean()
    expected = []
    for one in item[test]:
        own = label[train][item[train] == one]
        expected.append((own.sum() + PRIOR * mean) / (len(own) + PRIOR))
    assert row["auc"] == pytest.approx(metrics.auc(label[test], np.array(expected)), abs=1e-4)
    assert row["p_corrected"] is None and row["share"] == 1.0


def test_the_chosen_rung_and_ids_have_the_seeds(made):
    _, found = made
    seeds = {row["name"]: row["seeds"] for row in found["ladder"]}
    assert seeds[IDS] == found["seeds"] + MORE_OF_IDS and seeds[found["best"]] == found["seeds"]


def test_lemur_is_a_rung_where_there_is_raw_content(tmp_path):
    """Its run has a config of its own, on the same batches for as long as the others; it is built, not trained."""
    raw = synthetic(tmp_path / "raw", interactions=1500, users=60, items=60, raw=True, image_tokens=0, text_tokens=0)
    rungs = (LADDER[0], *command._of_raw(raw))
    assert [rung.name for rung in rungs] == [IDS, "lemur"]
    ladder = climb.Climb(raw, CONFIG, CHANGES, rungs, Plan(1.0, 2, 0.0), tmp_path / "out", 1)
    planned = ladder._planned(rungs[1], 0.4, ladder.settings_for("lemur"))
    (job,) = ladder._jobs([planned], seeds=1, splits=("valid", "test")).values()
    config = job.config
    assert config.task == "lemur" and set(config.data.features) == {"raw_image", "raw_text"}
    assert config.data.batch_size == 128 and config.train.epochs == 1.0 and config.data.rows_share == 0.4
    assert "item" in config.data.unknown_floor and job.splits == ("valid", "test")
    assert experiment.build(config).work.task.can_be_served
    said = command._training(ladder, "lemur", CONFIG)
    assert "configs/lemur.py" in said and "raw_image" in said


def test_data_on_which_there_is_nothing_to_compare(planted, tmp_path):
    out = tmp_path / "out"
    bare = synthetic(tmp_path / "bare", interactions=1000, users=50, items=50, image_tokens=0, text_tokens=0)
    said = user_error(lambda: call(bare.root, out))
    assert "has no content" in said and "em3 extract" in said
    assert "takes about" in user_error(lambda: call(planted.root, out, budget_seconds=1.0))
    assert "task lemur" in user_error(
        lambda: call(planted.root, out, config=str(ROOT / "configs" / "lemur.py"), changes={})
    )
    assert not (out / "runs").exists()
    one_class = dataclasses.replace(planted, interactions={**planted.interactions, "label": np.zeros(4000, np.uint8)})
    assert "label 0" in user_error(climb.check, one_class, RUNGS, "click")
    start = planted.interactions["history_start"]
    no_past = dataclasses.replace(planted, interactions={**planted.interactions, "history_end": start})
    assert "history" in user_error(climb.check, no_past, RUNGS, "click")


def test_json_is_strict(made):
    out, _ = made
    text = (out / "verdict.json").read_text()
    assert "NaN" not in text and strict_json.loads_report(text)


def test_a_setting_is_spelled_as_the_command_line_reads_it(planted):
    values = {**climb.SLOW, "model.content_parts": ("item", "user"), "optim.learning_rate": 0.003}
    options = [f"--config.{key}={command._spelled(value)}" for key, value in values.items()]
    config = recipes.read(CONFIG, recipes.options([*options, f"--config.data.root={planted.root}"]))
    assert config.optim.multipliers == climb.SLOW["optim.multipliers"] and config.optim.learning_rate == 0.003
    assert config.model.content_parts == ("item", "user")
