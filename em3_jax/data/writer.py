"""Writing datasets and feature sets: built beside their final place, checked, then moved there whole."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.data.checks import check_dataset, count_training, summarise
from em3_jax.data.format import (
    EVENT_DTYPES,
    FORMAT_VERSION,
    INTERACTION_DTYPES,
    SPLITS,
    Dataset,
    fields_to_json,
    hash_files,
    hash_ids,
    open_dataset,
)
from em3_jax.fields import Fields
from em3_jax.types import UserError


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


class DatasetWriter:
    """Writes a dataset beside its final place and moves it there when it is complete and checked.

    Use as a context manager: an error or an interrupt leaves nothing behind.

    Args:
      root: the folder to make.
      overwrite: replace an existing folder.
    """

    def __init__(self, root: str | Path, overwrite: bool = False):
        self.root = Path(root)
        if self.root.exists() and not overwrite:
            raise UserError(f"{self.root}: exists already; choose another --out or pass --overwrite")
        self.path = self.root.with_name(f".{self.root.name}.tmp-{os.getpid()}")

    def __enter__(self) -> "DatasetWriter":
        shutil.rmtree(self.path, ignore_errors=True)
        for folder in ("interactions", "events", "splits", "counts", "features"):
            (self.path / folder).mkdir(parents=True)
        return self

    def __exit__(self, kind, value, trace) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def column(self, name: str, rows: int, dtype: np.dtype) -> np.ndarray:
        """A writable memory-mapped column, e.g. name "interactions/user", for readers that work in chunks."""
        return np.lib.format.open_memmap(self.path / f"{name}.npy", mode="w+", dtype=dtype, shape=(rows,))

    def columns(self, group: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes whole columns of group "interactions" or "events", cast to the format's dtypes."""
        dtypes = INTERACTION_DTYPES if group == "interactions" else EVENT_DTYPES
        for name, array in arrays.items():
            dtype = dtypes.get(name, np.float32 if name == "probability" else np.int32)
            np.save(self.path / group / f"{name}.npy", np.asarray(array).astype(dtype))

    def features(self, name: str, tokens: np.ndarray, mask: np.ndarray, manifest: dict, item_hash: str) -> None:
        write_features(self.path, name, tokens, mask, manifest, item_hash)

    def finish(
        self,
        *,
        name: str,
        users: pa.Table,
        items: pa.Table,
        fields: Fields,
        vocabularies: dict[str, dict[str, list]],
        text_columns: list[str],
        provenance: str,
        label_rule: str,
        split_rule: str,
        source_hash: str,
        extra: dict | None = None,
    ) -> Dataset:
        """Checks everything once, writes dataset.json and puts the folder in its place; returns the opened dataset.

        Args:
          users, items: column `id` first, then the encoded fields (int32, or lists of int32 of one length).
          fields: the fields with their sizes; `user[0]` and `item[0]` are the ids themselves.
          vocabularies: group -> field -> original values of the ids 2, 3, ...
          text_columns: item columns that hold text.
          extra: further facts worth keeping in dataset.json.
        """
        pq.write_table(users, self.path / "users.parquet")
        pq.write_table(items, self.path / "items.parquet")
        split = np.load(self.path / "interactions" / "split.npy", mmap_mode="r")
        num_events = len(np.load(self.path / "events" / "item.npy", mmap_mode="r"))
        meta = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "provenance": provenance,
            "label_rule": label_rule,
            "split_rule": split_rule,
            "source_hash": source_hash,
            "counts": {
                "interactions": len(split), "users": users.num_rows, "items": items.num_rows, "events": num_events,
            },
            "fields": fields_to_json(fields),
            "vocabularies": vocabularies,
            "text_columns": text_columns,
            "item_hash": hash_ids(items.column("id")),
            "splits": self._write_splits(split),
            **(extra or {}),
        }  # fmt: skip
        _write_json(self.path / "dataset.json", meta)
        dataset = open_dataset(self.path)
        check_dataset(dataset)
        count_training(dataset)
        meta["summary"] = summarise(dataset)
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "dataset.json")
        meta["data_hash"] = hash_files([p for p in files if "features" not in p.relative_to(self.path).parts])
        _write_json(self.path / "dataset.json", meta)
        self._publish()
        return open_dataset(self.root)

    def _write_splits(self, split: np.ndarray) -> dict[str, list]:
        """name -> [first row, rows, contiguous]; row lists are written only for splits that are no single range."""
        result = {}
        for code, name in enumerate(SPLITS):
            rows = np.flatnonzero(split == code).astype(np.int64)
            first, count = (int(rows[0]), len(rows)) if len(rows) else (0, 0)
            contiguous = count == 0 or int(rows[-1]) - first + 1 == count
            if not contiguous:
                np.save(self.path / "splits" / f"{name}.npy", rows)
            result[name] = [first, count, contiguous]
        return result

    def _publish(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.path, self.root)


def write_features(root: Path, name: str, tokens: np.ndarray, mask: np.ndarray, manifest: dict, item_hash: str) -> None:
    """Adds the feature set `name` to the dataset folder `root`; it appears whole or not at all.

    Args:
      tokens: [I, N, D] f16/f32, or [I, D] for one token an item; finite where the mask is True.
      mask: [I, N] bool.
      manifest: encoder, weights hash, preprocessing; the item hash and the shape are added.
      item_hash: `hash_ids` of the dataset's items.
    """
    if not name.isidentifier():
        raise UserError(f"feature set name '{name}' must be letters, digits and underscores")
    tokens = tokens[:, None, :] if tokens.ndim == 2 else tokens
    bad = np.flatnonzero(~np.isfinite(tokens).all(axis=-1).reshape(len(tokens), -1).all(axis=1))
    if len(bad):
        raise UserError(f"features '{name}': row {bad[0]} holds NaN or infinity ({len(bad)} such rows); mend the array")
    final = Path(root) / "features" / name
    if final.exists():
        raise UserError(f"{final}: modality name in use; choose another name or remove the folder")
    folder = final.with_name(f".{name}.tmp-{os.getpid()}")
    folder.mkdir(parents=True)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "mask.npy", mask.astype(np.bool_))
    manifest = manifest | {"item_hash": item_hash, "shape": list(tokens.shape), "dtype": str(tokens.dtype)}
    _write_json(folder / "manifest.json", manifest)
    os.replace(folder, final)
