"""core.compilation_cache: which folder, what is put right in it, how large it grows, and what turns it off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from em3_jax.core import compilation_cache

FOLDER, ENABLED, SIZE = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_MAX_SIZE"
PROGRAM = """
import sys
from em3_jax.core import compilation_cache

compilation_cache.keep()
import jax

compilation_cache.use(sys.argv[1])
for k in range(6):
    step = jax.jit(lambda x: (jax.numpy.sort(x) + k, k * x.sum()), donate_argnums=0)
    x = jax.numpy.arange(10.0)
    print([float(value) for value in jax.tree.leaves(jax.tree.map(lambda y: y.sum(), step(x)))], x.is_deleted())
"""


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A user's cache folder, and an environment that says nothing of JAX's cache."""
    for name in (FOLDER, ENABLED, SIZE):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def compiled(choice: str = "", **environment: str) -> list[str]:
    """What a process prints that compiles six programs."""
    command = [sys.executable, "-c", PROGRAM, choice]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_the_folder_is_the_users_cache(home, monkeypatch):
    compilation_cache.keep()
    assert Path(os.environ[FOLDER]) == home / "em3_jax" / "compiled" / compilation_cache.machine()
    assert Path(os.environ[FOLDER]).stat().st_mode & 0o777 == 0o700 and int(os.environ[SIZE]) > 0
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert compilation_cache.default_folder() == Path("/home/somebody/.cache/em3_jax/compiled")


def test_what_the_user_has_set_stays(home, monkeypatch):
    monkeypatch.setenv(ENABLED, "false")
    compilation_cache.keep()
    assert FOLDER not in os.environ
    monkeypatch.setenv(FOLDER, str(home / "own"))
    monkeypatch.delenv(ENABLED)
    compilation_cache.keep()
    assert os.environ[FOLDER] == str(home / "own") and SIZE not in os.environ and not list(home.iterdir())


def test_each_number_of_cores_has_its_folder(home):
    """A CPU's program is cut by the cores of the process that compiles it, which JAX's key does not hold."""
    compilation_cache.keep()
    mine, cores = os.environ[FOLDER], os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        compilation_cache.keep()  # as a worker does, which has the environment of the process that started it
    finally:
        os.sched_setaffinity(0, cores)
    assert Path(os.environ[FOLDER]).name.startswith("1-core-")
    assert (os.environ[FOLDER] == mine) == (len(cores) == 1)


def test_a_folder_that_cannot_be_written_is_one_line(home, monkeypatch, capsys):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    compilation_cache.keep()
    said = capsys.readouterr().err
    assert said.startswith(f"warning: compiled programs are not kept: {home / 'file'}") and said.count("\n") == 1
    assert FOLDER not in os.environ


def test_what_a_killed_process_left_half_written_goes(home):
    compilation_cache.keep()
    folder = Path(os.environ[FOLDER])
    for name in ("whole-cache", "whole-atime", "half-cache", "gone-atime"):
        (folder / name).write_bytes(bytes(8))
    compilation_cache.keep()
    assert {path.name for path in folder.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}


def test_programs_are_read_again_and_bounded(home):
    fresh = compiled("off")
    assert not list(home.rglob("*-cache"))
    assert compiled() == fresh  # compiles
    files = {path: path.read_bytes() for path in home.rglob("*-cache")}
    assert len(files) >= 6
    assert compiled() == fresh  # reads, and buffers are donated to what it has read
    assert {path: path.read_bytes() for path in home.rglob("*-cache")} == files
    most = max(map(len, files.values())) * 3
    own = home / "own"
    assert compiled(str(own), **{SIZE: str(most)}) == fresh
    assert 0 < sum(path.stat().st_size for path in own.rglob("*-cache")) <= most
