"""A store: versions of what a run has learnt, side by side, for services to read.

    <store>/current             the name of the version that is served
    <store>/versions/0000007/   manifest.json: where it comes from, sizes, and bytes and sha256 of each file
                                <name>.npy: arrays, memory-mapped
                                scorer-<size>.bin: the compiled ranking model (`jax.export`)
                                of a delta: manifest.json and changes.npz, see `deltas`
    <store>/versions/whole-0000007/  a version that is a delta, whole as well
    <store>/.next/              a version in the making, with plan.json (of what) and progress.json (how far)
    <store>/.whole/             one that is made whole
    <store>/lock                held by the one process that writes

A version appears by renaming a complete folder, and becomes the one served by renaming a file over `current`: a reader sees the
old or the new version, never a mixture. What a reader has mapped stays readable when its version is pruned.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import npy, paths, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.serving import deltas
from em3_jax.serving.version import FORMAT, MANIFEST
from em3_jax.serving.version import Version as Version

WHOLE = "whole-"
_TRIES = 5  # to open one version, of which a file is not there


@contextmanager
def writing(store: str | Path) -> Iterator[Path]:
    """Holds the store for writing, made if it is not there; gives its folder `.next`.

    Raises:
      UserError: another process is writing; the folder cannot be made; the disk is full. The version served stays.
    """
    store = paths.local(store)
    try:
        store.mkdir(parents=True, exist_ok=True)
        (store / "versions").mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"{store}: cannot be written ({error.strerror}); choose another folder for the store") from None
    with Lock(store, hint="wait for the export or the stream that writes it, or choose another folder"):
        try:
            yield store / ".next"
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # None: numpy, of a short write
            hint = "free space" if full else "see that it can be written"
            served = current_name(store)
            kept = f"version {served} is served on" if served else "no version was there before"
            raise UserError(
                f"{store}: the new version could not be written ({error.strerror or error}); {kept}; {hint} and run again"
            ) from error


def array_file(folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """A writable array of a version in the making, memory-mapped, its space on the disk reserved; as it is if it is there."""
    path = folder / f"{name}.npy"
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
        with open(temporary, "r+b") as file:  # or a full disk would kill the process at some later write
            os.posix_fallocate(file.fileno(), 0, max(temporary.stat().st_size, 1))
        os.replace(temporary, path)
    return npy.load(path, "r+")


def write_json(path: Path, value: Any) -> None:
    """Writes `value`; a reader sees the old or the new file."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(strict_json.dumps(value, indent=1, ensure_ascii=False))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def publish(store: str | Path, manifest: dict[str, Any], keep: int) -> str:
    """Makes `.next` the version served and removes old ones; the name of the new one.

    Args:
      manifest: what to note beside the files.
      keep: how many whole versions stay, at least 1, and with them the deltas after the oldest of them.
    """
    store = Path(store)
    folder = store / ".next"
    for name in ("plan.json", "progress.json"):
        (folder / name).unlink(missing_ok=True)
    names = version_names(store)
    name = f"{int(names[-1]) + 1 if names else 1:07d}"
    _finish(folder, {"format": FORMAT, "version": name, **manifest}, store / "versions" / name)
    _serve(store, name)
    prune(store, keep)
    return name


def _serve(store: Path, name: str) -> None:
    """Makes a version that is in its place the one served."""
    temporary = store / "current.tmp"
    temporary.write_text(name, encoding="utf-8")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, store / "current")
    _sync_folder(store)


def settle(store: Path) -> None:
    """Makes the newest version the one served: a writer was killed when it was in its place, and not yet served."""
    names = version_names(store)
    if names and current_name(store) != names[-1]:
        _serve(store, names[-1])


def _finish(folder: Path, manifest: dict[str, Any], place: Path) -> None:
    """Makes a folder with all its files what a manifest says, on the disk, and moves it to its place."""
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    write_json(folder / MANIFEST, {**manifest, "files": files})
    os.replace(folder, place)
    _sync_folder(place.parent)


