"""How commands end, as a shell sees it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from em3_jax.__main__ import call

PRELUDE = "from em3_jax import cli\nfrom em3_jax.core.errors import UserError\n"


def start(command: str) -> subprocess.Popen:
    program = f"{PRELUDE}def command():\n    {command}\ncli.run(command)"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize(
    "command,code,message",
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('no such file:\\n  a.csv')", 2, "error: no such file: a.csv\n"),
        ("raise KeyboardInterrupt", 130, "interrupted\n"),
    ],
)
def test_exit_codes_and_messages(command, code, message):
    process = start(command)
    assert process.communicate()[1] == message and process.returncode == code


def test_a_fault_of_ours_shows_where_it_is():
    process = start("raise ValueError('a bug')")
    assert "Traceback" in process.communicate()[1] and process.returncode == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    process = start("[print('x' * 999) for _ in range(1000)]")
    process.stdout.readline()
    process.stdout.close()  # as `| head -1` does
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_reproduce_of_an_installed_package_says_where_to_call_it(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "em3_jax").symlink_to(Path(__file__).parent.parent / "em3_jax")  # without train.py beside it
    command = [sys.executable, "-S", "-m", "em3_jax.reproduce", "--help"]
    found = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
    )
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: ") and "call it in a checkout" in found.stderr


def test_reproduce_is_found_beside_the_package_from_anywhere(tmp_path):
    program = "import sys; sys.argv[1:] = ['reproduce', '--help']; from em3_jax.__main__ import main; main()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "site").mkdir()
    for name in ("em3_jax", "reproduce"):
        (tmp_path / "site" / name).symlink_to(Path(__file__).parent.parent / name)
    command = [sys.executable, "-P", "-c", program]
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0 and found.stdout.startswith("usage: em3 reproduce"), found.stderr


@pytest.mark.parametrize(("module", "command"), [("train", "em3 train"), ("evaluate", "em3 eval")])
def test_a_module_that_is_no_command_names_the_command(module, command):
    called = [sys.executable, "-m", f"em3_jax.{module}", "--workdir=x"]
    found = subprocess.run(called, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith(f"error: em3_jax.{module}: call it as `{command}`")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("eval --workdir=x --split=tset", "--split: 'tset': did you mean 'test'?"),
        ("eval --workdir=x --split=7", "--split: '7': known: test, train, valid; see `em3 eval --help`"),
        ("eval --workdir=x --spilt=test", "--spilt=test: no such option; did you mean '--split'?"),
        ("eval --workdir=x --step=last", "--step: invalid int value: 'last'; see `em3 eval --help`"),
        ("eval", "the following arguments are required: --workdir; see `em3 eval --help`"),
        ("compare x --splt=valid", "--splt=valid: no such option; did you mean '--split'?"),
        ("export --workdir=x --out=y --dtype=float23", "--dtype: 'float23': did you mean 'float32'?"),
        ("plot x --against=tiem", "--against: 'tiem': did you mean 'time'?"),
        ("prepare tabel --out=x", "reader: 'tabel': did you mean 'table'?"),
        ("prepare table --interactoins=x", "--interactoins=x: no such option; did you mean '--interactions'?"),
        ("extract --modalty", "--modalty: no such option; did you mean '--modality'?"),
        ("merge --workdir=x", "the following arguments are required: --out; see `em3 merge --help`"),
        ("train --workdir", "--workdir: expected one argument; see `em3 train --help`"),
        (
            "analyze more",
            "the following arguments are required: --workdir, --baseline, --out; see `em3 analyze --help`",
        ),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_nearest(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", sys.argv)  # which `call` sets
    command, *others = arguments.split()
    with pytest.raises(SystemExit) as left:
        call(command, others)
    assert left.value.code == 2 and capsys.readouterr().err == f"error: {said}\n"
