"""Folders that are links or mount points are written like others: what they hold is replaced, and they stay what they are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from em3_jax.core import publish
from em3_jax.data.format import hash_data, open_dataset
from em3_jax.data.readers.table import table
from tests.conftest import ROOT, user_error


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = "".join(f"u{k % 7},i{k % 11},{k},{k % 2}\n" for k in range(100))
    path.write_text("user,item,time,label\n" + rows)
    return path


def check_whole(folder: Path, rows: int = 100) -> None:
    """A dataset, and nothing else."""
    dataset = open_dataset(folder)
    assert dataset.meta["counts"]["interactions"] == rows and hash_data(folder) == dataset.meta["data_hash"]
    assert not [name for name in os.listdir(folder) if name.startswith(".") or name == "lock"]


def shorter(log: Path, folder: Path) -> Path:
    path = folder / "shorter.csv"
    path.write_text("".join(log.read_text().splitlines(keepends=True)[:81]))
    return path


def test_a_link_is_written_through_and_stays(log, tmp_path):
    (tmp_path / "disk").mkdir()
    for name, target in (("empty", tmp_path / "disk" / "a"), ("dangling", tmp_path / "disk" / "b" / "c")):
        link = tmp_path / name
        link.symlink_to(target)
        if name == "empty":
            target.mkdir()
        table(link, interactions=log)
        assert link.is_symlink() and "exists already" in user_error(lambda link=link: table(link, interactions=log))
        check_whole(target)
        table(link, interactions=shorter(log, tmp_path), overwrite=True)
        assert link.is_symlink() and os.readlink(link) == str(target)
        check_whole(target, rows=80)
    assert sorted(os.listdir(tmp_path / "disk")) == ["a", "b"] and os.listdir(tmp_path / "disk" / "b") == ["c"]


@pytest.fixture
def mounted(tmp_path, monkeypatch) -> Path:
    """A folder that is taken for a mount point: renames of it fail as they do there."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "lost+found").mkdir()
    rename = os.replace

    def refuses(source, target):
        if folder in (Path(source), Path(target)):
            raise OSError(16, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "replace", refuses)
    monkeypatch.setattr(publish, "is_mount", lambda path: path == folder)
    return folder


def test_a_mount_point_is_filled_and_refilled(log, mounted, tmp_path):
    beside = os.listdir(tmp_path)
    table(mounted, interactions=log)
    check_whole(mounted)
    assert "exists already" in user_error(lambda: table(mounted, interactions=log))
    table(mounted, interactions=shorter(log, tmp_path), overwrite=True)
    check_whole(mounted, rows=80)
    assert sorted(os.listdir(tmp_path)) == sorted([*beside, "shorter.csv"]) and (mounted / "lost+found").is_dir()


def test_killed_while_it_is_refilled_it_is_no_dataset_and_is_made_again(log, mounted, monkeypatch):
    table(mounted, interactions=log)
    replace, left = os.replace, []

    def killed(source, target):
        left.append(target)
        if len(left) == 9:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)  # nor does it clean up
    with pytest.raises(KeyboardInterrupt):
        table(mounted, interactions=log, overwrite=True)
    monkeypatch.undo()
    monkeypatch.setattr(publish, "is_mount", lambda path: path == mounted)
    assert "dataset.json: file missing" in user_error(lambda: open_dataset(mounted))
    table(mounted, interactions=log, overwrite=True)
    check_whole(mounted)


def test_what_is_no_dataset_is_left_alone_at_a_mount_point_too(log, mounted):
    (mounted / "thesis.txt").write_text("all of it")
    message = user_error(lambda: table(mounted, interactions=log, overwrite=True))
    assert "is no dataset, so --overwrite leaves it alone" in message


IN_A_NAMESPACE = """
set -e
mount -t tmpfs none "$1/tmpfs"
mount --bind "$1/there" "$1/bound"
for out in "$1/tmpfs" "$1/bound"; do
  "$2" -m em3_jax.prepare table --interactions "$3" --out "$out"
  "$2" -m em3_jax.prepare table --interactions "$3" --out "$out" --overwrite
  "$2" -m em3_jax.prepare check --data "$out"
  ls -A "$out"
done
"""


def test_real_mounts_of_another_and_of_the_same_file_system(log, tmp_path):
    for name in ("tmpfs", "there", "bound"):
        (tmp_path / name).mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    command = ["unshare", "-m", "sh", "-c", IN_A_NAMESPACE, "sh", str(tmp_path), sys.executable, str(log)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if "mount:" in done.stderr:
        pytest.skip(f"mounting is not permitted here: {done.stderr[:100]}")
    assert done.returncode == 0, done.stderr
    check_whole(tmp_path / "there")
