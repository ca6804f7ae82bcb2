"""The one on-disk form of every dataset: numpy columns that are memory-mapped, two Parquet tables, one JSON.

    dataset.json                      provenance, counts, fields, label and split rule, hashes
    interactions/<column>.npy         one row per impression, sorted by time:
        user, item i32   rows of users.parquet, items.parquet      label u8   0 or 1       time i64
        split u8         0 train, 1 valid, 2 test                  history_start, history_end i64   an event range
        context_<field> i32                                        probability f32   true click probability, if planted
        label_<name> u8   a further label, 0 or 1; 255 = the row is not part of that scenario
        amount_<name> f32   a further label that is an amount from 0 up, such as seconds; NaN = not observed
        weight f32   how much a row counts in the training loss, where the source says it; 0 = not at all
        group i32   session, query or impression, where the source says it; the model does not read it
        number_<name> f32   a number of the context, whose range is context_<name>; NaN = missing
    events/<column>.npy               the history events, the ones of a history side by side, oldest first:
        item i32, time i64, field_<name> i32, number_<name> f32    original i64   where an event is stored more than once:
                                                                   the first place that stores it
    splits/<name>.npy i64             rows of a split, only where they are not one contiguous range
    counts/<...>.npy i64              how often training rows show each user, item, and field value
    users.parquet, items.parquet      column `id` (original id), encoded fields, number_<name> f32 as above; items: text
                                      columns, and `image`, a path relative to `image_root` of dataset.json, of a
                                      picture or a folder of frames, or a list of pictures (null = none)
    features/<name>/                  tokens.npy [I, N, D] f16, f32, or bf16 as u16; mask.npy [I, N] bool; manifest.json
                                      raw: pixels u8, N images of D = H * W * 3; or token ids i32, N of all texts, D = 1;
                                      or maps of an encoder's lower part, the bits of f16 or f32 numbers as u16 or u32
    codes/<name>/                     content as a few small numbers an item, see `data.codes`

Histories are ranges of events, so an example costs two numbers however long its history is. Nothing is ever unpickled.
"""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike

from em3_jax.core import npy, paths
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.core.numbers import NO_NUMBERS, Numbers, value_column

FORMAT_VERSION = 1
STORE = "appended.json"  # of a folder that a stream appends rows to, see `append`
SPLITS = ("train", "valid", "test")
_Dtypes = dict[str, type[np.generic]]
_Shape = tuple[int | None, ...] | None
INTERACTION_DTYPES: _Dtypes = {
    "user": np.int32, "item": np.int32, "label": np.uint8, "time": np.int64, "split": np.uint8,
    "history_start": np.int64, "history_end": np.int64,
}  # fmt: skip
EVENT_DTYPES: _Dtypes = {"item": np.int32, "time": np.int64}
OPTIONAL_INTERACTION_DTYPES: _Dtypes = {"probability": np.float32, "group": np.int32, "weight": np.float32}
OPTIONAL_EVENT_DTYPES: _Dtypes = {"original": np.int64}
CLICK = "click"  # the name of the column `label`
LOGGED = "logged"  # what dataset.json says of "negatives" that the log has itself; of others, how they were drawn
NOT_PART = 255
MAX_EVENT_VOCABULARY = 1024
NUMBERS_OF = {"uint16": "float16", "uint32": "float32"}
"""dtype of raw features that are the bits of numbers -> that of the numbers."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
ADDED = ("features", "codes")
"""Folders of what is made of a dataset's items, and may be added to it at any time."""


def observed(values: np.ndarray) -> np.ndarray:
    """[n] bool: which of a label's values [n] there are, see `Dataset.label`."""
    return values != NOT_PART if values.dtype == np.uint8 else ~np.isnan(values)


def load_array(path: Path, dtype: DTypeLike | None = None, shape: _Shape = None) -> np.ndarray:
    """A memory-mapped array; refuses a missing file, a pickled array, another dtype or shape (None = any)."""
    if not path.is_file():
        raise UserError(f"{path}: file missing; prepare the dataset again with `em3 prepare`")
    try:
        array = npy.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error}); prepare the dataset again") from None
    if dtype is not None and array.dtype != dtype:
        raise UserError(f"{path}: dtype is {array.dtype}, must be {np.dtype(dtype)}; convert the column")
    if shape is not None and (
        array.ndim != len(shape) or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True))
    ):
        raise UserError(f"{path}: shape is {array.shape}, must be {shape}; prepare the dataset again")
    return np.asarray(array)  # the same mapped memory without the subclass, whose indexing costs 20 us a call


def read_json(path: Path) -> dict:
    """The object of a JSON file of a dataset; refuses a missing or damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (path.parent / STORE).exists():
            raise UserError(
                f"{path.parent}: a stream appends rows to it; make a dataset and a run of it with `em3 seal`"
            ) from None
        raise UserError(f"{path}: file missing; is this a folder made by `em3 prepare`?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); prepare the dataset again") from None


def hash_files(paths: list[Path]) -> str:
    """sha256 over names and contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def hash_data(root: Path) -> str:
    """sha256 of a dataset's files but dataset.json, which holds it, and what may be added later: features, codes."""
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file() and path.name != "dataset.json")
    return hash_files([root / path for path in files if path.parts[0] not in ADDED])


