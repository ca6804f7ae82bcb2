"""benchmarks.speedrun, with rivals of a few lines in place of other people's libraries."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speedrun import __main__ as command
from benchmarks.speedrun import environments, race, report, rows
from benchmarks.speedrun.contenders import CONTENDERS, MOVIELENS, PLANTED, Ours, World
from benchmarks.speedrun.planted import write_rows
from benchmarks.speedrun.race import CONVERGED, LIMIT, TARGET, Run
from em3_jax import metrics

RIVALS = Path(race.__file__).parent / "rivals"
LABELS = np.array([0, 1, 0, 1, 1, 0], np.uint8)
SCORES = [[3, 0, 2, 1, 0, 4], [1, 0, 1, 1, 2, 0], [0, 1, 0, 1, 2, 0], [0, 1, 0, 1, 2, 0]]  # AUC 0.0, 0.61, 1.0, 1.0
AUCS = [metrics.auc(LABELS, scores) for scores in SCORES]
HEAD = f"import sys, time; sys.path.insert(0, {str(RIVALS)!r})\nfrom pathlib import Path\nfrom protocol import *\n"
TRAIN = """
reports = Reports(Path(sys.argv[1]))
print("a library greets")  # on stdout, as they do
reports.training()
for scores in {scores}:
    time.sleep(0.01)
    with reports.evaluating():
        time.sleep(0.2)
    if not reports.valid(scores, 100):
        break
