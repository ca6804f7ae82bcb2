"""`reproduce --table lemur`: every row's run is a config that builds, and the page has quality and cost."""

import json

import pytest

from em3_jax.core.errors import UserError
from em3_jax.training import experiment
from em3_jax.trials import runs
from reproduce import command, lemur, report, search
from tests.conftest import ROOT

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

CONFIG = str(ROOT / "configs" / "lemur.py")
CHANGES = {
    "data.features": ("image", "text"),
    "data.batch_size": 128,
    "data.history_length": 12,
    "model.backbone_settings.hidden": (8,),
    "train.epochs": 0.2,
    "train.log_every": 2,
    # What the baseline has not: it goes without.
    "model.encoder.heads": 2,
}


@pytest.fixture(scope="module")
def page(planted, tmp_path_factory):
    """The table of the baseline, two stages, and LEMUR with p = 20 %, one seed."""
    out = tmp_path_factory.mktemp("lemur")
    table = lemur.table(("p20_q20", "two_stage"))
    jobs = runs.make_jobs(
        table.runs, config=CONFIG, changes=CHANGES, data=planted.root, seeds=1, root=out / "runs", cost=True
    )
    for job in jobs.values():  # in the order of their needs
        assert runs.execute(job) == "" and job.is_finished()
    return report.write(table, [out / "runs"], 1, out, "the command", {}), out


def test_the_page_has_quality_cost_and_the_papers_numbers(page):
    text, out = page
    row = next(line for line in text.splitlines() if line.startswith("| p 20 %, q 20 %"))
    result = json.loads((out / "table_lemur.json").read_text())
    baseline, two_stage, sampled = result["groups"][0]["rows"]
    assert two_stage["label"].startswith("two-stage") and two_stage["auc"]["mean"] != sampled["auc"]["mean"]
    assert sampled["cost"]["gigaflops"] > baseline["cost"]["gigaflops"] > 0
    assert f"{sampled['gauc']['mean']:.4f}" in row and f"{sampled['cost']['gigaflops']:.3f}" in row
    assert "| 0.6488 | +0.759 % |" in row and "GAUC gain" in text and (out / "table_lemur.png").exists()
    assert sampled["gain"] == pytest.approx(100 * (sampled["gauc"]["mean"] / baseline["gauc"]["mean"] - 1))


def test_every_row_has_a_run_that_builds(planted, tmp_path):
    table = lemur.table()
    assert {row.run for row in table.groups[0].rows} <= set(table.runs)
    jobs = runs.make_jobs(table.runs, config=CONFIG, changes=CHANGES, data=planted.root, seeds=1, root=tmp_path)
    assert jobs["two_stage-0"].needs == ("contrast_only-0",)
    assert jobs["two_stage-0"].config.model.encoder.heads == 2 and not hasattr(
        jobs["id_only-0"].config.model, "encoder"
    )
    for job in jobs.values():
        assert experiment.build(job.config).work.headline


@pytest.mark.parametrize("file", ["lemur.py", "lemur_movielens.py"])
def test_all_runs_have_the_same_budget_and_the_first_stage_is_chosen_by_what_it_trains(file):
    config = str(ROOT / "configs" / file)
    whole = runs.settings(config, "", {})
    budget = ("epochs", "eval_every", "patience")
    for variant in ("id_only", "contrast_only", "frozen"):
        other = runs.settings(config, variant, {})
        assert [other.train[name] for name in budget] == [whole.train[name] for name in budget], variant
        assert other.data.history_length == whole.data.history_length > whole.model.short_history, variant
    first = runs.settings(config, "contrast_only", {})
    assert (first.model.ranking_weight, first.eval.metric) == (0.0, "gauc")


def test_some_rows_bring_the_runs_they_need():
    assert set(lemur.table(("two_stage",)).runs) == {"id_only", "contrast_only", "two_stage"}
    with pytest.raises(UserError, match="--models lemurr: no such row; did you mean 'lemur'"):
        lemur.table(("lemurr",))


def test_a_run_waits_for_those_it_needs_that_are_still_to_do(planted, tmp_path):
    """The points of a search start from runs that were done before it; they do not wait for them again."""
    made = {"config": CONFIG, "changes": CHANGES, "data": planted.root, "root": tmp_path}
    table = lemur.table(("two_stage",))
    jobs = runs.make_jobs(table.runs, seeds=1, **made)
    assert {job.name for job in runs.ready(jobs.values(), jobs)} == {"id_only-0", "contrast_only-0"}
    assert runs.ready(jobs.values(), set(jobs) - {"contrast_only-0"}) == list(jobs.values())
    points = [job for of_run in search.jobs(table.runs, count=2, **made).values() for _, job in of_run]
    assert any(job.needs for job in points)
    assert runs.ready(points, {job.name for job in points}) == points


def test_it_is_its_own_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["reproduce", "--table", "3,lemur", "--data", "x", "--out", "y"])
    with pytest.raises(UserError, match="give numbers from 1 to 7, all, or 10, lemur or images alone"):
        command.main()
