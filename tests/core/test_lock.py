"""lock: one writer at a time, named to the second one, and nothing left of a killed one."""

import os
import signal
import subprocess
import sys
import time

import pytest

from em3_jax import evaluate as evaluation
from em3_jax.core.lock import Lock
from em3_jax.report import plot
from em3_jax.training.checkpoint import Checkpoints
from tests.conftest import ROOT, user_error
from tests.small_runs import arguments

pytestmark = pytest.mark.quickly_compiled

HOLD = """
import sys, time
from em3_jax.core.lock import Lock
with Lock(sys.argv[1], beside=sys.argv[2] == "beside"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of a folder, from the moment it returns."""
    started = []

    def start(folder, where: str = "inside") -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, str(folder), where]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def enter(*arguments, **settings) -> None:
    with Lock(*arguments, **settings):
        pass


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_the_second_process_learns_who_holds_it_and_touches_nothing(holder, tmp_path, where):
    first = holder(tmp_path / "run", where)
    before = sorted(tmp_path.rglob("*"))
    message = user_error(lambda: enter(tmp_path / "run", beside=where == "beside", hint="choose another --workdir"))
    assert message.startswith(f"{tmp_path / 'run'}: process {first.pid} on {os.uname().nodename} (")
    assert " has been writing it since 20" in message and message.endswith("; choose another --workdir")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_killed_process_leaves_no_lock(holder, tmp_path, where):
    first = holder(tmp_path / "run", where)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert list(tmp_path.rglob("*lock")), "the file stays, and means nothing"
    enter(tmp_path / "run", beside=where == "beside")
    assert not list(tmp_path.rglob("*lock"))


def test_a_folder_that_was_made_for_the_lock_goes_with_it_unless_something_is_in_it(tmp_path):
    enter(tmp_path / "a" / "b")
    enter(tmp_path / "c" / "d", beside=True)
    assert not list(tmp_path.iterdir())
    with Lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "kept"]


def test_a_lock_whose_folder_was_renamed_away_is_not_taken_from_the_next(tmp_path):
    """As a writer does that builds a folder and moves it to its place while it holds the lock in it."""
    first = Lock(tmp_path / "folder")
    with first:
        (tmp_path / "folder").rename(tmp_path / "final")
        second = Lock(tmp_path / "folder")
        second.__enter__()
    assert "has been writing it since" in user_error(lambda: enter(tmp_path / "folder"))
    second.__exit__(None, None, None)


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="no locks .Function not implemented.; see that nothing else writes it"):
        enter(tmp_path / "run")


def test_a_place_where_nothing_can_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    assert "file/run: cannot be written (Not a directory)" in user_error(lambda: enter(tmp_path / "file" / "run"))


def saved_step(directory) -> int:
    return max((int(p.name) for p in directory.glob("checkpoints/latest/*") if p.name.isdigit()), default=0)


def files(directory) -> dict:
    """What stands in a run's folder, but for what the run that holds it goes on writing."""
    return {
        path.name: path.read_bytes() for path in directory.glob("*") if path.suffix in (".json", "") and path.is_file()
    }


def test_a_second_training_on_a_folder_ends_in_one_line_and_others_may_read(planted, tmp_path):
    run = tmp_path / "run"
    endless = [*arguments(planted, run), "--config.train.epochs=1000"]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(endless, **pipes) as first:
        try:
            while not saved_step(run):
                assert first.poll() is None, first.communicate()
                time.sleep(0.05)
            before = files(run)
            second = subprocess.run(endless, **pipes, check=False)
            assert second.returncode == 2 and second.stdout == ""
            [line] = second.stderr.splitlines()
            assert line.startswith(f"error: {run}: process {first.pid} on ") and "another --workdir" in line
            assert files(run) == before
            for _ in range(3):  # while the run replaces its checkpoints, every six of its short steps
                assert evaluation.evaluate(run, "valid")["step"] > 0
                assert plot.load(run, "run").values
            assert first.poll() is None
        finally:
            first.kill()
            first.communicate()
    kept = saved_step(run)
    last = subprocess.run([*arguments(planted, run), f"--config.train.epochs={(kept + 6) / 25}"], **pipes, check=False)
    assert last.returncode == 0 and f"resuming after step {kept}" in last.stdout, last
    assert not (run / "lock").exists()


def test_a_checkpoint_that_goes_while_it_is_read_is_looked_for_again(planted, tmp_path, monkeypatch):
    """As evaluation meets it whose run finds a better step in between."""
    run = tmp_path / "run"
    subprocess.run(arguments(planted, run), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    restore, moved = Checkpoints._restore, []

    def replaced(self, kind, step, *others):
        if not moved:
            moved.append((run / "checkpoints" / kind / str(step)).rename(run / "checkpoints" / kind / "9"))
        return restore(self, kind, step, *others)

    monkeypatch.setattr(Checkpoints, "_restore", replaced)
    assert evaluation.evaluate(run, "valid")["slices"]["all"]["n"] and moved
