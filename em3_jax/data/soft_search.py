"""The past events whose items' content is most like a candidate's (SIM's soft search; the first stage, GSU, of MUSE).

Wu et al., MUSE: a simple yet effective multimodal search-based framework for lifelong user interest modeling (2025),
section 3.2: the K of a user's events with the largest product of content vectors, which stand still. What is found of
a dataset's rows depends on neither step nor parameters, so it is found once, user by user as products of matrices,
and kept beside the dataset: a batch reads K numbers a row. Letters: n rows, I items, E width, K slots.

    features/.similar_events/<key>.npy    [n, K] u16 or u32: how many events before the row's newest one; 0 = none
"""

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.progress import Progress
from em3_jax.core.segments import Segment, by_content
from em3_jax.data.format import Dataset, FeatureSet, load_array

FOLDER = ".similar_events"  # in features/, where files may be added to a dataset
AT_ONCE = 1 << 18  # cosines, which stay in a processor's cache
MOST_BYTES = 1 << 30  # of vectors in f32; of more items they are kept in f16
_ITEMS_AT_ONCE = 1 << 14


def check_sets(sets: Sequence[FeatureSet]) -> None:
    """Refuses feature sets that no content can be compared by."""
    for one in sets:
        if one.is_raw:
            raise UserError(
                f"config.data.similar_content: '{one.name}' holds what an encoder is yet to read; name extracted "
                "features, or what `em3 vectors` stored"
            )


def content_vectors(sets: Sequence[FeatureSet]) -> np.ndarray:
    """[I + 1, E] what the content of items is compared by: unit vectors; zeros without any, as the last row has it.

    Of each feature set the sum of its tokens, each standardised over its width as models read them, at length 1;
    of several sets these side by side.
    """
    items = len(sets[0].tokens)
    width = sum(one.tokens.shape[-1] for one in sets)
    dtype = np.float32 if items * width * 4 <= MOST_BYTES else np.float16
    result = np.zeros((items + 1, width), dtype)
    for start in range(0, items, _ITEMS_AT_ONCE):
        some = np.arange(start, min(start + _ITEMS_AT_ONCE, items))
        found = np.concatenate([_unit(_summed(*one.of_items(some))) for one in sets], axis=1)
        result[some] = _unit(found)
    return result


