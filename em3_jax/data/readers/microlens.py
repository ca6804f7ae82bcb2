"""MicroLens_1M_x1, the data of the WWW 2025 multimodal CTR challenge (3.6 million impressions of short videos).

| file | columns |
|---|---|
| train.parquet, valid.parquet | user_id, item_id, likes_level, views_level, label (int), item_seq (list of int, 0 = padding) |
| item_info.parquet | item_id (row 0 is the padding item 0), item_tags (5 int, 0 = padding), item_emb_d128 (128 float) |
| item_feature.parquet, optional | item_id, item_title, txt_emb_BERT (768 float), img_emb_CLIPRN50 (1024 float) |
| item_images/<item_id>.jpg, optional | covers |

Each row brings its history; rows that follow each other with the same one share its events, which have no times of their
own (-1). The time of a row is its place in the files. likes_level and views_level belong to the impression's item.

test.parquet has no labels, so it is not read. What takes its place is the user's choice:

    halves        valid.parquet is cut in two: the first half valid, the second test (the default). Both come from where the
                  challenge's test comes from, which is not where train.parquet comes from.
    valid_file    all of valid.parquet is test, so that test AUC is the published "valid AUC", here without choosing by it;
                  valid is the last 1 % of train.parquet.

Rows of one user that follow each other are not cut: a border moves to the next row with another user.

Or --split holds out whole items or users of both files; by items or folds, histories are without those held out.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.data import canonical
from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.readers.encode import entity_table, image_paths, rows_of
from em3_jax.data.readers.files import place, require, require_columns, require_distinct
from em3_jax.data.readers.parquet import open_parquet, parquet_batches, read_parquet
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.splits import Whole, held_out, of_whole
from em3_jax.data.writer import DatasetWriter

LEVELS = list(range(1, 11))
ROWS = ["user_id", "item_id", "item_seq", "likes_level", "views_level", "label"]
INFO = ["item_id", "item_tags", "item_emb_d128"]
FEATURES = {"text": "txt_emb_BERT", "image": "img_emb_CLIPRN50"}
VALID_SHARE = 0.01
_CHUNK = 1 << 16
_HIGHEST_ID = 1 << 31  # of an item: a table of that length is made
_LISTS = {"item_seq": pa.int64(), "item_tags": pa.int64()}
_LISTS |= dict.fromkeys(("item_emb_d128", "txt_emb_BERT", "img_emb_CLIPRN50"), pa.float32())
_WHOLE = ("item_id", "likes_level", "views_level", "label")


def microlens(
    out: str | Path,
    *,
    source: str | Path,
    test: str = "halves",
    split: str = "",
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`.

    Args:
      source: the folder MicroLens_1M_x1.
      test: "halves" or "valid_file", see above.
      split: in place of `test`: "items:0.7,0.1,0.2", "users:0.8,0.1,0.1" or "folds:5:0", by a hash of
        the seed and the ids, see `em3 prepare table --help`.
      seed: of such a split.
      overwrite: replace an existing dataset.
    """
    source = Path(source)
    if test not in ("halves", "valid_file"):
        raise UserError(f"test '{test}': choose halves or valid_file")
    rule = held_out(split, "MicroLens", "--test")
    files = [source / "train.parquet", source / "valid.parquet"]
    info = source / "item_info.parquet"
    hint = "give the folder MicroLens_1M_x1 as --source"
    for path, columns in ((files[0], ROWS), (files[1], ROWS), (info, INFO)):
        require(path, hint)
        file = open_parquet(path)
        require_columns(path, columns, file.schema_arrow.names)
        if file.metadata.num_rows == 0:
            raise UserError(f"{path}: there are no rows; is it the right file?")
    items = read_parquet(info, INFO)
    items = pa.table({name: _plain(info, name, items.column(name)) for name in INFO})
    require_distinct(info, items.column("item_id"))
    _require_ids(info, items.column("item_id"))
    items = items.filter(pc.not_equal(items.column("item_id"), 0)).combine_chunks()  # without the padding item
    ids = items.column("item_id").combine_chunks()
    if not len(ids):
        raise UserError(f"{info}: there is no item but the padding; is it the right file?")
    with DatasetWriter(out, overwrite) as writer:
        users, sequence = _scan(files)
        part = None if rule is None else rule.of_each(ids if rule.kind == "item" else users, seed, None)
        known = np.ones(len(ids), bool)
        if rule is not None and rule.kind == "item":
            known &= part == 0
        _write_rows(writer, files, users, ids, sequence, known)
        rows = [open_parquet(path).metadata.num_rows for path in files]
        split_rule = _write_split(writer, rows, test) if rule is None else _write_parts(writer, rule, part)
        tags = _tags(info, items.column("item_tags"))
        extra, notes = _write_features(writer, source, items, ids)
        item_table, item_fields, item_words = entity_table("item", ids, {"tags": tags}, extra)
        user_table, user_fields, _ = entity_table("user", users, {})
        levels = tuple(Field(name, len(LEVELS) + FIRST_KNOWN) for name in ("likes_level", "views_level"))
        return writer.finish(
            name="MicroLens_1M_x1",
            users=user_table,
            items=item_table,
            fields=Fields(user_fields, item_fields, context=levels),
            vocabularies={
                "user": {},
                "item": item_words,
                "context": {field.name: LEVELS for field in levels},
                "event": {},
            },
            text_columns=["title"] if "title" in extra else [],
            provenance="MicroLens_1M_x1, WWW 2025 multimodal CTR challenge, recsys.westlake.edu.cn/MicroLens_1M_MMCTR",
            label_rule="column label",
            split_rule=split_rule,
            source_hash=hash_files([*files, info]),
            time_unit="order",
            extra={
                "source": str(source.absolute()),
                "image_root": str(source.absolute()),
                "notes": notes,
                **of_whole(rule),
                "rows": {file.name: rows_of_file(n, n, {}) for file, n in zip(files, rows, strict=True)},
            },
        )