def compact(store: str | Path, name: str, keep: int) -> None:
    """Makes a version that is a delta whole, beside it, so that the chain before it may go; see `publish`."""
    store = Path(store)
    version, folder, place = open_version(store, name), store / ".whole", store / "versions" / f"{WHOLE}{name}"
    shutil.rmtree(folder, ignore_errors=True)  # of a writer that was killed
    folder.mkdir()
    deltas.write_whole(folder, version)
    _finish(folder, {key: one for key, one in version.manifest.items() if key != "files"}, place)
    prune(store, keep)


def whole_folder(store: Path, name: str) -> Path | None:
    """The folder that holds a version whole; None where there is none."""
    own, beside = store / "versions" / name, store / "versions" / f"{WHOLE}{name}"
    if beside.is_dir():
        return beside
    return own if own.is_dir() and not deltas.is_delta(own) else None


def prune(store: Path, keep: int) -> None:
    """Removes all versions before the `keep` newest whole ones, but for the one served."""
    versions, names, served = store / "versions", version_names(store), current_name(store)
    whole = [name for name in names if whole_folder(store, name)]
    old = [name for name in names if whole[keep - 1 :] and name < whole[-keep] and name != served]
    _prune(versions, [one for name in old for one in (f"{WHOLE}{name}", name)])


def _prune(versions: Path, names: list[str]) -> None:
    """Removes versions; each disappears at once, so that no reader takes half of one for damaged."""
    for name in names:
        with suppress(OSError):
            os.replace(versions / name, versions / f".pruned-{name}")
    for folder in versions.glob(".pruned-*"):  # of a writer that was killed, too
        shutil.rmtree(folder, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def version_names(store: str | Path) -> list[str]:
    """Names of the versions in a store, oldest first."""
    return sorted(path.name for path in (Path(store) / "versions").glob("[0-9]*") if path.is_dir())


def open_version(store: Path, name: str, verify: bool = False, have: Version | None = None) -> Version:
    """A version, whole or made of the chain of deltas from the nearest whole one.

    Args:
      verify: see `Version`.
      have: a version that is at hand; the chain may begin there.

    Raises:
      UserError: a delta of the chain does not fit, or is damaged. FileNotFoundError: something is not there (any more).
    """
    chain: list[deltas.Delta] = []
    while True:
        if have is not None and have.name == name and "sums" in have.manifest:
            version = have
            break
        if folder := whole_folder(store, name):
            version = Version(folder, verify)
            break
        chain.append(deltas.Delta(store / "versions" / name))
        name = chain[-1].base
    for delta in reversed(chain):
        version = delta.applied_to(version)
    return version


def current_name(store: str | Path) -> str | None:
    """The name of the version served; None where there is none yet.

    Raises:
      UserError: the file that says it cannot be read, or names no version.
    """
    path = Path(store) / "current"
    try:
        name = path.read_bytes().strip().decode("ascii", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); see that it is a file and may be read") from None
    if name and not re.fullmatch("[0-9]+", name):
        raise UserError(
            f"{path}: names no version ({name[:40]!r}); write into it the name of a folder in {path.parent / 'versions'}"
        )
    return name or None


def open_current(store: str | Path, verify: bool = False, have: Version | None = None) -> Version:
    """The version served now; see `open_version`."""
    store, problem = paths.local(store), ""
    tried: list[str] = []
    while len(tried) < _TRIES:
        name = current_name(store)
        if name is None:
            raise UserError(f"{store}: no store, it has no file 'current'; make one with `em3 export`")
        try:
            return open_version(store, name, verify, have)
        except FileNotFoundError as error:  # pruned between the two looks
            problem = str(error.filename or error)
            tried = [*tried, name] if name in tried else [name]  # another one is another chance
    raise UserError(f"{problem}: file missing; export again")
