"""Writing datasets: built beside their final place, checked, then moved there whole."""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from em3_jax.core import npy, paths, publish, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.core.lock import Lock
from em3_jax.core.mapped import parts
from em3_jax.core.values import canonical
from em3_jax.data.checks import check_dataset, count_training, history_reach, summarise
from em3_jax.data.features import write_features
from em3_jax.data.format import (
    ADDED,
    EVENT_DTYPES,
    FORMAT_VERSION,
    INTERACTION_DTYPES,
    OPTIONAL_EVENT_DTYPES,
    OPTIONAL_INTERACTION_DTYPES,
    SPLITS,
    Dataset,
    fields_to_json,
    hash_data,
    hash_ids,
    open_dataset,
)

_MOST_TOGETHER = 1 << 24  # events, of which checks and counts hold some bytes each


def _write_json(path: Path, value: dict) -> None:
    path.write_text(strict_json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")


def _canonical(vocabularies: dict[str, dict[str, list]]) -> dict[str, dict[str, list[str]]]:
    """Vocabularies of canonical texts, whatever type a reader found the values in."""
    result: dict[str, dict[str, list[str]]] = {}
    for group, fields in vocabularies.items():
        result[group] = {}
        for name, values in fields.items():
            forms = list(map(canonical, values))
            words = [form for form in forms if form is not None]
            if len(set(words)) < len(forms):
                raise ValueError(f"vocabulary of {group} field '{name}': a value is empty or there twice")
            result[group][name] = words
    return result


class Appender:
    """A one-dimensional .npy column written piece by piece, when its length is not known beforehand."""

    def __init__(self, path: Path, dtype: DTypeLike):
        self._file, self._dtype, self.rows = open(path, "wb"), np.dtype(dtype), 0
        self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)  # numpy pads the header, so it keeps its length while the number of rows grows
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self.rows += len(values)

    def close(self) -> None:
        self._write_header()
        self._file.close()


