"""Plots of runs: what is drawn is what was logged, resumed and killed runs too, and the page works in a browser, alone."""

import http.server
import json
import math
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from em3_jax.report import panels, plot, streams
from em3_jax.training.logs import MetricWriter
from tests import contrast
from tests.conftest import ROOT, user_error, watched

pytestmark = pytest.mark.quickly_compiled

HOSTILE = "<script>alert('a')</script>&\"$x$"


def config(dropout=0.1, metric="auc") -> dict:
    return {
        "data": {"batch_size": 100},
        "model": {"dropout": dropout, "cic": {"weight": 0.1}},
        "eval": {"metric": metric},
    }


def train_line(step: int, scale: float = 1.0) -> dict:
    speed = {"time/examples_per_second": 50.0 * scale, "time/input_wait_share": 0.25}
    return {
        "step": step,
        "train/loss": scale / step,
        "train/ranking_loss": 1 / step,
        "train/gradient_norm": 2.0,
    } | speed


def valid_line(step: int, auc: float) -> dict:
    return {"step": step, "valid/n": 70, "valid/auc": auc, "valid/logloss": 1 - auc, "time/evaluation_seconds": 30.0}


def write(folder: Path, lines: list[dict], settings: dict | None = None, data_hash: str = "d", end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    if settings:
        record = {"config": settings, "data_hash": data_hash}
        (folder / "run.json").write_text(json.dumps(record))
    return folder


LINES = [
    *map(train_line, (10, 20)),
    valid_line(20, 0.6),
    *map(train_line, (30, 40)),
    valid_line(40, 0.8),
    train_line(50),
    train_line(60),
    valid_line(60, 0.7),
]


@pytest.fixture
def run(tmp_path) -> Path:
    return write(tmp_path / "run", LINES, config())


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["plot", *map(str, arguments)])
    plot.main()


