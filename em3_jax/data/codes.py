"""Code sets: the content of each item as a few small whole numbers, its semantic ID, as item fields of a dataset.

    codes/<name>/      codes.npy [I, ceil(L b / 8)] u8: an item's codes side by side, of b bits each, b those of K - 1
                       mask.npy [I] bool: the item has content
                       codebooks.npz f32: codebooks [L, K, E], and what brings content to them
                       items.parquet: id, digest of each item's content, so that an update codes what is new alone
                       manifest.json: kind, levels, size, seed, features, statistics, hashes

A set appears, or replaces another, by renaming a complete folder. The codes of an item belong to the
codebooks: rows of a table that a model has learnt for them mean nothing to others. So the values of
a code's field name their codebooks, and a run goes on with a grown dataset only where these stayed.

Letters: I items, L levels, K codes of a level, E width of what is coded.
"""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.core import npy, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, PADDING, Field
from em3_jax.core.lock import Lock
from em3_jax.data.features import publish_set, set_folder
from em3_jax.data.format import Dataset, hash_files, load_array, read_json

MOST_CODES = 1 << 16
"""Codes of a level: they are stored as u16 at most."""
_SAID = 8  # characters of the codebooks' hash that a value has


class CodeSet(NamedTuple):
    """The codes of all items.

    Attributes:
      name: of the set.
      codes: [I, L] u8 or u16; zeros where the item has no content.
      mask: [I] bool, whether it has.
      manifest: where they come from; "hash" is that of codes and mask, "codebooks" that of the codebooks.
    """

    name: str
    codes: np.ndarray
    mask: np.ndarray
    manifest: dict

    @property
    def facts(self) -> dict:
        """What has to be alike for a code to mean the same."""
        return {key: self.manifest[key] for key in ("codebooks", "levels", "size")}

    def describe(self) -> str:
        """What it is, in a line."""
        m = self.manifest
        made = f"{m['kind']} of {', '.join(m['features']) or m['run']}"
        size = f"{m['levels']} x {m['size']} codes in {num_bytes(m['levels'], m['size'])} bytes"
        return f"{self.name}: {made}, {size}, {int(self.mask.sum()):,} of {len(self.mask):,} items"


def statistics(codes: np.ndarray, mask: np.ndarray, size: int) -> dict:
    """How well items use their codes.

    Returns:
      usage: of each level, the share of its codes that some item has.
      perplexity: of each level, exp of the entropy of how items spread over its codes: K where evenly.
      items: with codes; colliding: those that share all codes with another; largest_collision: most
      items with the same codes, 1 where all differ, 0 without items.

    Args:
      codes: [I, L] whole numbers below `size`.
      mask: [I] bool; only these items count.
      size: K.
    """
    codes = codes[mask]
    counts = [np.bincount(level, minlength=size) for level in codes.T]
    perplexity = []
    for count in counts:
        share = count[count > 0] / max(len(codes), 1)
        perplexity.append(round(float(np.exp(-(share * np.log(share)).sum())), 2))
    together = np.unique(codes, axis=0, return_counts=True)[1] if len(codes) else np.zeros(0, np.int64)
    return {
        "usage": [round(float((count > 0).mean()), 4) for count in counts],
        "perplexity": perplexity,
        "items": len(codes),
        "colliding": int(together[together > 1].sum()),
        "largest_collision": int(together.max(initial=0)),
    }