class DatasetWriter:
    """Writes a dataset beside its final place and moves it there when it is complete and checked.

    Use as a context manager: an error or an interrupt leaves nothing behind, and an existing dataset as it was.

    Args:
      root: the folder to make.
      overwrite: replace an existing dataset; any other folder is never replaced.
    """

    def __init__(self, root: str | Path, overwrite: bool = False):
        self.root = publish.resolved(paths.local(root))
        if self.root.exists() and not (self.root.is_dir() and publish.is_empty(self.root)):
            if not overwrite:
                raise UserError(f"{root}: exists already; choose another --out or pass --overwrite")
            if not self._is_dataset():
                raise UserError(
                    f"{root}: exists and is no dataset, so --overwrite leaves it alone; choose another --out"
                )
        self.path = publish.building_place(self.root)
        beside = self.path.parent != self.root
        self._lock = Lock(self.root, beside=beside, hint="wait for it, or choose another --out")

    def _is_dataset(self) -> bool:
        """Whether the folder is one, or was before a kill while it was replaced."""
        return any((place / "dataset.json").is_file() for place in (self.root, *publish.leftovers(self.root)))

    def __enter__(self) -> "DatasetWriter":
        self._lock.__enter__()
        for left in (self.path, *publish.leftovers(self.root), *publish.abandoned(self.root)):
            shutil.rmtree(left, ignore_errors=True)
        for folder in ("interactions", "events", "splits", "counts", "features"):
            (self.path / folder).mkdir(parents=True)
        return self

    def __exit__(self, kind, value, trace) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.__exit__(kind, value, trace)

    def column(self, name: str, rows: int, dtype: DTypeLike) -> np.ndarray:
        """A writable memory-mapped column, e.g. name "interactions/user", for readers that work in chunks."""
        path = self.path / f"{name}.npy"
        column = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(rows,))
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash (SIGBUS) at the first write
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return column

    def appender(self, name: str, dtype: DTypeLike) -> Appender:
        """A column of unknown length, e.g. name "events/item"; close it before `finish`."""
        return Appender(self.path / f"{name}.npy", dtype)

    def columns(self, group: str, arrays: dict[str, np.ndarray]) -> None:
        """Writes whole columns of group "interactions" or "events", cast to the format's dtypes."""
        dtypes = EVENT_DTYPES | OPTIONAL_EVENT_DTYPES
        if group == "interactions":
            dtypes = INTERACTION_DTYPES | OPTIONAL_INTERACTION_DTYPES
        for name, array in arrays.items():
            kinds = {"label": np.uint8, "amount": np.float32, "number": np.float32}
            dtype = dtypes.get(name, kinds.get(name.partition("_")[0], np.int32))
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
        time_unit: str,
        extra: dict | None = None,
    ) -> Dataset:
        """Checks everything once, writes dataset.json and puts the folder in its place; returns the opened dataset.

        Args:
          users, items: column `id` first, then the encoded fields (int32, or lists of int32 of one length).
          fields: the fields with their sizes; `user[0]` and `item[0]` are the ids themselves.
          vocabularies: group -> field -> original values of the ids 2, 3, ...
          text_columns: item columns that hold text.
          time_unit: in which the columns `time` count, see `data.times`.
          extra: further facts worth keeping in dataset.json.
        """
        pq.write_table(users, self.path / "users.parquet")
        pq.write_table(items, self.path / "items.parquet")
        split = npy.load(self.path / "interactions" / "split.npy", mmap_mode="r")
        num_events = len(npy.load(self.path / "events" / "item.npy", mmap_mode="r"))
        meta = {
            "format_version": FORMAT_VERSION,
            "name": name,
            "provenance": provenance,
            "label_rule": label_rule,
            "split_rule": split_rule,
            "source_hash": source_hash,
            "time_unit": time_unit,
            "counts": {
                "interactions": len(split), "users": users.num_rows, "items": items.num_rows, "events": num_events,
            },
            "fields": fields_to_json(fields),
            "vocabularies": _canonical(vocabularies),
            "text_columns": text_columns,
            "item_hash": hash_ids(items.column("id")),
            "splits": self._write_splits(split),
            **(extra or {}),
        }  # fmt: skip
        _write_json(self.path / "dataset.json", meta)
        dataset = open_dataset(self.path)
        meta |= _looked_at(dataset)
        _write_json(self.path / "dataset.json", meta)
        self._publish()
        return open_dataset(self.root)

    def _write_splits(self, split: np.ndarray) -> dict[str, list]:
        """name -> [first row, rows, contiguous]; row lists are written only for splits that are no single range."""
        result = {}
        for code, name in enumerate(SPLITS):
            first = last = count = 0
            for part in parts(len(split), split):
                rows = np.flatnonzero(split[part] == code)
                if len(rows):
                    first = first if count else int(part.start + rows[0])
                    last, count = int(part.start + rows[-1]), count + len(rows)
            contiguous = count == 0 or last - first + 1 == count
            if not contiguous:
                np.save(self.path / "splits" / f"{name}.npy", np.flatnonzero(split == code).astype(np.int64))
            result[name] = [first, count, contiguous]
        return result

    def _keep_features(self) -> None:
        """Takes along the features and codes made for the dataset that is replaced; where items changed, only for an update."""
        unchanged = _content_of(self.root) == _content_of(self.path)
        for folder in (one for kind in ADDED for one in sorted((self.root / kind).glob("[!.]*"))):
            new = self.path / folder.relative_to(self.root)
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if new.exists() or "kind" not in manifest:  # a reader's own
                continue
            shutil.copytree(folder, new, copy_function=os.link)
            if not unchanged:
                (new / "manifest.json").unlink()  # one file under two names, and the old one stays as it was
                _write_json(new / "manifest.json", manifest | {"item_hash": None})

    def _publish(self) -> None:
        if (self.root / "dataset.json").is_file():
            self._keep_features()
        publish.replace(self.path, self.root, last="dataset.json")


def _looked_at(dataset: Dataset) -> dict:
    """Checks a dataset and counts its training rows; what dataset.json says of both.

    Each looks through all rows: side by side where what they hold of the events is little, else one after the other.
    """
    together = len(dataset.events["item"]) <= _MOST_TOGETHER
    with ThreadPoolExecutor(None if together else 1) as threads:
        checked = threads.submit(check_dataset, dataset)
        if not together:
            checked.result()
        try:
            count_training(dataset)
            made = {"summary": summarise, "history_reach": history_reach}
            found: dict[str, Future] = {name: threads.submit(one, dataset) for name, one in made.items()}
            found["data_hash"] = threads.submit(hash_data, dataset.root)
            result = {name: one.result() for name, one in found.items()}
        except Exception:
            checked.result()  # says it better
            raise
        checked.result()
    return result


def _content_of(root: Path) -> tuple:
    """What the features of a dataset were made from: its items, and where their images lie."""
    return (root / "items.parquet").read_bytes(), json.loads((root / "dataset.json").read_text("utf-8")).get(
        "image_root"
    )
