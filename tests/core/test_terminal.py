"""terminal: tables of 80 columns that lose nothing, colours on terminals alone, --quiet and --json-lines of every command."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from em3_jax.__main__ import call
from em3_jax.core import terminal
from em3_jax.core.terminal import WIDTH, table
from tests.conftest import ROOT

pytestmark = pytest.mark.quickly_compiled

ESCAPE = "\x1b"
NAMES = ("all", "cold items", "items without image", "a_run/with-a-very_long_name/of-five_words-and-more=1")


def letters(text: str) -> str:
    """What a table says, wherever its lines are broken."""
    return "".join(sorted(re.sub(r"\s", "", text)))


@pytest.mark.parametrize("columns", [1, 6, 7, 9, 14])
@pytest.mark.parametrize("names", [1, 2])
def test_tables_are_at_most_80_wide_and_lose_nothing(columns, names):
    header = [*("slice", "model")[:names], *(f"click_rate_{k}" for k in range(columns))]
    rows = [
        [*(name, "id_only" * (k + 1))[:names], *[f"0.{k}{n:03}" for n in range(columns)]]
        for k, name in enumerate(NAMES)
    ]
    made = table(header, rows, names)
    assert max(map(len, made.splitlines())) <= WIDTH
    parts = made.count("\n\n") + 1
    assert all(made.count(cell) == 1 for row in rows for cell in row[names:]), "a number is never broken"
    said = "".join([*header[:names], *(name for row in rows for name in row[:names])]) * parts
    numbers = "".join([*header[names:], *(cell for row in rows for cell in row[names:])])
    assert letters(made) == letters(said + numbers)


def test_a_table_that_fits_is_as_wide_as_its_cells_and_joined_columns_stay_together():
    assert table(["run", "auc"], [["em3", "0.7860"]]) == "run     auc\nem3  0.7860"
    assert table(["run", "auc"], [["x" * 10, "1"], "all, n 4"]).splitlines()[-1] == "all, n 4"
    header = ["input", *(cell for k in range(4) for cell in (f"metric {k}", "95 %"))]
    made = table(header, [["age", *["+0.1000", "+0.0900 to +0.1100"] * 4]], joined=[2, 4, 6, 8])
    parts = made.split("\n\n")
    assert len(parts) > 1 and all(part.count("metric") == part.count("95 %") > 0 for part in parts)


def test_a_page_in_markdown_is_shown_in_columns():
    page = (
        "# Title\n\n" + "word " * 40 + "\n\n| model | auc |\n|---|---:|\n| em3 | 0.7860 |\n\n```\n" + "x" * 90 + "\n```"
    )
    shown = terminal.markdown(page).splitlines()
    assert "model     auc" in shown and "em3    0.7860" in shown and "x" * 90 in shown, "a command stays whole"
    assert all(len(line) <= WIDTH for line in shown if "x" not in line)


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.styled("best", "green", Terminal()) == "\x1b[32mbest\x1b[0m"
    assert (
        terminal.styled("best", "green", sys.__stdout__ if not sys.__stdout__.isatty() else open(os.devnull)) == "best"
    )
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.styled("best", "green", Terminal()) == "best"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.styled("best", "green", Terminal()) == "best"


def test_an_error_is_red_on_a_terminal_and_plain_in_a_pipe():
    command = [sys.executable, "-m", "em3_jax", "compare", "nowhere"]
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"}
    own, end = pty.openpty()
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=end)
    os.close(end)
    shown = os.read(own, 1 << 16).decode()
    os.close(own)
    assert shown.startswith("\x1b[31merror:\x1b[0m nowhere: no such folder")
    piped = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert piped.returncode == 2 and piped.stderr.startswith("error: nowhere") and ESCAPE not in piped.stderr


def said(capsys, *arguments: str) -> tuple[str, str]:
    """What a command prints: (stdout, stderr)."""
    with pytest.raises(SystemExit) as left:
        call(arguments[0], list(arguments[1:]))
    out, err = capsys.readouterr()
    assert left.value.code == 0, err
    return out, err


def records(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", sys.argv)  # which `call` sets
    return lambda *arguments: said(capsys, *arguments)


def test_a_command_in_text_quiet_and_as_records(command, tmp_path):
    made = ("prepare", "synthetic", f"--out={tmp_path / 'data'}", "--interactions=2000", "--overwrite")
    out, err = command(*made)
    assert ESCAPE not in out + err and max(
        len(line) for line in out.splitlines() if "next: " not in line
    ) <= WIDTH + len(str(tmp_path))
    *_, last = out.splitlines()
    assert last.startswith("next: ") and f"--config.data.root={tmp_path / 'data'}" in last
    assert command(*made, "--quiet") == (out.removesuffix(last + "\n"), "")
    (record,) = records(command(*made, "--json-lines")[0])
    assert record["event"] == "result" and record["counts"]["interactions"] == 2000
    assert f"next: {record['next']}" == last
    assert command(*made)[0] == out, "the next command speaks as before"


def test_a_run_says_what_matters_and_its_records_parse(command, planted, tmp_path):
    options = {"data.root": planted.root, "data.batch_size": 100, "train.epochs": 1, "train.eval_every": 9}
    options |= {"data.history_length": 8, "data.features": ""}
    run = ["train", "--config=configs/em3_synthetic.py:id_only", *(f"--config.{k}={v}" for k, v in options.items())]
    out, err = command(*run, f"--workdir={tmp_path / 'text'}")
    lines = out.splitlines()
    assert ESCAPE not in out + err
    assert any(line.strip().startswith("input wait: share of the time") for line in lines)
    where = next(k for k, line in enumerate(lines) if line.startswith("end at step"))
    assert [line.split()[0] for line in lines[where + 1 :]] == ["best", "examples/s", "time", "next:"]
    assert lines[-1] == f"next: em3 eval --workdir={tmp_path / 'text'} --split=test"
    quiet, _ = command(*run, f"--workdir={tmp_path / 'quiet'}", "--quiet")
    assert [line.split()[0] for line in quiet.splitlines()] == ["end", "best", "examples/s", "time"]
    found = records(command(*run, f"--workdir={tmp_path / 'records'}", "--json-lines")[0])
    evaluations = [one for one in found if one["event"] == "evaluation"]
    assert len(evaluations) > 1 and found[-1]["event"] == "result"
    best = next(one for one in evaluations if one["step"] == found[-1]["best_step"])
    assert found[-1]["best_value"] == best["auc"] and best["is_best"] and found[-1]["examples_per_second"] > 0
    assert f"best auc    {best['auc']:.4f} on validation" in out, "the same run"


def test_every_command_has_both_options(capsys):
    sources = {
        path: path.read_text("utf-8") for name in ("em3_jax", "reproduce") for path in (ROOT / name).rglob("*.py")
    }
    assert [path for path, text in sources.items() if "ArgumentParser(" in text] == [], "all are cli.Parser"
    for name in ("train", "prepare", "shop"):
        out, _ = said(capsys, name, "--help")
        assert "--quiet" in out and "--json-lines" in out


def test_words_that_a_stranger_does_not_know_are_explained_once(capsys):
    with terminal.shown():
        terminal.explain("input wait", "best")
        terminal.explain("input wait")
    out = capsys.readouterr().out
    assert out.count("input wait: ") == 1 and "best: " in out
    assert all(len(line) <= WIDTH for line in out.splitlines())