def write_codes(
    dataset: Dataset,
    name: str,
    codes: np.ndarray,
    mask: np.ndarray,
    codebooks: Mapping[str, np.ndarray],
    digest: np.ndarray,
    manifest: dict,
    overwrite: bool = False,
) -> Path:
    """Adds the code set `name` to a dataset; it appears whole or not at all. Returns its folder.

    Args:
      codes, mask: see `CodeSet`.
      codebooks: name -> f32 array: what codes are made with, see `features.codes.Coder`.
      digest: [I, 16] u8 of each item's content.
      manifest: kind, levels, size, seed, features; hashes and statistics are added.
      overwrite: replace a code set of that name.

    Raises:
      UserError: the name is in use, or cannot be one; another process writes it.
    """
    final = set_folder(dataset.root, "codes", name)
    with Lock(final, beside=True, hint="wait for it, or choose another --name"):
        check_free(final, overwrite)
        folder = final.with_name(f".{name}.tmp-{os.getpid()}")
        try:
            folder.mkdir(parents=True)
            np.save(folder / "codes.npy", _packed(np.where(mask[:, None], codes, 0), manifest["size"]))
            np.save(folder / "mask.npy", mask.astype(np.bool_))
            # The stub takes any name for that of its own flag; none of these is.
            np.savez(folder / "codebooks.npz", **codebooks)  # type: ignore[arg-type]
            ids = [str(item) for item in dataset.item_table.column("id").to_pylist()]
            table = pa.table({"id": ids, "digest": pa.array([row.tobytes() for row in digest], pa.binary())})
            pq.write_table(table, folder / "items.parquet")
            manifest = manifest | {
                "statistics": statistics(codes, mask, manifest["size"]) | manifest.get("statistics", {}),
                "item_hash": dataset.meta["item_hash"],
                "hash": hash_files([folder / "codes.npy", folder / "mask.npy"]),
                "codebooks": _hash_arrays(codebooks),
            }
            (folder / "manifest.json").write_text(strict_json.dumps(manifest, indent=1), encoding="utf-8")
            publish_set(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return final


def check_free(final: Path, overwrite: bool) -> None:
    """Refuses a folder that is there, unless it may be replaced."""
    if final.exists() and not overwrite:
        raise UserError(f"{final}: code set name in use; choose another --name or pass --overwrite")


def _hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 of names, shapes and numbers; that of the file would have the time it was written at."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class Kept(NamedTuple):
    """What an update takes from the code set it goes on from.

    Attributes:
      codes, mask, digest: see `write_codes`, of the items then.
      place: item id, as text -> its row then.
      codebooks: name -> array.
      manifest: of that set.
    """

    codes: np.ndarray
    mask: np.ndarray
    digest: np.ndarray
    place: dict[str, int]
    codebooks: dict[str, np.ndarray]
    manifest: dict


def read_kept(folder: Path) -> Kept:
    """A code set in any folder, with what it was made with, for another catalogue to go on from.

    Raises:
      UserError: it is no code set, or one that is damaged.
    """
    manifest = _manifest(folder, f"{folder}: no code set; give the folder codes/<name> of a dataset")
    codes, mask = _arrays(folder, manifest, None)
    try:
        table = pq.read_table(folder / "items.parquet")
        ids = table.column("id").to_pylist()
        digest = np.frombuffer(b"".join(table.column("digest").to_pylist()), np.uint8).reshape(len(ids), -1)
        codebooks = npy.archive(folder / "codebooks.npz")
    except Exception as error:  # damaged bytes raise what they like
        raise UserError(f"{folder}: cannot be read ({str(error)[:100]}); make the codes again") from None
    if len(ids) != len(codes) or _hash_arrays(codebooks) != manifest["codebooks"]:
        raise UserError(f"{folder}: its files are not those that its manifest tells of; make the codes again")
    return Kept(codes, mask, digest, {item: row for row, item in enumerate(ids)}, codebooks, manifest)


def read_codes(dataset: Dataset, name: str) -> CodeSet:
    """The code set `name`, checked against this dataset's items.

    Raises:
      UserError: there is none, it is that of another catalogue, or it is damaged.
    """
    folder = dataset.root / "codes" / name
    have = sorted(path.name for path in (dataset.root / "codes").glob("[!.]*") if path.is_dir())
    there = f"{folder}: no such code set; this dataset has: {', '.join(have) or 'none'}; `em3 codes` makes one"
    manifest = _manifest(folder, there)
    if manifest["item_hash"] != dataset.meta["item_hash"]:
        raise UserError(
            f"{folder / 'manifest.json'}: item_hash is not that of the items in {dataset.root}; bring the codes up to "
            f"date with `em3 codes --data {dataset.root} --name {name} --from {folder} --overwrite`"
        )
    return CodeSet(name, *_arrays(folder, manifest, dataset.num_items), manifest)


def _manifest(folder: Path, missing: str) -> dict:
    if not (folder / "manifest.json").is_file():
        raise UserError(missing)
    manifest = read_json(folder / "manifest.json")
    needed = {"kind", "levels", "size", "features", "item_hash", "hash", "codebooks"}
    if not isinstance(manifest, dict) or not needed <= set(manifest):
        raise UserError(f"{folder / 'manifest.json'}: is not that of a code set; make the codes again")
    return manifest


def _arrays(folder: Path, manifest: dict, items: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(codes, mask) of a folder, of as many items as there are."""
    levels, size = manifest["levels"], manifest["size"]
    codes = _unpacked(load_array(folder / "codes.npy", np.uint8, (items, num_bytes(levels, size))), levels, size)
    mask = load_array(folder / "mask.npy", np.bool_, (len(codes),))
    if len(codes) and int(codes.max()) >= manifest["size"]:
        raise UserError(f"{folder / 'codes.npy'}: a code is {int(codes.max())}, of {manifest['size']}; make them again")
    return codes, mask


def num_bytes(levels: int, size: int) -> int:
    """Bytes that an item's codes take."""
    return -(-levels * _bits(size) // 8)


def _bits(size: int) -> int:
    return (size - 1).bit_length()


def _packed(codes: np.ndarray, size: int) -> np.ndarray:
    """[I, `num_bytes`] u8 of codes [I, L], the lowest bit of each first."""
    bits = codes[:, :, None].astype(np.uint16) >> np.arange(_bits(size), dtype=np.uint16) & 1
    return np.packbits(bits.reshape(len(codes), -1).astype(np.uint8), axis=1)


def _unpacked(stored: np.ndarray, levels: int, size: int) -> np.ndarray:
    """[I, L] u8, or u16 of more than 256 codes a level, of what `_packed` gives."""
    bits = np.unpackbits(stored, axis=1)[:, : levels * _bits(size)].reshape(len(stored), levels, -1)
    values = bits.astype(np.uint16) << np.arange(_bits(size), dtype=np.uint16)
    return values.sum(axis=2, dtype=np.uint8 if size <= 256 else np.uint16)


def with_codes(dataset: Dataset, sets: Sequence[CodeSet]) -> Dataset:
    """The dataset whose item fields include the codes of `sets`, after its own: whoever reads fields reads these.

    A field `<name>_<l>` has the code of level l, one value an item, for l = 1 to L; items without
    content have padding there. Its values are "<codebooks> <code>".

    Raises:
      UserError: the dataset has such a field already.
    """
    fields, table = list(dataset.fields.item), dataset.item_table
    vocabularies: dict[str, list[str]] = {}
    for one in sets:
        levels, size = one.manifest["levels"], one.manifest["size"]
        for level in range(levels):
            name = f"{one.name}_{level + 1}"
            if name in [field.name for field in fields] or name in table.column_names:
                raise UserError(
                    f"config.data.codes: '{one.name}' would make an item field '{name}', which {dataset.root} has "
                    "already; make the codes under another --name"
                )
            ids = np.where(one.mask, one.codes[:, level].astype(np.int32) + FIRST_KNOWN, PADDING)
            table = table.append_column(name, pa.array(ids.astype(np.int32)))
            fields.append(Field(name, size + FIRST_KNOWN))
            vocabularies[name] = [f"{one.manifest['codebooks'][:_SAID]} {code}" for code in range(size)]
    known = dataset.meta["vocabularies"]
    of_items = dict(known.get("item", {})) | vocabularies
    return dataclasses.replace(
        dataset,
        fields=dataclasses.replace(dataset.fields, item=tuple(fields)),
        item_table=table,
        meta=dataset.meta | {"vocabularies": dict(known) | {"item": of_items}},
    )