def hash_ids(ids: pa.ChunkedArray | pa.Array | list) -> str:
    """sha256 of the original item ids in row order; ties a feature set to the items it was made for."""
    values = ids.to_pylist() if hasattr(ids, "to_pylist") else list(ids)
    return hashlib.sha256("\n".join(map(str, values)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """Content tokens of all items from one encoder.

    Attributes:
      name: modality name.
      tokens: [I, N, D] f16/bf16/f32, memory-mapped; of a raw set u8 pixels, i32 token ids, or bits of maps.
      mask: [I, N] bool, True = the token exists.
      manifest: where the tokens come from.
    """

    name: str
    tokens: np.ndarray
    mask: np.ndarray
    manifest: dict

    @property
    def is_raw(self) -> bool:
        """Whether it holds what an encoder is yet to see: the pixels or token ids of all items."""
        return "raw" in self.manifest

    def of_items(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens [n, N, D], mask [n, N]) of items [n]; of a run of items as they lie in the files, without a copy."""
        if len(items) and items[-1] - items[0] == len(items) - 1 and (np.diff(items) == 1).all():
            run = slice(items[0], items[-1] + 1)
            return self.tokens[run], self.mask[run]
        return self.tokens[items], self.mask[items]

    def describe(self) -> str:
        """What it is, in a line."""
        items, count, width = self.tokens.shape
        covered = self.manifest.get("counts", {}).get("items_with_content", items)
        return (
            f"{self.name}: {self.manifest.get('encoder', 'unknown encoder')}, {count} x {width} {self.tokens.dtype}, "
            f"{covered:,} of {items:,} items"
        )


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset directory; all columns memory-mapped. `numbers` are those that a run reads as values."""

    root: Path
    meta: dict
    fields: Fields
    interactions: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    user_table: pa.Table
    item_table: pa.Table
    numbers: Numbers = NO_NUMBERS

    @property
    def num_users(self) -> int:
        return self.user_table.num_rows

    @property
    def num_items(self) -> int:
        return self.item_table.num_rows

    @functools.cached_property
    def user_field_ids(self) -> np.ndarray:
        """[U, C] i32: ids of all user fields side by side (`fields.columns`)."""
        return _field_ids(self.user_table, self.fields.user)

    @functools.cached_property
    def item_field_ids(self) -> np.ndarray:
        """[I, C] i32: ids of all item fields side by side (`fields.columns`)."""
        return _field_ids(self.item_table, self.fields.item)

    def label(self, name: str) -> np.ndarray:
        """[rows] the label `name`: u8 of "click" or a further one, `NOT_PART` where a row does not belong to it.

        Of an amount f32, NaN where it was not observed.
        """
        labels = self.meta.get("labels", {})
        if name != CLICK and name not in labels and name not in self.amounts:
            there = ", ".join([CLICK, *labels, *self.amounts])
            raise UserError(f"{self.root}: no label '{name}'; there are: {there}")
        kind = "amount" if name in self.amounts else "label"
        return self.interactions["label" if name == CLICK else f"{kind}_{name}"]

    @property
    def event_features(self) -> tuple[str, ...]:
        """The event fields that are made with a batch, see `data.event_features`; the others are stored."""
        return tuple(self.meta.get("event_features", ()))

    @property
    def stored_event_fields(self) -> tuple[Field, ...]:
        """The event fields that are columns of the events."""
        return tuple(field for field in self.fields.event if field.name not in self.event_features)

    @property
    def amounts(self) -> tuple[str, ...]:
        """The further labels that are amounts."""
        return tuple(self.meta.get("amounts", {}))

    @property
    def group(self) -> np.ndarray:
        """[rows] i32: rows of one group are ranked against each other: session, query or impression, or else the user."""
        return self.interactions.get("group", self.interactions["user"])

    def split_rows(self, split: str, label: str = CLICK) -> np.ndarray | range:
        """Interaction rows of a split that have the label, in time order: a range where contiguous, else [n] i64."""
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}'; choose one of {', '.join(SPLITS)}")
        if label != CLICK:
            rows = np.asarray(self.split_rows(split))
            return rows[observed(self.label(label)[rows])]
        first, count, contiguous = self.meta["splits"][split]
        if contiguous:
            return range(first, first + count)
        return load_array(self.root / "splits" / f"{split}.npy", np.int64, (count,))

    def features(self, name: str) -> FeatureSet:
        """The feature set `name`, checked against this dataset's items."""
        folder = self.root / "features" / name
        if not folder.is_dir():
            have = sorted(p.name for p in (self.root / "features").glob("[!.]*") if p.is_dir())
            raise UserError(f"{folder}: no such feature set; this dataset has: {', '.join(have) or 'none'}")
        manifest = read_json(folder / "manifest.json")
        if manifest.get("item_hash") != self.meta["item_hash"]:
            raise UserError(
                f"{folder / 'manifest.json'}: item_hash is not that of the items in {self.root}; bring the features up to "
                "date with `em3 extract --update`"
            )
        if "hash" not in manifest:
            raise UserError(f"{folder / 'manifest.json'}: made by an older version; make the features again")
        tokens = load_array(folder / "tokens.npy", None, (self.num_items, None, None))
        mask = load_array(folder / "mask.npy", np.bool_, tokens.shape[:2])
        if manifest.get("dtype") == BFLOAT16.name and tokens.dtype == np.uint16:
            tokens = tokens.view(BFLOAT16)
        known = (np.uint8, np.int32, np.uint16, np.uint32) if "raw" in manifest else (np.float16, np.float32, BFLOAT16)
        if tokens.dtype not in known:
            names = " or ".join(np.dtype(dtype).name for dtype in known)
            raise UserError(f"{folder / 'tokens.npy'}: dtype is {tokens.dtype}, must be {names}")
        if (list(tokens.shape), tokens.dtype.name) != (manifest.get("shape"), manifest.get("dtype")):
            raise UserError(
                f"{folder / 'tokens.npy'}: {tokens.dtype.name} {list(tokens.shape)}, but its manifest says "
                f"{manifest.get('dtype')} {manifest.get('shape')}; make the features again"
            )
        return FeatureSet(name, tokens, mask, manifest)


def _field_ids(table: pa.Table, fields: tuple[Field, ...]) -> np.ndarray:
    own_id = np.arange(table.num_rows, dtype=np.int32) + FIRST_KNOWN
    blocks = [own_id[:, None]]
    for field in fields[1:]:
        column = table.column(field.name).combine_chunks()
        if field.length > 1:
            column = column.flatten()
        blocks.append(column.to_numpy(zero_copy_only=False).reshape(table.num_rows, field.length).astype(np.int32))
    return np.concatenate(blocks, axis=1)


def _fields_from_json(groups: dict[str, list]) -> Fields:
    return Fields(**{group: tuple(Field(*spec) for spec in specs) for group, specs in groups.items()})


def fields_to_json(fields: Fields) -> dict[str, list]:
    return {group: [[f.name, f.size, f.length] for f in specs] for group, specs in fields.groups()}


def open_dataset(root: str | Path) -> Dataset:
    """The dataset in folder `root`. Checks that all parts are there with the right types and lengths.

    >>> import em3_jax as em3
    >>> dataset = em3.open_dataset("data/synthetic")
    >>> [field.name for field in dataset.fields.item]
    ['item', 'category', 'tags']
    >>> dataset.features("image").tokens.shape[1:]  # of each item N tokens, E wide
    (4, 32)

    Raises:
      UserError: there is no dataset, or a part of it is missing or damaged.
    """
    root = paths.local(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such dataset folder; make one with `em3 prepare`")
    meta = read_json(root / "dataset.json")
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{root / 'dataset.json'}: format version {meta.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "prepare the dataset again"
        )
    fields = _fields_from_json(meta["fields"])
    rows, num_events = meta["counts"]["interactions"], meta["counts"]["events"]
    dtypes = INTERACTION_DTYPES | {f"context_{f.name}": np.int32 for f in fields.context}
    dtypes |= {f"label_{name}": np.uint8 for name in meta.get("labels", {})}
    dtypes |= {f"amount_{name}": np.float32 for name in meta.get("amounts", {})}
    dtypes |= _present(root / "interactions", OPTIONAL_INTERACTION_DTYPES | _numbers(meta, "context"))
    interactions = {n: load_array(root / "interactions" / f"{n}.npy", d, (rows,)) for n, d in dtypes.items()}
    dtypes = EVENT_DTYPES | {f"field_{f.name}": np.int32 for f in fields.event}
    dtypes |= _present(root / "events", OPTIONAL_EVENT_DTYPES | _numbers(meta, "event"))
    events = {n: load_array(root / "events" / f"{n}.npy", d, (num_events,)) for n, d in dtypes.items()}
    counts = {p.stem: load_array(p, np.int64) for p in sorted((root / "counts").glob("*.npy"))}
    user_table, item_table = (_read_table(root / f"{n}s.parquet", meta["counts"][f"{n}s"]) for n in ("user", "item"))
    return Dataset(root, meta, fields, interactions, events, counts, user_table, item_table)


def _numbers(meta: dict, group: str) -> _Dtypes:
    return {value_column(name): np.float32 for name in meta.get("numbers", {}).get(group, {})}


def _present(folder: Path, dtypes: dict) -> dict:
    """Those of the columns that are there."""
    return {name: dtype for name, dtype in dtypes.items() if (folder / f"{name}.npy").exists()}


def _read_table(path: Path, rows: int) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path}: file missing; prepare the dataset again")
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); prepare the dataset again") from None
    if table.num_rows != rows:
        raise UserError(f"{path}: {table.num_rows} rows, dataset.json says {rows}; prepare the dataset again")
    return table
