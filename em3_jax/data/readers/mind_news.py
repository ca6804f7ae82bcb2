"""What MIND's impressions name: users and news, numbered, and their histories, each stored once."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.data.readers.encode import encode, entity_table
from em3_jax.data.readers.mind_lines import blocks, words_of
from em3_jax.data.writer import Appender

COLUMNS = "id, category, subcategory, title, abstract, url, title entities, abstract entities"


class Numbers(dict):
    """Words, numbered from 0 in the order in which they come."""

    def of(self, words: pa.Array) -> np.ndarray:
        """[n] i64 of words [n], new ones among them."""
        found = words.dictionary_encode()
        numbers = [self.setdefault(word, len(self)) for word in found.dictionary.to_pylist()]
        return np.array(numbers, np.int64)[found.indices.to_numpy()]


class News:
    """The items: rows of the news.tsv files, and ids that are in none of them, in the order in which they come."""

    def __init__(self, folders: dict[str, Path]):
        self.columns, self.notes = _read_news([folder / "news.tsv" for folder in folders.values()])
        self.ids, self.others = self.columns[0], Numbers()

    def rows(self, ids: pa.Array) -> np.ndarray:
        """[n] i64 rows of the items."""
        found = pc.index_in(ids, value_set=self.ids)
        rows = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        new = rows < 0
        if new.any():
            rows[new] = len(self.ids) + self.others.of(ids.filter(pa.array(new)))
        return rows

    def table(self) -> tuple[pa.Table, tuple, dict]:
        """(table, fields, vocabularies), as `DatasetWriter.finish` takes them."""
        names = ("id", "category", "subcategory", "title", "abstract")
        absent = pa.nulls(len(self.others), pa.string())
        column = {n: pa.concat_arrays([own, absent]) for n, own in zip(names[1:], self.columns[1:], strict=True)}
        ids = pa.concat_arrays([self.ids, pa.array(list(self.others), pa.string())])
        if self.others:
            some = ", ".join(list(self.others)[:5]) + (", ..." if len(self.others) > 5 else "")
            self.notes.append(f"{len(self.others):,} news have no row in news.tsv, so no text and no category: {some}")
        encoded = {name: encode(column[name]) for name in names[1:3]}
        return entity_table("item", ids, encoded, {name: column[name] for name in names[3:]})


class Histories:
    """Distinct histories: `events` their items, `ends` where each ends in them.

    A history is known by a hash of 128 bits of its text.
    """

    def __init__(self, events: Appender):
        self.events, self._numbers = events, Numbers()
        self.ends: list[int] = [0]

    def of(self, cells: pa.StringArray, news: News) -> np.ndarray:
        """[n] i64 numbers of the histories in cells [n]; new ones are stored."""
        found = cells.dictionary_encode()
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in found.dictionary.to_pylist()]
        known = len(self._numbers)
        numbers = self._numbers.of(pa.array(digests, pa.binary(16)))
        new = np.flatnonzero(numbers >= known)  # texts are distinct, so these come in the order of their numbers
        words, length = words_of(found.dictionary.take(pa.array(new)))
        self.events.append(news.rows(words))
        self.ends += (self.ends[-1] + np.cumsum(length)).tolist()
        return numbers[found.indices.to_numpy()]


def _read_news(paths: list[Path]) -> tuple[list[pa.Array], list[str]]:
    """([id, category, subcategory, title, abstract] of the news of all files, each once, notes)."""
    parts: list[list[pa.Array]] = []
    for path in dict.fromkeys(paths):
        of_file = [(block.line, block.cells[:5]) for block in blocks(path, (5, 6, 7, 8), COLUMNS)]
        if not of_file:
            raise UserError(f"{path}: there are no rows; is it the right file?")
        columns = [pa.concat_arrays([cells[k] for _, cells in of_file]) for k in range(5)]
        require_once(path, np.concatenate([line for line, _ in of_file]), columns[0], "news id")
        parts.append(columns)
    columns = [pa.concat_arrays([part[k] for part in parts]) for k in range(5)]
    first = np.sort(np.unique(_codes(columns[0]), return_index=True)[1])
    seen = pc.index_in(columns[0], value_set=columns[0].take(pa.array(first))).to_numpy()
    unlike = np.zeros(len(seen), bool)
    for column in columns[1:]:
        unlike |= pc.not_equal(column, column.take(pa.array(first[seen]))).to_numpy(zero_copy_only=False)
    notes = [f"{int(unlike.sum()):,} rows of news.tsv differ from the first of their id, which is taken"]
    columns = [column.take(pa.array(first)) for column in columns]
    empty = [pc.equal(pc.utf8_trim_whitespace(column), "") for column in columns]
    nulls = [pc.if_else(e, pa.scalar(None, pa.string()), c) for e, c in zip(empty[1:], columns[1:], strict=True)]
    return [columns[0], *nulls], notes if unlike.any() else []


def require_once(path: Path, line: np.ndarray, ids: pa.Array, what: str) -> None:
    """Refuses an id that is empty or there twice in a file."""
    codes = _codes(ids)
    first = np.unique(codes, return_index=True)[1]
    if len(first) < len(codes):
        row = int(np.setdiff1d(np.arange(len(codes)), first)[0])
        before = int(line[first[codes[row]]])
        raise UserError(f"{path} line {line[row]}: {what} {ids[row]} again, as in line {before}; keep one of the lines")
    empty = np.flatnonzero(pc.equal(ids, "").to_numpy(zero_copy_only=False))
    for place in empty:
        raise UserError(f"{path} line {line[place]}: the {what} is empty; fill it in or drop the line")


def _codes(words: pa.Array) -> np.ndarray:
    return words.dictionary_encode().indices.to_numpy()
