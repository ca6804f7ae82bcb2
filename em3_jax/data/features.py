"""Writing feature sets: whole at once, or batch by batch so that an interrupted extraction goes on where it stopped.

    features/<name>/            tokens.npy, mask.npy, manifest.json (see format.py), and from an extraction
        content.parquet         id, digest: what each item's content was, so that an update knows what has changed
        report.tsv              the items without content, and why
    features/.<name>.partial/   the same in the making, with plan.json (of what) and journal.jsonl (how far)

A feature set appears, or replaces another, by renaming a complete folder.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.core import npy, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.data.checks import first_not_finite
from em3_jax.data.content import DIGEST_BYTES, Content
from em3_jax.data.format import BFLOAT16, NUMBERS_OF, Dataset, hash_files

STORAGE = {
    "float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16,
    "uint8": np.uint8, "int32": np.int32,  # raw: pixels, token ids
    "uint16": np.uint16, "uint32": np.uint32,  # raw: bits of maps, see `format.NUMBERS_OF`
}  # fmt: skip
COMMIT_SECONDS = 5.0


def write_features(
    root: Path, name: str, tokens: np.ndarray, mask: np.ndarray, manifest: dict, item_hash: str, overwrite: bool = False
) -> None:
    """Adds the feature set `name` to the dataset folder `root`; it appears whole or not at all.

    Args:
      tokens: [I, N, D] f16/bf16/f32, or [I, D] for one token an item; finite, also where the mask is False.
      mask: [I, N] bool.
      manifest: encoder, weights hash, preprocessing; the item hash, shape, counts and file hash are added.
      item_hash: `hash_ids` of the dataset's items.
      overwrite: replace a feature set of that name.
    """
    tokens = tokens[:, None, :] if tokens.ndim == 2 else tokens
    bad = first_not_finite(tokens)
    if bad is not None:
        raise UserError(f"features '{name}': row {bad} holds NaN or infinity; mend the array")
    final = feature_folder(root, name)
    with Lock(final, beside=True, hint="wait for it, or choose another name"):
        if final.exists() and not overwrite:
            raise UserError(f"{final}: modality name in use; choose another name or pass --overwrite")
        folder = final.with_name(f".{name}.tmp-{os.getpid()}")
        try:
            folder.mkdir(parents=True)
            np.save(folder / "tokens.npy", _as_stored(tokens))
            np.save(folder / "mask.npy", mask.astype(np.bool_))
            _write_manifest(folder, manifest, tokens, mask, item_hash)
            publish_set(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def feature_folder(root: Path, name: str) -> Path:
    """Where the feature set `name` lies; refuses names that cannot be one."""
    return set_folder(root, "features", name)


def set_folder(root: Path, kind: str, name: str) -> Path:
    """Where the set `name` of a kind, "features" or "codes", lies; refuses names that cannot be one."""
    if not name.isidentifier():
        raise UserError(f"{kind.removesuffix('s')} set name '{name}' must be letters, digits and underscores")
    final = Path(root) / kind / name
    old = _old(final)
    if old.exists() and not final.exists():  # killed between the two renames that replace a set
        os.replace(old, final)
    return final


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def publish_set(folder: Path, final: Path) -> None:
    """Puts the complete folder `folder` in the place `final`, see `set_folder`, whether that is there or not."""
    old = _old(final)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(folder, final)
    shutil.rmtree(old, ignore_errors=True)


def _as_stored(tokens: np.ndarray) -> np.ndarray:
    """numpy's file format does not know bfloat16: its bits are stored, and the manifest says what they are."""
    return tokens.view(np.uint16) if tokens.dtype == BFLOAT16 else tokens


