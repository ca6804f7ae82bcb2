"""What items show before any encoder has seen it: their texts, and the image files that stand for them."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.core.values import canonical
from em3_jax.data.format import Dataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DIGEST_BYTES = 16


def digest(content: bytes) -> np.ndarray:
    """[16] u8, BLAKE2b of a file's or text's bytes: the identity of a piece of content."""
    return np.frombuffer(hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest(), np.uint8)


@dataclasses.dataclass(frozen=True)
class Content:
    """The raw content of all items, each distinct text or file once. Letters: I items, M slots of an item, V values.

    Attributes:
      values: [V] distinct texts, or paths of image files, in the order in which items first show them.
      index: [I, M] i32, place in `values` of an item's m-th text or frame; -1 = it has none there.
    """

    values: list[str]
    index: np.ndarray

    @staticmethod
    def of(columns: list[pa.Array]) -> "Content":
        """From M string columns of I rows; null is no content."""
        encoded = pa.concat_arrays([column.cast(pa.string()) for column in columns]).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        index = codes.reshape(len(columns), -1).T.astype(np.int32)
        return Content(encoded.dictionary.to_pylist(), index)

    @functools.cached_property
    def _by_value(self) -> tuple[np.ndarray, np.ndarray]:
        """(units in order of their value, the value of each)."""
        flat = self.index.ravel()
        order = np.argsort(flat, kind="stable")
        return order, flat[order]

    def units_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(units [u], rows [u]): every place i * M + m that shows one of `values` [b], and which of them it shows."""
        order, sorted_values = self._by_value
        first = np.searchsorted(sorted_values, values)
        count = np.searchsorted(sorted_values, values, side="right") - first
        rows = np.repeat(np.arange(len(values)), count)
        offset = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        return order[first[rows] + offset], rows


def texts(dataset: Dataset, fields: Iterable[str], join: str | None = None) -> Content:
    """The texts of all items, one slot a field, or one in all.

    Args:
      dataset: the dataset.
      fields: text columns of the items, or categorical fields, whose values are written out with commas. A text column
        `<name>_text` answers to `<name>` too. Empty: all text columns.
      join: put between the fields to make them one text; fields that an item lacks are left out. None keeps them apart.

    Raises:
      UserError: no such field, or the items have no texts.
    """
    fields = list(fields) or dataset.meta["text_columns"]
    if not fields:
        raise UserError(f"{dataset.root}: its items have no text columns; prepare it with some, e.g. --item-text title")
    columns = [_text_column(dataset, field) for field in fields]
    if join is not None:
        columns = [pc.binary_join_element_wise(*columns, join, null_handling="skip")]
    return Content.of([_none_if_blank(column) for column in columns])


def _text_column(dataset: Dataset, name: str) -> pa.Array:
    known = dataset.meta["text_columns"]
    for column in (name, f"{name}_text"):
        if column in known:
            return _none_if_blank(dataset.item_table.column(column).combine_chunks().cast(pa.string()))
    words = dataset.meta["vocabularies"].get("item", {}).get(name)
    if words is None:
        names = ", ".join([*known, *dataset.meta["vocabularies"].get("item", {})]) or "none"
        raise UserError(f"{dataset.root}: items have no field '{name}' to make text of; there are: {names}")
    ids = dataset.item_table.column(name).to_pylist()
    lists = ((value if isinstance(value, list) else [value]) for value in ids)
    return pa.array(
        [", ".join(str(words[k - FIRST_KNOWN]) for k in row if k >= FIRST_KNOWN) or None for row in lists], pa.string()
    )


def _none_if_blank(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(column), ""), pa.scalar(None, pa.string()), column)


def images(dataset: Dataset, frames: int, folder: str | Path | None = None) -> Content:
    """The image files of all items, as paths; up to `frames` of each, spread evenly where an item has more.

    Args:
      dataset: its items have a column `image`: a file, a list of files, or a folder of frames, relative to `image_root`.
      frames: most images of an item.
      folder: of `<item id>.jpg` (or another image) or `<item id>/` with frames, in place of the column.

    Raises:
      UserError: there is neither, or not one image is there.
    """
    if folder is not None:
        lists = _by_item_id(dataset, Path(folder))
    else:
        lists = _by_column(dataset)
    lists = [_spread(paths, frames) for paths in lists]
    width = max(map(len, lists), default=0)
    if width == 0:
        where = dataset.meta.get("image_root") if folder is None else folder
        raise UserError(f"{where}: holds no image of any item; say where they are with --images <folder>")
    columns = [pa.array([paths[m] if m < len(paths) else None for paths in lists], pa.string()) for m in range(width)]
    return Content.of(columns)


def _by_column(dataset: Dataset) -> list[list[str]]:
    if "image" not in dataset.item_table.column_names:
        raise UserError(
            f"{dataset.root}: its items have no images; say where they are with --images <folder of <item id>.jpg>"
        )
    root = Path(dataset.meta["image_root"])
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder (image_root of {dataset.root}); say where it is with --images <folder>"
        )
    result = []
    for value in dataset.item_table.column("image").to_pylist():
        paths = [root / path for path in (value if isinstance(value, list) else [value]) if path]
        result.append([file for path in paths for file in (_frames(path) if path.is_dir() else [str(path)])])
    return result


def _by_item_id(dataset: Dataset, folder: Path) -> list[list[str]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of <item id>.jpg or <item id>/ as --images")
    found: dict[str | None, list[str]] = {}
    for entry in sorted(os.scandir(folder), key=lambda entry: (entry.is_dir(), entry.name)):
        if entry.is_dir():
            found.setdefault(canonical(entry.name), _frames(Path(entry.path)))
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            found.setdefault(canonical(Path(entry.name).stem), [entry.path])
    return [found.get(canonical(item), []) for item in dataset.item_table.column("id").to_pylist()]


def _frames(folder: Path) -> list[str]:
    """Images of a folder in natural order: frame2 comes before frame10."""
    names = [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES)]
    natural = lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]  # noqa: E731
    return [str(folder / name) for name in sorted(names, key=natural)]


def _spread(paths: list[str], count: int) -> list[str]:
    """`count` of the paths, each from the middle of one of as many equal parts; all where there are no more."""
    if len(paths) <= count:
        return paths
    return [paths[int((k + 0.5) * len(paths) / count)] for k in range(count)]
