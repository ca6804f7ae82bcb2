"""A store: versions of what a run has learnt, side by side, for services to read.

    <store>/current             the name of the version that is served
    <store>/versions/0000007/   manifest.json: where it comes from, sizes, and bytes and sha256 of each file
                                <name>.npy: arrays, memory-mapped
                                scorer-<size>.bin: the compiled ranking model (`jax.export`)
    <store>/.next/              the same in the making, with plan.json (of what) and progress.json (how far)
    <store>/lock                held by the one process that writes

A version appears by renaming a complete folder, and becomes the one served by renaming a file over `current`: a reader sees the
old or the new version, never a mixture. What a reader has mapped stays readable when its version is pruned.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import paths, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock

FORMAT = 1
MANIFEST = "manifest.json"
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
        raise UserError(f"{store}: cannot be written ({error.strerror}); choose another --out") from None
    with Lock(store, hint="wait for that export, or choose another --out"):
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
    return np.lib.format.open_memmap(path, mode="r+")


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
      keep: how many versions stay, at least 1.
    """
    store = Path(store)
    folder = store / ".next"
    for name in ("plan.json", "progress.json"):
        (folder / name).unlink(missing_ok=True)
    files = {}
    for path in sorted(folder.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    names = version_names(store)
    name = f"{int(names[-1]) + 1 if names else 1:07d}"
    write_json(folder / MANIFEST, {"format": FORMAT, "version": name, **manifest, "files": files})
    os.replace(folder, store / "versions" / name)
    _sync_folder(store / "versions")
    temporary = store / "current.tmp"
    temporary.write_text(name, encoding="utf-8")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, store / "current")
    _sync_folder(store)
    _prune(store / "versions", [old for old in version_names(store)[:-keep] if old != name])
    return name


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


class Version:
    """One version of a store, its arrays memory-mapped.

    Args:
      folder: of the version.
      verify: read all files and compare their sha256, not their sizes alone.

    Attributes:
      manifest: see `publish`.

    Raises:
      UserError: a file is missing, truncated or changed, or the store was made by another version of the program.
    """

    def __init__(self, folder: Path, verify: bool = False):
        self.folder = folder
        path = folder / MANIFEST
        try:
            self.manifest = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); export again") from None
        if not isinstance(self.manifest, dict):
            raise UserError(f"{path}: not a manifest; export again")
        if self.manifest.get("format") != FORMAT:
            raise UserError(
                f"{path}: store format {self.manifest.get('format')}, this program reads {FORMAT}; export again with it"
            )
        if missing := [key for key in ("version", "files") if key not in self.manifest]:
            raise UserError(f"{path}: lacks '{missing[0]}'; export again")
        for name, facts in self.manifest["files"].items():
            self._check(folder / name, facts, verify)
        paths = [folder / name for name in self.manifest["files"]]
        self._arrays = {path.stem: self._map(path) for path in paths if path.suffix == ".npy"}
        self._bytes = {path.name: path.read_bytes() for path in paths if path.suffix != ".npy"}

    @property
    def name(self) -> str:
        return self.manifest["version"]

    def _check(self, path: Path, facts: dict[str, Any], verify: bool) -> None:
        if not path.is_file():
            if not self.folder.is_dir():
                raise FileNotFoundError(path)  # the whole version has been pruned: `open_current` looks again
            raise UserError(f"{path}: file missing; export again")
        size = path.stat().st_size
        if size != facts["bytes"]:
            raise UserError(
                f"{path}: {size:,} bytes, its manifest says {facts['bytes']:,}; the file is damaged, export again"
            )
        if verify:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                    raise UserError(
                        f"{path}: its content is not what its manifest says; the file is damaged, export again"
                    )

    def _map(self, path: Path) -> np.ndarray:
        try:
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except ValueError as error:
            raise UserError(f"{path}: not a readable .npy file ({error}); export again") from None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def starting_with(self, prefix: str) -> dict[str, np.ndarray]:
        """{"content": array} of the arrays "looked_up.content", ... for the prefix "looked_up."."""
        return {name.removeprefix(prefix): array for name, array in self._arrays.items() if name.startswith(prefix)}

    def read_bytes(self, name: str) -> bytes:
        """The content of a file that is no array."""
        return self._bytes[name]


def open_current(store: str | Path, verify: bool = False) -> Version:
    """The version served now; see `Version`."""
    store, problem = paths.local(store), ""
    tried: list[str] = []
    while len(tried) < _TRIES:
        name = current_name(store)
        if name is None:
            raise UserError(f"{store}: no store, it has no file 'current'; make one with `em3 export`")
        try:
            return Version(store / "versions" / name, verify)
        except FileNotFoundError as error:  # pruned between the two looks
            problem = str(error.filename or error)
            tried = [*tried, name] if name in tried else [name]  # another one is another chance
    raise UserError(f"{problem}: file missing; export again")