def _write_manifest(folder: Path, manifest: dict, tokens: np.ndarray, mask: np.ndarray, item_hash: str) -> None:
    manifest = manifest | {
        "counts": {"items": len(mask), "items_with_content": int(mask.any(axis=1).sum()), **manifest.get("counts", {})},
        "item_hash": item_hash,
        "shape": list(tokens.shape),
        "dtype": str(tokens.dtype),
        "hash": hash_files([folder / "tokens.npy", folder / "mask.npy"]),
    }
    _write_json(folder / "manifest.json", manifest)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(strict_json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


class FeatureWriter:
    """A feature set in the making. Letters: I items, M slots of an item, n tokens of a slot, D width; unit i * M + m.

    Use as a context manager. What has been written survives the process; the next writer of the same plan goes on after
    batch `done` - 1.

    Args:
      dataset: where it goes.
      name: of the feature set.
      plan: JSON values that fix every byte to be written; only an equal plan goes on.
      slots: (I, M).
      unit: (n, D).
      dtype: a key of `STORAGE`.
      discard: what to do with an unfinished set of another plan: start again, or refuse.

    Raises:
      UserError: another process is at it; an unfinished set has another plan; the disk is full.
    """

    def __init__(
        self,
        dataset: Dataset,
        name: str,
        plan: dict,
        *,
        slots: tuple[int, int],
        unit: tuple[int, int],
        dtype: str,
        discard: bool,
    ):
        self._final, self._dataset, self._slots = feature_folder(dataset.root, name), dataset, slots
        self._folder = self._final.with_name(f".{name}.partial")
        self._lock = Lock(self._final, beside=True, hint="wait for it, or choose another --name")
        self._lock.__enter__()
        try:
            self._begin(json.loads(json.dumps(plan)), discard)
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        items, per_item = slots
        stored = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        tokens = self._array("tokens", (items, per_item * unit[0], unit[1]), stored)
        mask = self._array("mask", (items, per_item * unit[0]), np.dtype(bool))
        self.digest = self._array("digest", (items, per_item, DIGEST_BYTES), np.dtype(np.uint8))
        self._maps = (tokens, mask, self.digest)
        self.tokens = tokens.reshape(items * per_item, *unit).view(STORAGE[dtype])
        self.mask = mask.reshape(items * per_item, unit[0])
        self.notes = self._read_journal()
        self._journal = open(self._folder / "journal.jsonl", "a")
        self._pending: list[str] = []
        self._committed = time.monotonic()

    def _begin(self, plan: dict, discard: bool) -> None:
        """Makes the folder this plan's."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "plan.json"
        if path.exists():
            old = json.loads(path.read_text(encoding="utf-8"))
            if old == plan:
                return
            changed = ", ".join(sorted(key for key in set(old) | set(plan) if old.get(key) != plan.get(key)))
            if not discard:
                raise UserError(
                    f"{self._folder}: an unfinished extraction was begun otherwise (differs in: {changed}); run that command "
                    "again to go on with it, or pass --overwrite to start anew"
                )
            for file in self._folder.iterdir():
                file.unlink()
        _write_json(path.with_suffix(".tmp"), plan)
        os.replace(path.with_suffix(".tmp"), path)

    def _array(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
        """The memory-mapped array of a file; made, with its space on the disk, where it is not there yet."""
        path = self._folder / f"{name}.npy"
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(temporary.stat().st_size, 1))
            os.replace(temporary, path)
        return npy.load(path, "r+")

    def _read_journal(self) -> list[Any]:
        """The notes of the batches that are written; what a killed process left of a further line is cut off."""
        path, notes = self._folder / "journal.jsonl", []
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            try:
                notes.append(json.loads(line)["notes"])
            except (ValueError, KeyError, TypeError):
                break
        path.write_bytes(b"".join(lines[: len(notes)]))
        return notes

    @property
    def done(self) -> int:
        """Batches that are written."""
        return len(self.notes)

    def keep(self, units: np.ndarray, tokens: np.ndarray, mask: np.ndarray, digest: np.ndarray) -> None:
        """Writes units [u] that need no encoding: tokens [u, n', D], mask [u, n'], digest [u, 16]; n' may be other than n."""
        count = min(mask.shape[1], self.mask.shape[1])
        self.tokens[units, :count], self.mask[units, :count] = tokens[:, :count], mask[:, :count]
        self.digest.reshape(-1, DIGEST_BYTES)[units] = digest

    def write(
        self, units: np.ndarray, tokens: np.ndarray, mask: np.ndarray, digest: np.ndarray, notes: list[Any]
    ) -> None:
        """Writes the next batch.

        Args:
          units: [u] which units.
          tokens: [u, n', D], in the dtype of the set; zeros are written where masked.
          mask: [u, n'] bool; True nowhere beyond n.
          digest: [u, 16] u8 of their content.
          notes: JSON values to remember with the batch, see the attribute `notes`.
        """
        tokens = np.where(mask[..., None], tokens, tokens.dtype.type(0))
        numbers = tokens.view(NUMBERS_OF.get(tokens.dtype.name, tokens.dtype))
        if not np.isfinite(numbers).all():
            if np.isnan(numbers).any():  # not too large for a type, but wrong in any
                raise UserError(
                    f"{self._folder}: the encoder gives NaN, as one with damaged weights does; "
                    "copy its checkpoint again"
                )
            wider = "float32" if numbers.dtype != tokens.dtype else "bfloat16 or float32"
            raise UserError(
                f"{self._folder}: the encoder gives values that {numbers.dtype} cannot hold; pass --dtype {wider}"
            )
        self.keep(units, tokens, mask, digest)
        self.notes.append(notes)
        self._pending.append(strict_json.dumps({"notes": notes}, ensure_ascii=False) + "\n")
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """First the numbers, then the journal that vouches for them."""
        for array in self._maps:
            array.flush()
        self._journal.write("".join(self._pending))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self._pending, self._committed = [], time.monotonic()

    def finish(self, manifest: dict, report: list[tuple[str, str, str]]) -> None:
        """Completes the set and puts it in its place.

        Args:
          manifest: see `write_features`.
          report: (item id, source, problem) of what has no content.
        """
        self._commit()
        ids = [str(item) for item in self._dataset.item_table.column("id").to_pylist()]
        digests = [row.tobytes() for row in self.digest]
        pq.write_table(
            pa.table({"id": ids, "digest": pa.array(digests, pa.binary())}), self._folder / "content.parquet"
        )
        lines = ["\t".join(" ".join(cell.split()) for cell in row) for row in [("item", "source", "problem"), *report]]
        (self._folder / "report.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        stored = npy.load(self._folder / "tokens.npy", mmap_mode="r")
        tokens = stored.view(self.tokens.dtype)
        mask = npy.load(self._folder / "mask.npy", mmap_mode="r")
        _write_manifest(self._folder, manifest, tokens, mask, self._dataset.meta["item_hash"])
        for name in ("journal.jsonl", "plan.json", "digest.npy"):  # the journal vouches for the others
            (self._folder / name).unlink()
        publish_set(self._folder, self._final)

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, kind, value, trace) -> None:
        if self._folder.exists():
            self._commit()  # also on an error: nothing that was encoded is lost
        self._journal.close()
        self._lock.__exit__(kind, value, trace)


class Reusable(NamedTuple):
    """What an update takes from the feature set it replaces.

    Attributes:
      unit: [I, M] where a slot of the new set is found in the old, as a place i * M_old + m; -1 = it has to be encoded.
      tokens, mask, digest: [units, n, D], [units, n], [units, 16] of the old set.
    """

    unit: np.ndarray
    tokens: np.ndarray
    mask: np.ndarray
    digest: np.ndarray

    def copy(self, writer: FeatureWriter) -> None:
        """Writes what is reused, a few thousand slots at a time."""
        flat = self.unit.ravel()
        units = np.flatnonzero(flat >= 0)
        for part in np.array_split(units, -(-len(units) // 4096) or 1):
            old = flat[part]
            writer.keep(part, self.tokens[old], self.mask[old], self.digest[old])


def reusable(old: Path, dataset: Dataset, content: Content, digests: Callable[[np.ndarray], np.ndarray]) -> Reusable:
    """What of the feature set in folder `old` an update of it may keep: slots of the same item with the same content.

    Args:
      digests: places in `content.values` [b] -> [b, 16] u8, what they hold now.
    """
    manifest = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    table = pq.read_table(old / "content.parquet")
    digest = np.frombuffer(b"".join(table.column("digest").to_pylist()), np.uint8)
    digest = digest.reshape(len(table), -1, DIGEST_BYTES)  # [I_old, M_old, 16]
    items, slots, _ = digest.shape
    tokens, mask = (npy.load(old / f"{name}.npy", "r") for name in ("tokens", "mask"))
    tokens = tokens.view(STORAGE[manifest["dtype"]]).reshape(items * slots, -1, tokens.shape[-1])
    mask = mask.reshape(items * slots, -1)

    place = {item: row for row, item in enumerate(table.column("id").to_pylist())}
    row = np.array([place.get(str(item), -1) for item in dataset.item_table.column("id").to_pylist()])
    new_items, new_slots = content.index.shape
    unit = np.full((new_items, new_slots), -1)
    shared = min(slots, new_slots)
    unit[:, :shared] = np.where(row[:, None] >= 0, row[:, None] * slots + np.arange(shared), -1)
    values = np.unique(content.index[(unit >= 0) & (content.index >= 0)])
    now = np.zeros((len(content.values), DIGEST_BYTES), np.uint8)
    now[values] = digests(values)
    flat = digest.reshape(-1, DIGEST_BYTES)
    same = (flat[unit] == now[content.index]).all(axis=-1) & mask.any(axis=1)[unit]
    return Reusable(np.where(same & (unit >= 0) & (content.index >= 0), unit, -1), tokens, mask, flat)