def _batches(path: Path, columns: list[str]) -> Iterator[tuple[int, pa.Table]]:
    """(first row, rows) of a Parquet file, piece by piece, so that the file may be larger than memory."""
    rows, row = open_parquet(path).metadata.num_rows, 0
    with tqdm(total=rows, desc=path.name, unit="row", unit_scale=True, disable=None) as bar:
        for batch in parquet_batches(path, columns, _CHUNK):
            for name in columns:
                if batch.column(name).null_count:
                    bad = int(np.flatnonzero(batch.column(name).is_null().to_numpy(zero_copy_only=False))[0])
                    raise UserError(f"{place(path, row + bad)}: column '{name}' is empty; mend the file")
            yield row, pa.table({name: _plain(path, name, batch.column(name)) for name in columns}).combine_chunks()
            row += batch.num_rows
            bar.update(batch.num_rows)


def _plain(path: Path, name: str, column: canonical.Column) -> canonical.Column:
    """A column in the type that it has in the challenge's files; whole numbers may come as floats, decimals or text."""
    column = canonical.plain(column)
    if name == "user_id":
        numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
        kind = pa.int64() if any(is_kind(column.type) for is_kind in numbers) else pa.string()
    elif name in _LISTS:
        kind = pa.list_(_LISTS[name])
    else:
        kind = pa.int64() if name in _WHOLE else pa.string()
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0][:100]
        raise UserError(
            f"{path}: column '{name}' holds {column.type}, which is not {kind} ({reason}); write it as such"
        ) from None


def _require_ids(path: Path, ids: pa.ChunkedArray) -> None:
    values = ids.to_numpy()
    for row in np.flatnonzero((values < 0) | (values >= _HIGHEST_ID)):
        raise UserError(f"{place(path, row)}: item_id is {values[row]}; ids are numbers from 0 (padding) on")


