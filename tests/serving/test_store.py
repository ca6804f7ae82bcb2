"""The store: versions appear whole, damage is noticed, the disk may be full, and readers never see a mixture."""

import json
import threading

import numpy as np
import pytest

from em3_jax.serving import store
from tests.conftest import user_error


def put(root, number: int, keep: int = 3, size: int = 50) -> str:
    """Publishes a version whose every value is `number`."""
    with store.writing(root) as folder:
        folder.mkdir()
        for name in ("first", "second"):
            store.array_file(folder, name, (size, 4), np.float32)[:] = number
        (folder / "text.bin").write_bytes(str(number).encode())
        return store.publish(root, {"number": number}, keep)


def test_versions_side_by_side_and_pruned_by_count(tmp_path):
    names = [put(tmp_path / "s", number, keep=2) for number in range(4)]
    assert names == ["0000001", "0000002", "0000003", "0000004"]
    assert store.version_names(tmp_path / "s") == names[-2:] and store.current_name(tmp_path / "s") == names[-1]
    version = store.open_current(tmp_path / "s", verify=True)
    assert version.name == names[-1] and version.manifest["number"] == 3 and version.read_bytes("text.bin") == b"3"
    assert (version["first"] == 3).all()
    assert set(version.manifest["files"]) == {"first.npy", "second.npy", "text.bin"}
    assert list(version.starting_with("fir")) == ["st"]


def test_what_a_reader_has_mapped_outlives_its_version(tmp_path):
    put(tmp_path, 1)
    version = store.open_current(tmp_path)
    for number in range(2, 6):
        put(tmp_path, number, keep=1)
    assert not version.folder.exists() and (version["first"] == 1).all()


@pytest.mark.parametrize("verify", [False, True])
def test_readers_under_50_publishes_see_no_error_and_no_mixture(tmp_path, verify):
    put(tmp_path, 0)
    stop, problems, seen = threading.Event(), [], set()

    def read():
        while not stop.is_set():
            try:
                version = store.open_current(tmp_path, verify)
                values = {float(version[name][k, 0]) for name in ("first", "second") for k in (0, -1)}
                values |= {float(version.manifest["number"]), float(version.read_bytes("text.bin"))}
                if len(values) != 1:
                    problems.append(values)
                seen.add(version.name)
            except Exception as error:
                problems.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 51):
        put(tmp_path, number, keep=2)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems and len(seen) > 3, problems[:2]


def damage(version, how):
    path = version.folder / "first.npy"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif how == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    elif how == "missing":
        path.unlink()
    elif how == "manifest":
        (version.folder / store.MANIFEST).write_text("{")
    elif how in ("[]", '{"format": 1}'):
        (version.folder / store.MANIFEST).write_text(how)
    elif how == "format":
        manifest = json.loads((version.folder / store.MANIFEST).read_text())
        (version.folder / store.MANIFEST).write_text(json.dumps(manifest | {"format": 99}))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "first.npy: 920 bytes, its manifest says 928; the file is damaged"),
        ("changed", "first.npy: its content is not what its manifest says"),
        ("missing", "first.npy: file missing"),
        ("manifest", "manifest.json: not valid JSON"),
        ("[]", "manifest.json: not a manifest; export again"),
        ('{"format": 1}', "manifest.json: lacks 'version'; export again"),
        ("format", "store format 99, this program reads 1; export again with it"),
    ],
)
def test_damage_is_noticed(tmp_path, how, words):
    put(tmp_path, 1)
    damage(store.open_current(tmp_path), how)
    assert words in user_error(lambda: store.open_current(tmp_path, verify=True))


def test_no_store(tmp_path):
    assert "no store, it has no file 'current'" in user_error(store.open_current, tmp_path / "none")
    (tmp_path / "current").write_text("0000007")
    assert "0000007" in user_error(store.open_current, tmp_path)
    for damaged in (b"../../etc", b"\xff\xfe", "\u00b2".encode()):
        (tmp_path / "current").write_bytes(damaged)
        assert "current: names no version" in user_error(store.open_current, tmp_path)
    (tmp_path / "current").unlink()
    (tmp_path / "current").mkdir()
    assert "current: cannot be read (Is a directory)" in user_error(store.open_current, tmp_path)


def test_a_full_disk_leaves_the_version_that_is_served(tmp_path, monkeypatch):
    put(tmp_path, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store.os, "posix_fallocate", full)
        message = user_error(put, tmp_path, 2)
    assert "No space left on device); version 0000001 is served on; free space and run again" in message
    assert (store.open_current(tmp_path, verify=True)["first"] == 1).all()


def test_two_writers(tmp_path):
    with store.writing(tmp_path):
        assert "has been writing it since" in user_error(put, tmp_path, 1)
