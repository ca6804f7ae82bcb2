"""progress: a bar on a terminal, a line a minute in a log, from training and from the other long commands."""

import functools
import os
import pty
import re
import subprocess
import sys
import termios

import pytest

from em3_jax import train
from em3_jax.core import progress
from em3_jax.core.progress import Progress
from em3_jax.export import command as export
from em3_jax.export import items
from em3_jax.training import embeddings
from tests.conftest import ROOT
from tests.small_runs import small

pytestmark = pytest.mark.quickly_compiled

STEPS = 12


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so: a list of one number, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def walk(clock, seconds: float, steps: int = 240) -> None:
    bar = Progress(steps)
    for step in range(1, steps + 1):
        clock[0] += seconds
        bar.show({"loss": (1 / step, ".4f"), "examples/s": (1024.0, ",.0f")})
        bar.advance()
    bar.close()


def test_a_log_has_a_line_a_minute_with_step_loss_speed_and_what_is_left(clock, capsys):
    walk(clock, seconds=1.0)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "step 60 of 240  loss 0.0083  examples/s 1,024  03:00 left".replace("0.0083", f"{1 / 60:.4f}"),
        f"step 120 of 240  loss {1 / 120:.4f}  examples/s 1,024  02:00 left",
        f"step 180 of 240  loss {1 / 180:.4f}  examples/s 1,024  01:00 left",
        f"step 240 of 240  loss {1 / 240:.4f}  examples/s 1,024  00:00 left",
    ]


def test_what_is_said_counts_as_a_line_and_quiet_is_quiet(clock, capsys):
    bar = Progress(100, unit="item")
    for _ in range(10):
        clock[0] += 50
        bar.advance(10)
        bar.say("window")
    assert capsys.readouterr().out.splitlines() == ["window"] * 10
    clock[0] += 70
    bar.advance(0)
    assert capsys.readouterr().out == "item 100 of 100  item/s 0.2  00:00 left\n"
    bar = Progress(100, quiet=True)
    clock[0] += 1000
    bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar_and_no_lines():
    program = (
        "from em3_jax.core.progress import Progress\n"
        "bar = Progress(40, lines_every=1e-9)\n"
        "for _ in range(40): bar.show({'loss': (0.5, '.1f')}); bar.advance()\n"
        "bar.say('step 40  valid auc 0.7'); bar.close()"
    )
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=end, text=True)
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert "40/40" in shown and "loss=0.5" in shown and "left" not in run.stdout
    assert run.stdout.strip().endswith("step 40  valid auc 0.7")


def test_training_and_export_say_how_far_they_are_where_there_is_no_terminal(planted, tmp_path, capsys, monkeypatch):
    often = functools.partial(Progress, lines_every=1e-9)
    monkeypatch.setattr(train, "Progress", often)
    config = small(planted, train__eval_every=6)
    config["train"]["epochs"] *= 0.5
    train.train(config, tmp_path / "run")
    out = capsys.readouterr()
    lines = re.findall(r"^step ([\d,]+) of 12(.*)$", out.out, re.MULTILINE)
    assert [int(step) for step, _ in lines] == list(range(1, STEPS + 1)) and out.err == ""
    shape = r"  loss \d\.\d{4}  examples/s [\d,]+  input wait \d+%(  best auc \d\.\d{4})?  [\d:]+ left"
    shown = [re.fullmatch(shape, values) for _, values in lines[6:]]
    assert all(shown) and all(line[1] for line in shown), "after the first evaluation the best so far"
    monkeypatch.setattr(items, "Progress", often)
    monkeypatch.setattr(embeddings, "Progress", often)
    export.export(tmp_path / "run", tmp_path / "store", export.Settings(batch_size=50, platforms=("cpu",)))
    out = capsys.readouterr()
    assert re.findall(r"^item (\d+) of 150\b", out.out, re.MULTILINE) == ["50", "100", "150"] and out.err == ""