def _matrix(path: Path, first: int, name: str, column: canonical.Column) -> np.ndarray:
    """[n, W] of a column of lists of one length."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        raise UserError(f"{place(path, first + row)}: column '{name}' is empty; mend the file")
    length = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(length != length[:1])
    if len(bad):
        raise UserError(
            f"{place(path, first + bad[0])}: '{name}' has {length[bad[0]]} values, the row before has {length[0]}; "
            "pad the lists to one length"
        )
    values = column.flatten()
    if values.null_count:
        empty = values.is_null().to_numpy(zero_copy_only=False)
        row = int(np.flatnonzero(empty)[0]) // max(length[0], 1)
        raise UserError(f"{place(path, first + row)}: a value of '{name}' is empty; mend the file")
    return values.to_numpy(zero_copy_only=False).reshape(len(column), -1)


def _scan(files: list[Path]) -> tuple[pa.Array, np.ndarray]:
    """(distinct user ids in order, [n] i64 number of each row's history, equal for equal ones)."""
    users, digests = [], []
    factors = np.random.default_rng(0).integers(1, 1 << 63, 1 << 12).astype(np.uint64)
    for path in files:
        for first, batch in _batches(path, ["user_id", "item_seq"]):
            users.append(pc.unique(batch.column("user_id")))
            if users[0].type != users[-1].type:
                raise UserError(
                    f"{path}: user_id holds {users[-1].type}, in {files[0].name} {users[0].type}; write one type"
                )
            sequence = _matrix(path, first, "item_seq", batch.column("item_seq")).astype(np.uint64)
            # A sum modulo 2^64 with random factors, counted from the end: padding on the left does not change it.
            digests.append((sequence * factors[len(factors) - sequence.shape[1] :]).sum(axis=1))
    ids = pc.unique(pa.chunked_array(users))
    return ids.take(pc.sort_indices(ids)), np.unique(np.concatenate(digests), return_inverse=True)[1]


def _write_rows(
    writer: DatasetWriter, files: list[Path], users: pa.Array, ids: pa.Array, sequence: np.ndarray, known: np.ndarray
) -> None:
    """Writes the interactions but the split, and the events, each distinct history once.

    Args:
      known: [I] bool, the items that histories may show.
    """
    dtypes = {
        "user": np.int32, "item": np.int32, "label": np.uint8, "time": np.int64, "context_likes_level": np.int32,
        "context_views_level": np.int32, "history_start": np.int64, "history_end": np.int64,
    }  # fmt: skip
    columns = {name: writer.column(f"interactions/{name}", len(sequence), dtype) for name, dtype in dtypes.items()}
    columns["time"][:] = np.arange(len(sequence))
    events = writer.appender("events/item", np.int32)
    ranges = np.full((sequence.max() + 1, 2), -1, np.int64)  # of the events, by number of the history
    row_of_item = np.full(int(pc.max(ids).as_py()) + 1, -1, np.int64)
    row_of_item[ids.to_numpy()] = np.arange(len(ids))
    begin = 0
    for path in files:
        for first, batch in _batches(path, ROWS):
            part = slice(begin, begin + batch.num_rows)
            value = {name: batch.column(name).to_numpy() for name in ROWS if name != "item_seq"}
            columns["user"][part] = rows_of(batch.column("user_id"), users)
            columns["item"][part] = _item_rows(path, first, "item_id", value["item_id"], row_of_item)
            _require_range(path, first, "label", value["label"], 0, 1)
            columns["label"][part] = value["label"]
            for name in ("likes_level", "views_level"):
                _require_range(path, first, name, value[name], 0, LEVELS[-1])
                columns[f"context_{name}"][part] = value[name] + 1  # 0 is unknown, level 1 the first known id
            items = _matrix(path, first, "item_seq", batch.column("item_seq"))
            new = np.unique(sequence[part], return_index=True)[1]
            new = np.sort(new[ranges[sequence[part][new], 0] < 0])
            found = _item_rows(path, first, "item_seq", items[new], row_of_item, rows=new)
            kept = (items[new] > 0) & known[found]
            length = kept.sum(axis=1)
            ends = events.rows + np.cumsum(length)
            ranges[sequence[part][new]] = np.stack([ends - length, ends], axis=1)
            events.append(found[kept])
            columns["history_start"][part], columns["history_end"][part] = ranges[sequence[part]].T
            begin += batch.num_rows
    events.close()
    writer.column("events/time", events.rows, np.int64)[:] = -1


def _item_rows(
    path: Path, first: int, name: str, items: np.ndarray, row_of_item: np.ndarray, rows: np.ndarray | None = None
) -> np.ndarray:
    """Rows of the item table, same shape as `items` [n] or [n, W]; where sequences have padding, anything."""
    rows = np.arange(len(items)) if rows is None else rows
    inside = (items >= 0) & (items < len(row_of_item))
    result = row_of_item[np.where(inside, items, 0)]
    bad = np.argwhere((result < 0) & ((items != 0) | (items.ndim == 1)))
    if len(bad):
        raise UserError(
            f"{place(path, first + rows[bad[0][0]])}: {name} {items[tuple(bad[0])]} is not in item_info.parquet; "
            "use files that belong together"
        )
    return result


def _require_range(path: Path, first: int, name: str, values: np.ndarray, low: int, high: int) -> None:
    bad = np.flatnonzero(~((values >= low) & (values <= high)))
    if len(bad):
        raise UserError(
            f"{place(path, first + bad[0])}: {name} is {values[bad[0]]}, not in {low}..{high}; mend the file"
        )


def _write_split(writer: DatasetWriter, rows: list[int], test: str) -> str:
    """Writes the split column; returns the rule in words."""
    user = npy.load(writer.path / "interactions" / "user.npy", mmap_mode="r")

    def next_user(row: int) -> int:
        while 0 < row < len(user) and user[row] == user[row - 1]:
            row += 1
        return row

    if test == "halves":
        borders = rows[0], next_user(rows[0] + rows[1] // 2)
        rule = "train.parquet train; first half of valid.parquet valid, second half test (test.parquet has no labels)"
    else:
        borders = next_user(rows[0] - round(VALID_SHARE * rows[0])), rows[0]
        rule = "train.parquet train, but its last 1 % valid; valid.parquet test (test.parquet has no labels)"
    column = writer.column("interactions/split", len(user), np.uint8)
    column[borders[0] :] = 1
    column[borders[1] :] = 2
    return rule


def _write_parts(writer: DatasetWriter, rule: Whole, part: np.ndarray | None) -> str:
    """Writes the split column of whole items or users; returns the rule in words.

    Args:
      part: [E] u8 of each item or user.
    """
    assert part is not None  # comes with the rule
    of_row = npy.load(writer.path / "interactions" / f"{rule.kind}.npy", mmap_mode="r")
    column = writer.column("interactions/split", len(of_row), np.uint8)
    for first in range(0, len(of_row), _CHUNK):
        column[first : first + _CHUNK] = part[of_row[first : first + _CHUNK]]
    return rule.told()


def _tags(path: Path, column: pa.ChunkedArray) -> tuple[np.ndarray, list]:
    """Ids [I, 5] (0 stays padding) and the tags."""
    tags = _matrix(path, 1, "item_tags", column.combine_chunks())
    values, place_of = np.unique(tags, return_inverse=True)
    padding = int(values[0] == 0)
    ids = place_of.reshape(tags.shape) + FIRST_KNOWN - padding
    return np.where(tags == 0, 0, ids).astype(np.int32), values[padding:].tolist()


def _write_features(
    writer: DatasetWriter, source: Path, items: pa.Table, ids: pa.Array
) -> tuple[dict[str, pa.Array], list[str]]:
    """Writes the feature sets there are, all f16; returns further item columns (title, image) and notes."""
    info, extended = source / "item_info.parquet", source / "item_feature.parquet"
    extra, notes = {}, []
    tokens = {"item_emb": (INFO[2], info, _matrix(info, 1, INFO[2], items.column(INFO[2]).combine_chunks()))}
    if extended.is_file():
        names = open_parquet(extended).schema_arrow.names
        require_columns(extended, ["item_id", "item_title", *FEATURES.values()], names)
        title = np.full(len(ids), None, object)
        for first, batch in _batches(extended, ["item_id", "item_title", *FEATURES.values()]):
            rows = rows_of(batch.column("item_id"), ids)
            known = rows >= 0
            title[rows[known]] = batch.column("item_title").to_numpy()[known]
            for name, column in FEATURES.items():
                values = _matrix(extended, first, column, batch.column(column))
                if name not in tokens:
                    tokens[name] = column, extended, np.zeros((len(ids), values.shape[1]), np.float16)
                tokens[name][2][rows[known]] = values[known]
        extra["title"] = pa.array(title, pa.string())
    else:
        notes.append("no item_feature.parquet: no titles, and no feature sets text and image")
    for name, (column, path, values) in tokens.items():
        values = values.astype(np.float16)[:, None]
        manifest = {"encoder": f"ready made, {path.name} {column}", "file_hash": hash_files([path])}
        writer.features(name, values, (values != 0).any(axis=-1), manifest, hash_ids(ids))
    if (source / "item_images").is_dir():
        extra["image"], gone = image_paths(source, [f"item_images/{item}.jpg" for item in ids.to_pylist()])
        notes += gone
    return extra, notes