"""


def run(work: Path, script: str, target: float, limit: float = 30.0) -> Run:
    (work / "rival.py").write_text(HEAD + script)
    reader = race.Rival(work, LABELS)
    started = [sys.executable, work / "rival.py", work]
    return race.train(started, reader, work / "messages.txt", target=target, limit=limit, cores=1)


def test_a_rival_is_judged_by_its_scores_and_stopped_at_the_target(tmp_path):
    found = run(tmp_path, TRAIN.format(scores=SCORES), target=0.9)
    assert AUCS[1] < 0.9 < AUCS[2]
    assert (found.ended, found.evaluations, found.best) == (TARGET, 3, AUCS[2])
    assert 0.6 < found.seconds < 30 and 0 < found.processor and found.peak_bytes > 5e6
    assert 100 / 0.2 < found.speed < 100 / 0.01  # evaluation is left out
    assert "a library greets" in (tmp_path / "messages.txt").read_text()


def test_a_rival_that_does_not_reach_the_target_is_told_with_its_best(tmp_path):
    found = run(tmp_path, TRAIN.format(scores=SCORES[:2]), target=0.9)
    assert (found.ended, found.best) == (CONVERGED, AUCS[1])
    cells = report.row("slow", [found])
    assert cells[1].startswith("not reached (stopped by itself after") and cells[3:5] == ["0 of 1", f"{AUCS[1]:.4f}"]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('deep in', file=sys.stderr); raise SystemExit(3)", "exit code 3: deep in"),
        ("import no_such_library", "exit code 1: ModuleNotFoundError: No module named 'no_such_library'"),
        (TRAIN.format(scores=[[1, 2]]), "(2,) scores for 6 rows of validation, or not all of them are numbers"),
        (TRAIN.format(scores=[["nan"] * 6]), "(6,) scores for 6 rows of validation, or not all of them are numbers"),
    ],
)
def test_a_rival_that_fails_is_told_in_a_line(tmp_path, script, said):
    found = run(tmp_path, script, target=0.9)
    assert found.ended == said
    assert report.row("broken", [found])[:2] == ["broken", f"failed: {said}"]


def test_a_rival_that_takes_too_long_is_ended(tmp_path):
    found = run(tmp_path, "time.sleep(60)", target=0.9, limit=0.5)
    assert found.ended == LIMIT and found.seconds < 30 and np.isnan(found.best)


def test_what_cannot_be_installed_is_a_line_of_the_table(tmp_path):
    with pytest.raises(environments.NotInstalledError) as caught:
        environments.python_of(tmp_path / "none", ("./no-such-package",))
    assert "\n" not in str(caught.value) and "no-such-package" in str(caught.value)
    assert not (tmp_path / "none" / "requirements.txt").exists()
    made = report.table({"here": [Run(TARGET, seconds=1.0)]}, {"absent": str(caught.value)})
    assert [line.split(" | ")[0] for line in made.splitlines()[2:]] == ["| here", "| absent"]
    assert len({line.count("|") for line in made.splitlines()}) == 1


def test_tables_are_appended_in_the_order_of_time(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Head\n")
    slow = [Run(TARGET, 0.7, 3, seconds, 9.0, 10**8, 50.0, 2.0) for seconds in (8.0, 10.0, 30.0)]
    fast = [Run(TARGET, 0.8, 1, 2.0, 1.0, 10**8, 90.0, None)]
    made = report.table({"never": [Run(LIMIT, 0.6)], "slow": slow, "fast": fast}, {})
    for heading in ("first", "second"):
        report.append(page, heading, "Said.", made)
    text = page.read_text()
    assert text.startswith("# Head\n") and text.count("| contender |") == 2
    assert text.index("## first") < text.index("## second")
    lines = made.splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| fast", "| slow", "| never"]
    assert "| 10.0 (8.0 to 30.0) | 12.0 (10.0 to 32.0) | 3 of 3 | 0.7000 (0.7000 to 0.7000) |" in lines[1]
    assert "| 2.0 | - | 1 of 1 |" in lines[0]


def test_runs_are_logged_line_by_line(tmp_path):
    log = tmp_path / "results.jsonl"
    for seed in range(2):
        report.log(log, "one", Run(LIMIT, seconds=3.0), data=PLANTED, seed=seed)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["seed"], line["contender"], line["best"], line["seconds"]) for line in lines] == [
        (0, "one", None, 3.0),
        (1, "one", None, 3.0),
    ]


def test_the_target_is_the_best_of_others_or_a_little_below_the_best_of_all(tmp_path):
    results, targets = tmp_path / "results.jsonl", tmp_path / "targets.json"
    for data in (MOVIELENS, PLANTED):
        for name, best in (("em3_jax EM3", 0.9), ("FuxiCTR DIN", 0.7), ("FuxiCTR DIN", 0.8), ("RecBole DIN", 0.6)):
            report.log(results, name, Run(CONVERGED, best), data=data, target=None)
        report.log(
            results, "RecBole DIN", Run(TARGET, 0.99), data=data, target=0.5
        )  # chosen by a target, so no measure of it
        command.find_target(data, results, targets)
    found = json.loads(targets.read_text())
    assert (found[MOVIELENS]["auc"], found[MOVIELENS]["of"]) == (0.75, "FuxiCTR DIN")
    assert (found[PLANTED]["auc"], found[PLANTED]["of"]) == (0.895, "em3_jax EM3")
    assert found[PLANTED]["runs"]["FuxiCTR DIN"] == 2


RATINGS = [(1, 10, 4, 100), (1, 11, 3, 100), (1, 12, 5, 101), (2, 10, 2, 102), (1, 13, 4, 103)]
FOLDERS = {
    "posters": {
        "ratings.tsv": ["user_id\titem_id\trating\ttimestamp", *("\t".join(map(str, r)) for r in reversed(RATINGS))],
        "users.tsv": ["user_id\tage\tgender\toccupation", "1\t20\tF\tartist", "2\t30\tM\tother"],
        "items.tsv": ["item_id\tyear\tgenres", *(f"{k}\t{'' if k == 11 else 1990}\tAction|War" for k in range(10, 14))],
    },
    "ml-100k": {
        "u.data": ["\t".join(map(str, row)) for row in RATINGS],
        "u.user": ["1|20|F|artist|0", "2|30|M|other|0"],
        "u.item": [
            f"{k}|Caf\xe9{'' if k == 11 else ' (1990)'}|01-Jan-1991||x|0|1{'|0' * 15}|1|0" for k in range(10, 14)
        ],
    },
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_rows_of_movielens(kind, tmp_path):
    for name, lines in FOLDERS[kind].items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", "latin-1")
    found = list(rows.movielens_rows(tmp_path))
    clicks = [(row["item_id"], row["click"]) for row in found]
    assert clicks == [("10", "1"), ("11", "0"), ("12", "1"), ("10", "0"), ("13", "1")]
    assert [row["history"] for row in found] == ["", "", "10^11", "", "10^11^12"]  # strictly earlier
    assert found[4]["history_rating"] == "4^3^5"
    rows.write(tmp_path / "out", rows.MOVIELENS, [("valid", found[1:2])])
    assert (tmp_path / "out" / "valid.csv").read_text().splitlines()[1] == "1,20,F,artist,11,none,Action^War,,,0"


def world_of(root: Path, out: Path) -> World:
    world = World(PLANTED, Path("unused"), out, Path("unused"), 1)
    world.dataset.parent.mkdir()
    world.dataset.symlink_to(root)
    return world


def test_rows_of_planted_data_are_our_own(planted, tmp_path):
    world = world_of(planted.root, tmp_path)
    write_rows(world.dataset, world.rows, length=5)
    with open(world.rows / "valid.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    race.check_rows(np.array([int(row["click"]) for row in found]), world.labels())
    with pytest.raises(ValueError, match="not ours"):
        race.check_rows(1 - world.labels(), world.labels())
    first, ids = planted.split_rows("valid")[0], planted.item_table.column("id").to_pylist()
    end = int(planted.interactions["history_end"][first])
    start = max(end - 5, int(planted.interactions["history_start"][first]))
    assert found[0]["history"] == "^".join(str(ids[item]) for item in planted.events["item"][start:end])
    assert found[0]["item_id"] == str(ids[planted.interactions["item"][first]])


def test_ours_races_to_an_easy_target(planted, tmp_path):
    world = world_of(planted.root, tmp_path)
    small = ("--config.data.batch_size=64", "--config.train.eval_every=2", "--config.data.history_length=8")
    ours = Ours("ours", {PLANTED: "configs/em3_synthetic.py:id_only"}, changes=small)
    found = ours.run(world, 0, target=0.2, limit=200)
    assert (found.ended, found.evaluations) == (TARGET, 1), found
    assert 0.2 < found.best < 1 and found.seconds > 0.5 and found.peak_bytes > 1e8


def test_contenders_are_named_and_pinned():
    assert len({one.name for one in CONTENDERS}) == len(CONTENDERS)
    shared: dict[str, tuple[str, ...]] = {}
    for one in CONTENDERS:
        if not one.is_ours:
            assert not one.script or (RIVALS / one.script).is_file()
            assert any("==" in part for part in one.requirements)
            assert shared.setdefault(one.environment, one.requirements) == one.requirements
    with pytest.raises(SystemExit, match="no contender 'nobody'"):
        command.chosen("nobody")
