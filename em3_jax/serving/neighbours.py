"""Nearest neighbours by cosine, found by Faiss: exact by default, approximate by choice.

Faiss proposes in f32, and f64 decides: proposals are scored again from the vectors themselves, so that equal vectors have equal
cosines, ties go to the lower row, and no answer depends on how many queries came at once. Imports neither training code nor,
before the first index is built, Faiss.
"""

import numpy as np

from em3_jax.core.errors import UserError

LINKS = 32  # of a vector in the approximate index
BUILD_BREADTH = 200  # candidates that it keeps in mind while a vector is linked
SEARCH_BREADTH = 128  # and while it is searched; at least twice the count asked for
SPARE = 8  # proposals beyond what is asked for: what rounding in f32 may have put in another order
ROUNDING = 1e-5  # of a cosine in f32
_BLOCK = 1 << 22  # numbers in f64 at once


class Neighbours:
    """An index over the rows of a matrix. Letters: I items, D width, n queries.

    Args:
      vectors: [I, D] f32, kept and not copied; memory-mapped ones may be read from several threads.
      present: [I] bool, False = the row is no item to be found. Rows of zeros are none either: they have no direction.
      approximate: a graph (HNSW) in place of all products: for millions of rows. It may miss a neighbour, and its links depend
        on the order of threads. Cosines are exact all the same.

    Raises:
      UserError: NaN or infinity among the vectors, or Faiss is not installed.
    """

    def __init__(self, vectors: np.ndarray, present: np.ndarray, approximate: bool = False):
        self._vectors, self._approximate = vectors, approximate
        self._length = np.zeros(len(vectors))  # [I] f64
        step = max(_BLOCK // max(vectors.shape[1], 1), 1)
        for start in range(0, len(vectors), step):
            block = np.asarray(vectors[start : start + step], np.float64)
            self._length[start : start + step] = np.sqrt((block * block).sum(axis=1))
        here = np.asarray(present, bool)
        bad = np.flatnonzero(here & ~np.isfinite(self._length))
        if len(bad):
            raise UserError(f"vectors, row {bad[0]}: NaN or infinity; leave the row out or mend it")
        self._rows = np.flatnonzero(here & (self._length > 0))  # index position -> row
        self._index = self._build(step)

    def _build(self, step: int):
        faiss = load_faiss()
        width = self._vectors.shape[1]
        if self._approximate:
            index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = BUILD_BREADTH
        else:
            index = faiss.IndexFlatIP(width)
        for start in range(0, len(self._rows), step):
            index.add(self._unit(self._vectors[self._rows[start : start + step]]))
        return index

    def __len__(self) -> int:
        """Rows that can be found."""
        return len(self._rows)

    @staticmethod
    def _unit(vectors: np.ndarray) -> np.ndarray:
        """[n, D] f32 of length 1; zeros stay zeros."""
        vectors = np.asarray(vectors, np.float64)
        length = np.sqrt((vectors * vectors).sum(axis=1, keepdims=True))
        return np.ascontiguousarray(vectors / np.where(length > 0, length, 1.0), np.float32)

    def search(
        self, queries: np.ndarray, count: int, leave_out: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The rows nearest to each query, the nearest first, of equal ones the lower row.

        Args:
          queries: [n, D]; one of zeros has no neighbours.
          count: how many.
          leave_out: [n] int, for each query a row that is not to be found, its own as a rule; -1 = none.

        Returns:
          (rows [n, count] i64, cosines [n, count] f32); -1 and NaN where there are fewer.
        """
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self._vectors.shape[1]:
            raise ValueError(f"queries have shape {queries.shape}, the vectors are {self._vectors.shape[1]} wide")
        if not np.isfinite(queries).all():
            raise UserError("a query holds NaN or infinity; mend it")
        leave_out = np.full(len(queries), -1) if leave_out is None else np.asarray(leave_out)
        rows = np.full((len(queries), count), -1, np.int64)
        cosine = np.full((len(queries), count), np.nan, np.float32)
        wanted = min(count + 1 + SPARE, len(self))  # one more, for it may be left out
        if wanted == 0 or count == 0:
            return rows, cosine
        step = max(_BLOCK // (wanted * self._vectors.shape[1]), 1)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            proposed, position = self._propose(queries[part], wanted)
            for k, query in enumerate(np.asarray(queries[part], np.float64), start):
                if not query.any():
                    continue
                places = position[k - start]
                candidates = self._rows[np.sort(places[places >= 0])]
                found, score = self._decide(query, candidates, leave_out[k], count)
                missed = not self._approximate and wanted < len(self)
                if missed and (len(found) < count or score[-1] <= proposed[k - start, -1] + ROUNDING):
                    found, score = self._decide(
                        query, self._rows, leave_out[k], count
                    )  # a tie longer than the proposals
                rows[k, : len(found)], cosine[k, : len(found)] = found, score
        return rows, cosine

    def _propose(self, queries: np.ndarray, wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Faiss's own answer: (cosines [n, wanted] f32, positions [n, wanted] i64, -1 = none)."""
        if not self._approximate:
            return self._index.search(self._unit(queries), wanted)
        breadth = load_faiss().SearchParametersHNSW(efSearch=max(SEARCH_BREADTH, 2 * wanted))
        return self._index.search(self._unit(queries), wanted, params=breadth)

    def _decide(self, query: np.ndarray, rows: np.ndarray, left_out: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `count` of `rows` [r] (ascending) without `left_out`: (rows, cosines f32)."""
        rows = rows[rows != left_out]
        length = np.sqrt((query * query).sum())
        step = max(_BLOCK // len(query), 1)
        scores = [
            (np.asarray(self._vectors[part], np.float64) * query).sum(axis=1) / (self._length[part] * length)
            for part in (rows[start : start + step] for start in range(0, len(rows), step))
        ]
        score = np.concatenate([*scores, np.zeros(0)]).astype(np.float32)
        best = np.argsort(-score, kind="stable")[:count]
        return rows[best], score[best]


def load_faiss():
    """The package.

    Raises:
      UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"Faiss cannot be loaded ({error}); install it with `pip install faiss-cpu`") from None
    return faiss