def embedded(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def panel(page: Path, name: str) -> dict:
    return next(panel for panel in embedded(page)["panels"] if panel["name"] == name)


def test_what_is_drawn_is_what_was_logged(run, tmp_path, monkeypatch, capsys):
    other = write(tmp_path / "other", [train_line(15, 4.0), train_line(30, 4.0), valid_line(30, 0.9)], config(0.3))
    command(monkeypatch, f"a={run}", f"b={other}", "--out", tmp_path / "out" / "plots")
    page = tmp_path / "out" / "plots.html"
    assert embedded(page)["runs"] == ["a", "b"]
    loss = panel(page, "train/loss")
    assert [line["run"] for line in loss["lines"]] == [0, 1]
    assert loss["lines"][0]["x"] == [10, 20, 30, 40, 50, 60] and loss["lines"][0]["y"] == [
        1 / k for k in range(10, 70, 10)
    ]
    assert loss["lines"][1]["x"] == [15, 30] and loss["lines"][1]["y"] == [4 / 15, 4 / 30]
    auc = panel(page, "valid/auc")
    assert [(line["x"], line["y"], line["best"]) for line in auc["lines"]] == [
        ([20, 40, 60], [0.6, 0.8, 0.7], 1),
        ([30], [0.9], 0),
    ]
    assert panel(page, "valid/logloss")["lines"][0]["best"] == 1, "the kept step is marked wherever it was validated"
    names = [panel["name"] for panel in embedded(page)["panels"]]
    assert names[:4] == ["train/loss", "train/ranking_loss", "valid/auc", "valid/logloss"] and names[-1] == "valid/n"
    assert "train/cic_loss" not in names
    printed = capsys.readouterr().out
    assert f"{page}: written" in printed and f"{page.with_suffix('.png')}: written" in printed
    assert "auc 0.8000 at step 40" in printed and "auc 0.9000 at step 30" in printed
    text = page.read_text()
    assert "1 setting differs" in text and "<th>model.dropout</th><td>0.1</td><td>0.3</td>" in text
    assert "<td>60</td><td>auc 0.8000 at step 40</td><td>50</td><td>25.0%</td>" in text


def test_the_best_of_a_run_that_grew_is_of_what_came_after(tmp_path, monkeypatch, capsys):
    grew = {"step": 40, "data/new_rows": 70.0}
    lines = [*LINES[:6], grew, grew, *LINES[6:], train_line(70), train_line(80), valid_line(80, 0.65)]
    command(monkeypatch, f"grown={write(tmp_path / 'grown', lines, config())}", "--out", tmp_path / "p")
    (line,) = panel(tmp_path / "p.html", "valid/auc")["lines"]
    assert line["x"] == [20, 40, 60, 80] and line["x"][line["best"]] == 60, "0.8 was of another validation set"
    printed = capsys.readouterr().out
    assert "auc 0.7000 at step 60" in printed and "the dataset grew after step 40" in printed
    assert "data/new_rows" not in [panel["name"] for panel in embedded(tmp_path / "p.html")["panels"]]
    command(monkeypatch, write(tmp_path / "soon", [*LINES[:6], grew], config()), "--out", tmp_path / "q")
    (line,) = panel(tmp_path / "q.html", "valid/auc")["lines"]
    assert line["best"] is None and "none yet" in capsys.readouterr().out


def test_an_entropy_stands_beside_that_of_uniform_weights(tmp_path, monkeypatch):
    name = "train/content_attention_entropy"
    lines = [{"step": k, name: 3.0 / k, f"{name}_uniform": 3.5} for k in (1, 2, 3)]
    command(monkeypatch, write(tmp_path / "run", lines), "--out", tmp_path / "p")
    assert [panel["name"] for panel in embedded(tmp_path / "p.html")["panels"]] == [name]
    entropy, uniform = panel(tmp_path / "p.html", name)["lines"]
    assert entropy["y"] == [3.0, 1.5, 1.0] and "beside" not in entropy
    assert uniform["y"] == [3.5] * 3 and uniform["beside"] == "uniform" and uniform["run"] == 0
    assert "content attention entropy (dotted: uniform)" in (tmp_path / "p.html").read_text()


def test_the_picture_can_be_read_and_has_both_runs_colours(run, tmp_path, monkeypatch):
    other = write(tmp_path / "other", [train_line(10), valid_line(10, 0.5)], config())
    command(monkeypatch, run, other, "--out", tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for color in panels.COLORS[:2]:  # the other has one point alone: a dot
        wanted = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
        assert (pixels == wanted).all(axis=1).sum() > 20, color
    assert (pixels == 255).all(axis=1).mean() > 0.5


def test_the_same_input_gives_the_same_files_in_the_first_runs_folder(run, monkeypatch):
    files = []
    for _ in range(2):
        command(monkeypatch, run, "--panels", "losses,auc")
        files.append([(run / name).read_bytes() for name in ("plots.png", "plots.html")])
    assert files[0] == files[1]
    assert [panel["name"] for panel in embedded(run / "plots.html")["panels"]] == [
        "train/loss",
        "train/ranking_loss",
        "valid/auc",
    ]


@pytest.mark.parametrize(
    "out,files",
    [("x", "x"), ("x.png", "x"), ("x.html", "x"), ("v1.2", "v1.2"), ("new/x", "new/x"), ("there", "there/plots")],
)
def test_where_files_are_written(tmp_path, out, files):
    (tmp_path / "there").mkdir()
    written = tmp_path / f"{files}.png", tmp_path / f"{files}.html"
    assert plot.outputs(tmp_path / out, tmp_path) == written


def test_of_a_resumed_run_the_later_lines_count(tmp_path):
    """Also where the second try was cut at other steps, as a signal does."""
    again = [train_line(step, 7.0) for step in (30, 40)]
    folder = write(
        tmp_path / "run", [*map(train_line, (10, 20)), valid_line(20, 0.6), train_line(35), train_line(40), *again]
    )
    values = plot.load(folder, "a").values
    assert values["train/loss"] == {10: 0.1, 20: 0.05, 30: 7 / 30, 40: 7 / 40}
    assert values["valid/auc"] == {20: 0.6}


def test_what_the_writer_of_training_writes_is_read(tmp_path):
    (tmp_path / "run").mkdir()
    writer = MetricWriter(tmp_path / "run", 0)
    writer.write(5, {"train/loss": 0.5, "time/examples_per_second": 3.0})
    writer.write(5, {"valid/auc": math.nan})
    writer.close()
    values = plot.load(tmp_path / "run", "a").values
    assert values["train/loss"] == {5: 0.5} and math.isnan(values["valid/auc"][5])


@pytest.mark.parametrize("half", ['{"step": 70, "train/lo', '{"step": 70', "{", "\x00\x00"])
def test_a_half_line_of_a_killed_run_is_left_out(tmp_path, half):
    folder = write(tmp_path / "run", [train_line(10), train_line(20)], end=half)
    assert list(plot.load(folder, "a").values["train/loss"]) == [10, 20]


def test_nan_leaves_a_gap_and_is_never_best(tmp_path, monkeypatch):
    scores = {10: math.nan, 20: 0.6, 30: math.nan, 40: 0.5}
    run = write(
        tmp_path / "run", [valid_line(step, score) for step, score in scores.items()] + [train_line(50)], config()
    )
    for step, loss in ((60, "1e308"), (70, "-1e308"), (80, "1" * 400)):  # of a run that went astray
        with open(run / "metrics.jsonl", "a") as file:
            file.write(f'{{"step": {step}, "train/loss": {loss}}}\n')
    command(monkeypatch, run)
    assert panel(run / "plots.html", "train/loss")["lines"][0]["y"][1:] == [None, None, None]
    assert panel(run / "plots.html", "valid/auc")["lines"][0] == {
        "run": 0, "x": [10, 20, 30, 40], "y": [None, 0.6, None, 0.5], "best": 1,
    }  # fmt: skip
    assert panels.alone([math.nan, 0.6, math.nan, 0.5, 0.4, math.nan]) == [1]


@pytest.mark.parametrize("metric,best", [("auc", 40), ("logloss", 20), ("contrast_loss", 20), ("recall@20", 40)])
def test_the_best_step_is_that_of_the_metric_that_chooses(tmp_path, metric, best):
    lines = [
        {"step": step, "valid/gauc": 0.5, f"valid/{metric}": value} for step, value in ((20, 0.6), (40, 0.7), (60, 0.7))
    ]
    assert plot.load(write(tmp_path / "run", lines, config(metric=metric)), "a").best_step == best


def test_retrieval_and_pretraining_without_run_json(tmp_path):
    for metric in ("recall@20", "contrast_loss"):
        folder = write(tmp_path / metric, [{"step": 3, "valid/n": 5, f"valid/{metric}": 0.25}])
        run = plot.load(folder, "a")
        assert run.metric == metric and run.best_step == 3
        assert plot.choose([run], ("validation",)) == [f"valid/{metric}"]


def test_a_running_mean_of_training_values_alone(run, monkeypatch):
    command(monkeypatch, run, "--smooth", 3)
    logged = [1 / k for k in range(10, 70, 10)]
    expected = [np.mean(logged[max(k - 2, 0) : k + 1]) for k in range(6)]
    np.testing.assert_allclose(panel(run / "plots.html", "train/loss")["lines"][0]["y"], expected)
    assert panel(run / "plots.html", "valid/auc")["lines"][0]["y"] == [0.6, 0.8, 0.7]
    assert "running means over 3" in (run / "plots.html").read_text()


def test_against_time_adds_up_training_and_validation(run, monkeypatch):
    """10 steps of 100 examples at 50 a second are 20 s; each validation is 30 s."""
    command(monkeypatch, run, "--against", "time")
    loss, auc = (panel(run / "plots.html", name)["lines"][0] for name in ("train/loss", "valid/auc"))
    np.testing.assert_allclose(np.array(loss["x"]) * 60, [20, 40, 90, 110, 160, 180])
    np.testing.assert_allclose(np.array(auc["x"]) * 60, [70, 140, 210])
    assert loss["steps"] == [10, 20, 30, 40, 50, 60]


def test_runs_of_one_name_are_told_apart_and_a_folder_may_have_a_sign_in_its_name(run, tmp_path, monkeypatch):
    other = write(tmp_path / "lr=0.1" / "run", LINES, config(), data_hash="other")
    command(monkeypatch, run, other, "--out", tmp_path / "p")
    assert embedded(tmp_path / "p.html")["runs"] == [str(run), str(other)]
    assert "different datasets" in (tmp_path / "p.html").read_text()


def test_names_and_values_are_escaped(tmp_path, monkeypatch):
    lines = [train_line(10) | {f"train/{HOSTILE}": 1.0}]
    first = write(tmp_path / "a", lines, config(dropout=HOSTILE))
    second = write(tmp_path / "b", lines, config())
    command(monkeypatch, f"{HOSTILE.replace('/', '')}={first}", second, "--out", tmp_path / "p")
    page = tmp_path / "p.html"
    assert embedded(page)["runs"][0] == HOSTILE.replace("/", "")
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(page.read_text())
    assert tags.count("script") == 2 and "alert" in page.read_text()


def folder_of(tmp_path, kind) -> Path:
    folder = tmp_path / kind
    if kind != "absent":
        folder.mkdir()
    if kind == "stream":
        (folder / "stream.jsonl").write_text("")
    if kind in ("begun", "undefined"):
        (folder / "metrics.jsonl").write_text('{"step": 5, "train/loss": NaN}\n' if kind == "undefined" else "")
    return folder


@pytest.mark.parametrize(
    "kind,message",
    [
        ("absent", r"absent: no such folder"),
        ("empty", r"metrics\.jsonl: file missing; is .*empty the --workdir of a train\.py run\?"),
        ("stream", r"a stream; draw it with `em3 curves .*stream --out curves\.png`"),
        ("begun", r"no step is logged yet"),
        ("undefined", r"all that is logged is NaN"),
    ],
)
def test_a_folder_that_cannot_be_drawn(tmp_path, monkeypatch, kind, message):
    assert re.search(message, user_error(command, monkeypatch, folder_of(tmp_path, kind)))


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--smooth", "0"], "--smooth 0: give 1 or more"),
        (["--panels", "los"], "--panels los: .*did you mean 'loss'"),
        (["--panels", "train/los"], "did you mean 'train/loss'"),
        (["--panels", "model"], "logged nothing of it"),
        (["--out", "/proc/x/plots"], "/proc/x/plots.png: cannot be written"),
    ],
)
def test_mistakes_are_one_line(run, monkeypatch, arguments, message):
    assert re.search(message, user_error(command, monkeypatch, run, *arguments))


