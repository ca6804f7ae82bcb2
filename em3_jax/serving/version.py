"""One version of a store, opened: its arrays, its other files, its manifest, and the checksum that answers carry.

Letters: n rows of an array.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import npy
from em3_jax.core.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
PROGRAM = "scorer"  # how the names of compiled programs begin
_LANE = np.uint64(0xD6E8FEB86659FD93)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_BLOCK = 1 << 18  # rows hashed at once


def row_sum(array: np.ndarray, rows: np.ndarray | range) -> int:
    """The sum, modulo 2^64, of a hash of each of the rows [n] with its number: where a few rows change, it follows at their cost.

    It tells states apart that differ by accident; what lies on the disk is vouched for by sha256.
    """
    total = 0
    for start in range(0, len(rows), _BLOCK):
        number = np.asarray(rows[start : start + _BLOCK], np.uint64)
        part = (
            array[rows.start + start : rows.start + start + len(number)] if isinstance(rows, range) else array[number]
        )
        letters = np.ascontiguousarray(part).view(np.uint8).reshape(len(number), -1)
        letters = np.pad(letters, ((0, 0), (0, -letters.shape[1] % 8)))
        mixed = (number + np.uint64(1)) * _STEP
        for word in np.ascontiguousarray(letters.view(np.uint64).T):
            mixed = (mixed ^ word) * _LANE
            mixed ^= mixed >> np.uint64(29)
        total += int((mixed * _STEP).sum(dtype=np.uint64))
    return total % (1 << 64)


def checksum_of(
    arrays: Mapping[str, np.ndarray], sums: Mapping[str, int], files: Mapping[str, bytes], facts: Mapping[str, Any]
) -> str:
    """32 hexadecimal digits of all that answers depend on.

    Of compiled programs that is what they are made of, where the facts tell it: their bytes also name the lines of the code
    that made them.

    Args:
      arrays: by name.
      sums: of all their rows, see `row_sum`.
      files: the content of those that are no arrays.
      facts: of the manifest: "serving", and "programs_of" if programs tell what they are made of.
    """
    digest, made_of = hashlib.sha256(), facts.get("programs_of")
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape} {sums[name]:016x}\n".encode())
    for name in sorted(files):
        is_program = made_of is not None and name.startswith(PROGRAM)
        content = made_of if is_program else hashlib.sha256(files[name]).hexdigest()
        digest.update(f"{name} {content}\n".encode())
    digest.update(json.dumps(facts["serving"], sort_keys=True).encode())
    return digest.hexdigest()[:32]


class Version:
    """One version of a store, its arrays memory-mapped.

    Args:
      folder: of the version.
      verify: read all files and compare their sha256, not their sizes alone.

    Attributes:
      manifest: see `store.publish`.

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

    @classmethod
    def made(
        cls, folder: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray], files: dict[str, bytes]
    ) -> "Version":
        """A version that lies in memory: `arrays` by name, `files` by theirs."""
        version = cls.__new__(cls)
        version.folder, version.manifest, version._arrays, version._bytes = folder, manifest, arrays, files
        return version

    @property
    def name(self) -> str:
        return self.manifest["version"]

    @property
    def checksum(self) -> str:
        """Of all that answers depend on: `checksum_of`, or what the manifest says of files where it was exported whole."""
        if found := self.manifest.get("checksum"):
            return found
        return hashlib.sha256(json.dumps(self.manifest["files"], sort_keys=True).encode()).hexdigest()[:32]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        return dict(self._arrays)

    @property
    def files(self) -> dict[str, bytes]:
        """The content of all files that are no arrays, by name."""
        return dict(self._bytes)

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
            return np.asarray(npy.load(path, mmap_mode="r"))
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
