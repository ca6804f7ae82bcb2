"""What of a version is other than in its base, the version before it: rows of arrays, files, facts of the manifest.

    <store>/versions/0000008/          of a delta: manifest.json, changes.npz
    <store>/versions/whole-0000008/    the same version whole, once its chain has been compacted

    changes.npz   rows.<array>     [n] u32 rows that are other, or more; left out where the array is new as a whole
                  values.<array>   [n, ...] theirs
                  file.<name>      [bytes] u8 of a file that is other

Nothing is unpickled. What a chain of deltas gives is what the trainer held, bit for bit: the manifest names the checksum of
the version and of its base. Letters: n rows that are other.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.serving.version import FORMAT, MANIFEST, Version, checksum_of, row_sum

CHANGES = "changes.npz"
OWN = (
    "format",
    "version",
    "files",
    "base",
    "base_checksum",
    "lengths",
    "gone",
    "checksum",
    "sums",
    "facts",
    "serving_facts",
)
"""Keys of manifests that say what a folder holds; all others are facts that a version takes over from its base."""


class Changes(NamedTuple):
    """What is other than in the base.

    Attributes:
      rows, values: array -> [n] rows, and what they hold; of an array that is other as a whole there are no rows.
      lengths: array -> its rows now, of those that have values.
      files: those that are other.
      gone: arrays and files that are no longer there.
    """

    rows: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    lengths: dict[str, int]
    files: dict[str, bytes]
    gone: list[str]


def difference(base: Version, arrays: Mapping[str, np.ndarray], files: Mapping[str, bytes]) -> Changes:
    """What `arrays` and `files` have other than `base`, to the bit."""
    before, rows, values, lengths = base.arrays, {}, {}, {}
    for name, array in arrays.items():
        old = before.get(name)
        if old is None or old.dtype != array.dtype or old.shape[1:] != array.shape[1:]:
            values[name], lengths[name] = array, len(array)
            continue
        other = _other_rows(old, array)
        if len(other) or len(old) != len(array):
            lengths[name], values[name] = len(array), array[other]
            if len(other) < len(array) or not len(array):
                rows[name] = other.astype(np.uint32)
    there = base.files
    other_files = {name: content for name, content in files.items() if there.get(name) != content}
    gone = sorted({*before, *there} - {*arrays, *files})
    return Changes(rows, values, lengths, other_files, gone)


def _other_rows(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """[n] i64 rows of `new` that `old` has not, or has otherwise, to the bit."""
    both, found = min(len(old), len(new)), []
    kind = np.dtype(f"u{new.dtype.itemsize}")
    width = max(int(np.prod(new.shape[1:])), 1)
    size = max((1 << 20) // width, 1)
    for start in range(0, both, size):
        part = slice(start, min(start + size, both))
        a, b = (np.ascontiguousarray(one[part]).reshape(part.stop - start, -1).view(kind) for one in (old, new))
        found.append(start + np.flatnonzero((a != b).any(axis=1)))
    return np.concatenate([*found, np.arange(both, len(new))]).astype(np.int64)


def write(folder: Path, base: Version, changes: Changes, facts: Mapping[str, Any]) -> tuple[Version, dict[str, Any]]:
    """Writes changes.npz into a folder; (the version that it gives, what its manifest says beside the files).

    Args:
      facts: of the version's manifest, "serving" among them; those that the base has alike are not said again.
    """
    arrays = {f"rows.{name}": one for name, one in changes.rows.items()}
    arrays |= {f"values.{name}": one for name, one in changes.values.items()}
    arrays |= {f"file.{name}": np.frombuffer(content, np.uint8) for name, content in changes.files.items()}
    buffer = io.BytesIO()
    # The stub takes any name for that of its own flag; here each has a dot in it.
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    (folder / CHANGES).write_bytes(buffer.getvalue())
    had, serving = base.manifest, dict(facts["serving"])
    of_serving = {key: one for key, one in serving.items() if had["serving"].get(key) != one}
    said = {key: one for key, one in facts.items() if key != "serving" and had.get(key) != one}
    manifest: dict[str, Any] = {
        "base": base.name,
        "base_checksum": base.checksum,
        "lengths": changes.lengths,
        "gone": changes.gone,
        "facts": said,
        "serving_facts": of_serving,
    }
    made = _applied(base, changes, manifest, folder)
    manifest["checksum"] = made.manifest["checksum"]
    return made, manifest


def _applied(base: Version, changes: Changes, manifest: Mapping[str, Any], folder: Path) -> Version:
    """The version that changes make of their base, in memory; arrays that they leave alone are shared."""
    arrays, files = base.arrays, base.files
    sums = dict(base.manifest["sums"])
    for name in changes.gone:
        arrays.pop(name, None)
        sums.pop(name, None)
        files.pop(name, None)
    for name, values in changes.values.items():
        length, old, rows = changes.lengths[name], arrays.get(name), changes.rows.get(name)
        if rows is None:
            arrays[name], sums[name] = values, row_sum(values, range(length))
            continue
        assert old is not None  # `Delta` has seen that rows have an array
        kept = rows[rows < len(old)].astype(np.int64)
        before = row_sum(old, kept) + row_sum(old, range(min(length, len(old)), len(old)))
        new = np.empty((length, *old.shape[1:]), old.dtype)
        new[: len(old)] = old[:length]
        new[rows] = values
        arrays[name], sums[name] = new, (sums[name] - before + row_sum(new, rows.astype(np.int64))) % (1 << 64)
    files |= changes.files
    facts = {key: one for key, one in base.manifest.items() if key not in OWN} | manifest["facts"]
    facts["serving"] = base.manifest["serving"] | manifest["serving_facts"]
    facts |= {"format": FORMAT, "sums": sums, "checksum": checksum_of(arrays, sums, files, facts)}
    return Version.made(folder, facts | {"version": manifest.get("version", "")}, arrays, files)


def named(version: Version, name: str) -> Version:
    """The version by the name that it has been published by."""
    return Version.made(version.folder, version.manifest | {"version": name}, version.arrays, version.files)


class Delta:
    """A delta of a store, read as a whole.

    Args:
      folder: of it.

    Attributes:
      name, base: of the version, and of the one before it.

    Raises:
      UserError: it is damaged. FileNotFoundError: it is not there (any more).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self._manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            content = (folder / CHANGES).read_bytes()
            facts = self._manifest["files"][CHANGES]
            if len(content) != facts["bytes"] or hashlib.sha256(content).hexdigest() != facts["sha256"]:
                raise UserError(f"{folder / CHANGES}: not what its manifest says; the file is damaged, export again")
            self.name, self.base = self._manifest["version"], self._manifest["base"]
            if not self.base < self.name:  # or the chain would have no end
                raise ValueError(f"its base is {self.base!r}")
            self._changes = _changes(npy.archive(io.BytesIO(content)), self._manifest)
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{folder}: not a readable delta ({error}); export again") from None

    def applied_to(self, base: Version) -> Version:
        """The version that it makes of its base.

        Raises:
          UserError: it does not fit that version.
        """
        what = f"{self.folder}: a delta on version {self.base}"
        if base.name != self.base or base.checksum != self._manifest["base_checksum"]:
            raise UserError(
                f"{what} ({self._manifest['base_checksum']}), it does not fit version {base.name} ({base.checksum})"
            )
        try:
            made = _applied(base, self._changes, self._manifest, self.folder)
        except (AssertionError, IndexError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{what} does not fit it ({error})") from None
        if made.checksum != self._manifest["checksum"]:
            raise UserError(f"{what} gives checksum {made.checksum}, its manifest says {self._manifest['checksum']}")
        return made


def _changes(arrays: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Changes:
    found: dict[str, dict[str, np.ndarray]] = {"rows": {}, "values": {}, "file": {}}
    for key, array in arrays.items():
        kind, _, name = key.partition(".")
        found[kind][name] = array
    lengths = {name: int(length) for name, length in manifest["lengths"].items()}
    files = {name: content.tobytes() for name, content in found["file"].items()}
    return Changes(found["rows"], found["values"], lengths, files, list(manifest["gone"]))


def is_delta(folder: Path) -> bool:
    """Whether the folder of a version holds a delta."""
    return (folder / CHANGES).exists()


def write_whole(folder: Path, version: Version) -> None:
    """Writes all arrays and files of a version into a folder that is there."""
    for name, array in version.arrays.items():
        np.save(folder / f"{name}.npy", array)
    for name, content in version.files.items():
        (folder / name).write_bytes(content)


def with_sums(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray], files: Mapping[str, bytes]) -> dict[str, Any]:
    """The facts of a whole version with what deltas on it need: the sums of its arrays, and its checksum."""
    sums = {name: row_sum(array, range(len(array))) for name, array in arrays.items()}
    return {**facts, "sums": sums, "checksum": checksum_of(arrays, sums, files, facts)}