def _summed(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n, E] f32 sums of standardised tokens [n, N, E], of those that there are."""
    x = tokens.astype(np.float32)
    x -= x.mean(axis=-1, keepdims=True)
    x /= np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return np.einsum("ine,in->ie", x, mask.astype(np.float32))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


class SoftSearch:
    """Finds the events of a dataset by content.

    Args:
      dataset: whose events.
      vectors: what gives those of `content_vectors`.
      digest: of what they are made from.
    """

    def __init__(self, dataset: Dataset, vectors: Callable[[], np.ndarray], digest: str):
        self._item, self._vectors, self._digest = np.asarray(dataset.events["item"]), vectors, digest
        self._tables: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()  # batches are made in several threads

    @functools.cached_property
    def _has_content(self) -> np.ndarray:
        return np.asarray(self._vectors().any(axis=-1))

    def __call__(
        self, segment: Segment, item: np.ndarray, start: np.ndarray, end: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """([B, K] i64 places of the events of each row, ascending; [B, K] bool whether there is one).

        Args:
          segment: with K, and the last events among which they are sought.
          item: [B] the candidates.
          start, end: [B] i64 ranges of the examples' histories.
        """
        low, vectors = np.maximum(start, end - segment.within) if segment.within else start, self._vectors()
        place = end[:, None] + np.arange(-segment.length, 0)  # where all are taken, as many users have no more
        mask = (place >= low[:, None]) & (end - low <= segment.length)[:, None]
        place = np.where(mask, place, 0)
        if mask.any():
            mask &= self._has_content[self._item[place]] & self._has_content[item][:, None]
            order = np.argsort(mask, axis=1, kind="stable")  # at the end, as what is chosen of more stands
            place, mask = np.take_along_axis(place, order, axis=1), np.take_along_axis(mask, order, axis=1)
        for rows in _together(start, low, end, segment.length):
            first, last = int(low[rows].min()), int(end[rows].max())
            at = np.arange(first, last)
            allowed = (at >= low[rows, None]) & (at < end[rows, None])
            found, some = by_content(vectors, item[rows], self._item[first:last], segment.length, allowed)
            place[rows], mask[rows] = first + found, some
        return np.where(mask, place, 0), mask

    def of_dataset(self, segment: Segment, dataset: Dataset) -> np.ndarray:
        """[n, K] how far before a row's `history_end` each event stands, 0 = none; of all rows of the dataset.

        Found now, or read where it was kept.
        """
        told = f"{dataset.meta['data_hash']} {self._digest} {segment.length} {segment.within} at the end"
        key = hashlib.sha256(told.encode()).hexdigest()[:32]
        with self._lock:
            if key not in self._tables:
                self._tables[key] = self._kept(segment, dataset, key)
            return self._tables[key]

    def _kept(self, segment: Segment, dataset: Dataset, key: str) -> np.ndarray:
        path = dataset.root / "features" / FOLDER / f"{key}.npy"
        rows = len(dataset.interactions["item"])
        if path.is_file():
            return load_array(path, None, (rows, segment.length))
        if not os.access(dataset.root / "features", os.W_OK):
            table = np.zeros((rows, segment.length), np.uint32)
            self._fill(segment, dataset, table)
            return table
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        columns = dataset.interactions
        longest = int((columns["history_end"] - columns["history_start"]).max(initial=0))
        dtype = np.uint16 if longest <= np.iinfo(np.uint16).max else np.uint32
        try:
            table = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(rows, segment.length))
            with open(temporary, "r+b") as file:  # a full disk is an error now, not a crash (SIGBUS) later
                os.posix_fallocate(file.fileno(), 0, max(temporary.stat().st_size, 1))
            self._fill(segment, dataset, table)
            os.replace(temporary, path)
        except OSError as error:
            size = rows * segment.length * np.dtype(dtype).itemsize
            raise UserError(
                f"{path}: similar events cannot be kept ({error.strerror or error}); they take {size:,} bytes, free space "
                "or choose a smaller config.data.similar_length"
            ) from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        return load_array(path, dtype, (rows, segment.length))

    def _fill(self, segment: Segment, dataset: Dataset, table: np.ndarray) -> None:
        """Fills a table user by user; the rows of a user stand together in a block."""
        item, start, end = (np.asarray(dataset.interactions[name]) for name in ("item", "history_start", "history_end"))
        order = np.lexsort((end, start))
        size = 1 << 12
        blocks = [order[k : k + size] for k in range(0, len(order), size)]

        def fill(rows: np.ndarray) -> int:
            place, mask = self(segment, item[rows], start[rows], end[rows])
            table[rows] = np.where(mask, end[rows, None] - place, 0)
            return len(rows)

        progress = Progress(len(order), unit="row")
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            for done in pool.map(fill, blocks):
                progress.advance(done)
        finally:
            pool.shutdown(cancel_futures=True)  # of an interrupt
            progress.close()


def _together(start: np.ndarray, low: np.ndarray, end: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Rows [r] of one user each whose histories, longer than K, are looked through at once: `AT_ONCE` cosines, about."""
    order = np.lexsort((end, start))
    order = order[end[order] - low[order] > length]
    if not len(order):
        return
    cuts = np.flatnonzero(np.diff(start[order])) + 1
    for rows in np.split(order, cuts):
        k = 0
        while k < len(rows):
            reach = end[rows[k:]] - low[rows[k]]  # ascending, as the ends are
            fits = np.flatnonzero(reach * np.arange(1, len(reach) + 1) > AT_ONCE)
            size = max(int(fits[0]) if len(fits) else len(reach), 1)
            yield rows[k : k + size]
            k += size