def test_more_mistakes(run, tmp_path, monkeypatch):
    assert "given twice" in user_error(command, monkeypatch, f"a={run}", f"a={run}")
    bare = write(tmp_path / "bare", LINES)
    assert "has no run.json; use --against steps" in user_error(command, monkeypatch, bare, "--against", "time")
    assert "em3 plot" in user_error(streams.load, str(run))


def test_the_command_ends_with_code_2_and_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "em3_jax.plot", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.fixture
def served(tmp_path):
    """Address of the folder, and the paths that were asked for."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_in_a_browser(browser, served, run, tmp_path, monkeypatch):
    """Pointing shows the values, a click hides a run, a phone needs no sideways scrolling, nothing is asked of the network."""
    other = write(
        tmp_path / "other", [train_line(step, 2.0) for step in (10, 20, 30)] + [valid_line(30, 0.9)], config(0.3)
    )
    command(monkeypatch, f"{HOSTILE}={run}", f"other={other}", "--out", tmp_path / "plots")
    address, asked = served
    view, requests, complaints = watched(browser, viewport={"width": 390, "height": 800}, color_scheme="dark")
    view.goto(f"{address}/plots.html")
    loss = view.locator('.plot svg[aria-label="train/loss"]')
    loss.scroll_into_view_if_needed()
    assert loss.locator("path").count() == 2
    assert view.evaluate("document.documentElement.scrollWidth") <= 390

    box = loss.bounding_box()
    left, right = box["x"] + 54, box["x"] + box["width"] - 12  # steps 10 to 60
    view.mouse.move(left + (right - left) * 0.21, box["y"] + 90)
    shown = view.locator("#tip").inner_text()
    assert "step 20" in shown and HOSTILE in shown and "0.050000" in shown and "0.10000" in shown
    view.mouse.move(left + (right - left) * 0.81, box["y"] + 90)
    shown = view.locator("#tip").inner_text()
    assert "step 50" in shown and "0.020000" in shown and "other" not in shown, "it was over at step 30"

    button = view.locator("#legend button", has_text="other")
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and contrast.faint(view) == {}
    assert loss.locator("path").count() == 1 and loss.locator("path").get_attribute("data-run") == "0"
    button.click()
    assert loss.locator("path").count() == 2
    assert view.locator('svg[aria-label="valid/auc"] circle.best').count() == 2

    ground = "getComputedStyle(document.body).backgroundColor"
    before = view.evaluate(ground)
    view.locator("#theme").click()
    assert view.evaluate(ground) != before and contrast.faint(view) == {}
    further = view.locator("summary", has_text="Further values")
    further.click()
    view.locator('svg[aria-label="valid/n"]').wait_for()
    assert not complaints
    assert {url.split("?")[0] for url in requests if not url.startswith("data:")} == {f"{address}/plots.html"}
    assert asked == ["/plots.html"]
