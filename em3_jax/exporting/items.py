"""What a service looks up of each item, computed a batch at a time; killed, it goes on where it stopped.

Letters: I items, n some of them, W width.
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xxhash
from tqdm import tqdm

from em3_jax import embeddings, store
from em3_jax.data.catalogue import CataloguePass
from em3_jax.data.format import FeatureSet
from em3_jax.data.pipeline import batches
from em3_jax.experiment import Experiment
from em3_jax.exporting.model import original_ids
from em3_jax.id_index import IdIndex
from em3_jax.processes import Interrupts
from em3_jax.types import State, UserError

SAVE_SECONDS = 5.0


def digests(feature_sets: list[FeatureSet], items: np.ndarray) -> np.ndarray:
    """[n, 2] u64 hashes (XXH3, 128 bits) of the content of ascending items [n]: all bytes of their tokens and masks."""
    found = np.empty((len(items), 16), np.uint8)
    if len(items) and items[-1] - items[0] + 1 == len(items):  # as they lie, without a copy
        items = slice(items[0], items[-1] + 1)
    parts = [
        np.ascontiguousarray(part[items]) for features in feature_sets for part in (features.tokens, features.mask)
    ]
    parts = [part.reshape(len(found), -1).view(np.uint8) for part in parts]
    for k in range(len(found)):
        digest = xxhash.xxh3_128()
        for part in parts:
            digest.update(part[k])
        found[k] = np.frombuffer(digest.digest(), np.uint8)
    return found.view(np.uint64)


class Encoded(NamedTuple):
    """What was done: `count` items encoded, the others taken over; `widths` of what is looked up, by name."""

    count: int
    widths: dict[str, int]


def encode_items(
    folder: Path, parts: Experiment, state: State, *, dtype: str, batch_size: int, reusable: store.Version | None
) -> Encoded:
    """Writes what services look up of each item, one row more for unknown items, and where it comes from.

    Args:
      folder: of the version in the making; what is there of it already is kept.
      dtype: of the vectors on disk.
      batch_size: items encoded at once.
      reusable: an earlier version of the same model, from which items with the same content are taken.
    """
    items, sets = parts.dataset.num_items, parts.feature_sets
    nothing = {name: np.asarray(one[0]) for name, one in parts.lookup(state, _nothing_known(parts)).items()}
    widths = {name: len(one) for name, one in nothing.items()}
    vectors = {
        name: store.array_file(folder, f"looked_up.{name}", (items + 1, width), dtype) for name, width in widths.items()
    }
    digest = store.array_file(folder, "content_digest", (items, 2), np.uint64)
    has_content = store.array_file(folder, "has_content", (items + 1,), np.bool_)
    count = 0
    if sets:
        has_content[:items] = embeddings.has_content(parts)
        todo = np.arange(items) if reusable is None else _take_over(reusable, parts, vectors, digest)
        count = len(todo)
        if count:
            _encode(folder, parts, state, todo, batch_size, vectors, digest)
    for name, one in nothing.items():
        vectors[name][items] = one
    for name, array in vectors.items():
        for start in range(0, items, 4096):
            if not np.isfinite(array[start : start + 4096]).all():
                raise UserError(
                    f"{folder}: some vectors '{name}' are not finite in {dtype}; choose --dtype float32, or look at the run"
                )
    for array in (*vectors.values(), digest, has_content):
        array.flush()
    return Encoded(count, widths)


def _encode(
    folder: Path,
    parts: Experiment,
    state: State,
    todo: np.ndarray,
    batch_size: int,
    vectors: dict[str, np.ndarray],
    digest: np.ndarray,
) -> None:
    """Encodes the items `todo` [n], from the batch on that progress.json names."""
    source = CataloguePass(todo, batch_size, () if parts.constants else tuple(parts.feature_sets))
    progress = folder / "progress.json"
    done = json.loads(progress.read_text(encoding="utf-8")) if progress.exists() else 0
    saved = time.monotonic()
    waiting: list[tuple[np.ndarray, dict[str, jax.Array]]] = []  # so that the devices compute while results are stored

    def keep(most: int) -> None:
        while len(waiting) > most:
            members, found = waiting.pop(0)
            for name, one in found.items():
                vectors[name][members] = np.asarray(one)[: len(members)]
            digest[members] = digests(parts.feature_sets, members)

    bar = tqdm(total=len(todo), initial=min(done * batch_size, len(todo)), unit=" items", desc="encoding")
    with bar, Interrupts() as interrupts:
        for k, batch in enumerate(batches(source, start=done, place=parts.place), start=done):
            members = todo[k * batch_size : (k + 1) * batch_size]
            waiting.append((members, parts.lookup(state, batch)))
            keep(most=2)
            bar.update(len(members))
            if interrupts.received or time.monotonic() - saved > SAVE_SECONDS:
                keep(most=0)
                _save(progress, [*vectors.values(), digest], k + 1)
                saved = time.monotonic()
            if interrupts.received:
                raise UserError(f"{folder}: stopped after {bar.n:,} items; run the same command again to go on")
        keep(most=0)


def _save(progress: Path, arrays: list[np.ndarray], count: int) -> None:
    """First the numbers, then the file that vouches for them."""
    for array in arrays:
        array.flush()
    store.write_json(progress, count)


def _nothing_known(parts: Experiment) -> dict[str, Any]:
    """A batch of one item without any content."""
    tokens = {f.name: np.zeros((1, *f.tokens.shape[1:]), f.tokens.dtype) for f in parts.feature_sets}
    masks = {f.name: np.zeros((1, f.tokens.shape[1]), bool) for f in parts.feature_sets}
    batch = {"item_id": np.zeros(1, np.int32), "item_mask": np.zeros(1, bool)}
    return batch | ({"tokens": tokens, "tokens_mask": masks} if tokens else {})


def _take_over(reusable: store.Version, parts: Experiment, vectors: dict, digest: np.ndarray) -> np.ndarray:
    """Copies the vectors of items whose content is as it was; returns the others [n]."""
    facts = reusable.manifest["serving"]
    index = IdIndex(reusable["item_words"], reusable["item_slots"], facts["item_ids"] == "text")
    row = index.find(original_ids(parts.dataset.item_table))
    for start in range(0, len(row), 4096):
        some = np.arange(start, min(start + 4096, len(row)))
        now = digests(parts.feature_sets, some)
        before = reusable["content_digest"][row[some]]
        row[some[(now != before).any(axis=1)]] = -1
        kept = some[row[some] >= 0]
        digest[kept] = now[row[some] >= 0]
        for name, array in vectors.items():
            array[kept] = reusable[f"looked_up.{name}"][row[kept]]
    return np.flatnonzero(row < 0)
