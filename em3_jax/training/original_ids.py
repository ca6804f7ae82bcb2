"""What the ids of a dataset stand for, as keys: the same ones whatever the dataset numbers its ids by."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.fields import Field
from em3_jax.core.values import canonical
from em3_jax.data.append import Appended
from em3_jax.data.canonical import forms_of
from em3_jax.data.format import Dataset
from em3_jax.tables import id_keys
from em3_jax.tables.id_keys import Keys, TextBlock, Texts

LARGE = pa.large_string()
WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # the one form of a number, of a size that 64 bits hold
UNKNOWN = -1  # the word of a field's unknown id, of kind OTHER: known ids are counted from 0


def _fields(dataset: Dataset) -> list[tuple[str, Field]]:
    return [(group, field) for group, fields in dataset.fields.groups() for field in fields]


def _first(fields: list[tuple[str, Field]]) -> np.ndarray:
    return 1 + np.cumsum([0, *(field.size - 1 for _, field in fields)])[:-1]


def always(dataset: Dataset) -> np.ndarray:
    """[n] i64 table rows that are in each batch: of unknown ids, and of all values of events' fields, which are the last."""
    of_events = sum(field.size - 1 for field in dataset.fields.event)
    count = dataset.fields.num_rows
    return np.union1d(_first(_fields(dataset)), np.arange(count - of_events, count))


class OriginalIds:
    """The keys of a dataset's table rows, found when they are asked for.

    Args:
      dataset: the opened dataset.
      texts: where ids that are texts are kept.

    Attributes:
      fields: "item/category" of each, in the order of table rows.
      first: [fields] i64 table row of the unknown id of each.
    """

    def __init__(self, dataset: Dataset, texts: Texts):
        self._dataset, self._texts = dataset, texts
        self._own = _fields(dataset)
        self.fields = [f"{group}/{field.name}" for group, field in self._own]
        self.first = _first(self._own)
        self._values: dict[int, pa.Array | pa.ChunkedArray | None] = {}

    def keys(self, rows: np.ndarray) -> tuple[Keys, "Kept"]:
        """(keys of table rows [n], none of them padding; which of these are texts)."""
        of = np.searchsorted(self.first, rows, side="right") - 1
        n = len(rows)
        keys = Keys(of.astype(np.uint16), np.zeros(n, np.uint8), np.zeros(n, np.int64), np.zeros(n, np.uint64))
        kept = Kept(self._texts, keys.field)
        for field in np.unique(of):
            which = np.flatnonzero(of == field)
            ids = rows[which] - self.first[field] - 1
            is_unknown = ids == UNKNOWN
            _set(keys, which[is_unknown], id_keys.of_numbers(field, ids[is_unknown], id_keys.OTHER))
            self._fill(int(field), which[~is_unknown], ids[~is_unknown], keys, kept)
        return keys, kept

    def unknown_of(self) -> np.ndarray:
        """[table rows] i64 the row of the unknown id of each row's field; 0 of padding."""
        rows = np.zeros(self._dataset.fields.num_rows, np.int64)
        rows[self.first] = self.first
        return np.maximum.accumulate(rows)

    def _fill(self, field: int, which: np.ndarray, ids: np.ndarray, keys: Keys, kept: "Kept") -> None:
        """Sets `keys` at `which` to those of a field's known ids, counted from 0."""
        column = self._column(field)
        if column is None:
            _set(keys, which, id_keys.of_numbers(field, ids, id_keys.OTHER))
            return
        values = column.take(pa.array(ids))
        values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
        if pa.types.is_signed_integer(values.type):
            numbers = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
            _set(keys, which, id_keys.of_numbers(field, numbers))
            return
        texts = forms_of(values).cast(LARGE)
        is_whole = pc.match_substring_regex(texts, WHOLE).to_numpy(zero_copy_only=False).astype(bool)
        numbers = texts.filter(pa.array(is_whole)).cast(pa.int64()).to_numpy(zero_copy_only=False)
        _set(keys, which[is_whole], id_keys.of_numbers(field, numbers))
        block, which = text_block(texts.filter(pa.array(~is_whole))), which[~is_whole]
        hashes = block.hashes()
        _set(keys, which, id_keys.of_texts(field, self._texts.find(block, hashes), hashes))
        kept.add(which, block, hashes)

    def _column(self, field: int) -> pa.Array | pa.ChunkedArray | None:
        """The values of a field's known ids; None where the dataset does not tell them, or ids keep their numbers."""
        if isinstance(self._dataset, Appended):
            return None
        if field not in self._values:
            group, own = self._own[field]
            if own is getattr(self._dataset.fields, group)[0] and group in ("user", "item"):
                table = self._dataset.user_table if group == "user" else self._dataset.item_table
                self._values[field] = table.column("id").combine_chunks()
            else:
                values = self._dataset.meta["vocabularies"].get(group, {}).get(own.name, [])
                tells = len(values) == own.size - 2
                self._values[field] = pa.array(map(canonical, values), LARGE) if tells else None
        return self._values[field]


class Kept:
    """Texts among some keys, to be kept where their ids are admitted."""

    def __init__(self, texts: Texts, field: np.ndarray):
        self._texts, self._field = texts, field
        self._blocks: list[tuple[np.ndarray, TextBlock, np.ndarray]] = []

    def add(self, which: np.ndarray, block: TextBlock, hashes: np.ndarray) -> None:
        """Takes up the texts of keys number `which` [n], ascending, all of one field."""
        self._blocks.append((which, block, hashes))

    def words(self, keys: Keys, which: np.ndarray) -> np.ndarray:
        """[n] i64 the words of keys `which` [n], whose texts are kept from now on."""
        words = keys.word.copy()
        for places, block, hashes in self._blocks:  # one field after the other, as they may have a text in common
            mine = np.flatnonzero(np.isin(places, which))
            some, of = block.take(mine), hashes[mine]
            number = self._texts.find(some, of)
            new = np.flatnonzero(number < 0)
            number[new] = self._texts.add(some.take(new), of[new])
            words[places[mine]] = number
        return words[which]


def text_block(texts: pa.Array) -> TextBlock:
    """The bytes of texts of type large_string, none null."""
    _, offsets, data = texts.buffers()
    ends = (
        np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if offsets
        else np.zeros(1, np.int64)
    )
    bytes_ = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return TextBlock(bytes_, ends[:-1], np.diff(ends))


def _set(keys: Keys, which: np.ndarray, some: Keys) -> None:
    for target, source in zip(keys, some, strict=True):
        target[which] = source
