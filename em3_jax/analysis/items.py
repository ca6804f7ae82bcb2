"""What the page shows of items: which ones, their titles, texts, fields and pictures."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from em3_jax.analysis.spaces import Analysed
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import FIRST_KNOWN, columns
from em3_jax.data import content
from em3_jax.data.format import Dataset
from em3_jax.data.images import open_image

PICTURE_WIDTH, PICTURE_HEIGHT, QUALITY = 112, 200, 70
NARROWEST, WIDEST, WITHOUT_PICTURES = 0.6, 1.8, 1.6  # width / height of the frame that pictures are cut to
LONGEST_TEXT = 300
FEW_VALUES = 40  # a field with no more tells groups apart by colour
CLICKS = "training clicks"


def chosen(analysed: Analysed, first: np.ndarray, cold: np.ndarray, popular: np.ndarray, most: int) -> np.ndarray:
    """[n] i64 rows, ascending, of the items on the page: all, or those asked for, cold and popular ones, then the most shown.

    Args:
      first: rows of the items asked for.
      cold, popular: rows of cold and popular items.
      most: items on the page.
    """
    if analysed.dataset.num_items <= most:
        return np.arange(analysed.dataset.num_items)
    by_clicks = popular[np.argsort(-analysed.clicks[popular], kind="stable")]
    by_showings = np.argsort(-analysed.shown, kind="stable")
    order = np.concatenate([first, cold[: most // 4], by_clicks[: most // 2], by_showings])
    _, place = np.unique(order, return_index=True)
    return np.sort(order[np.sort(place)[: max(most, len(first))]])


def titles(dataset: Dataset, rows: np.ndarray, column: str | None) -> tuple[str | None, list[str]]:
    """(the text column, the title of each row): the column named, or the first of the dataset; the id where there is none."""
    known = dataset.meta["text_columns"]
    if column is not None and column not in known:
        hint = nearest(column, known) if known else "it has none"
        raise UserError(f"--title {column}: the items of {dataset.root} have no such text column; {hint}")
    column = column or (known[0] if known else None)
    ids = dataset.item_table.column("id").take(rows).to_pylist()
    found = dataset.item_table.column(column).take(rows).to_pylist() if column else [None] * len(rows)
    return column, [
        _short(text) if text and text.strip() else f"item {item}" for text, item in zip(found, ids, strict=True)
    ]


def texts(dataset: Dataset, rows: np.ndarray, title: str | None) -> dict[str, list[str]]:
    """Name -> text of each row, for the text columns that neither are the title nor repeat a field."""
    fields = {field.name for field in dataset.fields.item}
    result = {}
    for name in dataset.meta["text_columns"]:
        if name != title and name.removesuffix("_text") not in fields:
            result[name] = [_short(text or "") for text in dataset.item_table.column(name).take(rows).to_pylist()]
    return result


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def fields(analysed: Analysed, rows: np.ndarray) -> list[dict[str, Any]]:
    """The fields to colour by: {"name", "words", "values": one list of places in words a row} or {"name", "numbers": one a row}.

    A field whose many values are all numbers, as years are, is a number. Training clicks come last.
    """
    dataset = analysed.dataset
    result: list[dict[str, Any]] = []
    words_of = dataset.meta["vocabularies"].get("item", {})
    for field, place in columns(dataset.fields.item).items():
        if field not in words_of or not len(words_of[field]):
            continue
        words = [str(word) for word in words_of[field]]
        ids = dataset.item_field_ids[rows, place]
        numbers = _as_numbers(words)
        if numbers is not None and len(words) > FEW_VALUES and ids.shape[1] == 1:
            known = ids[:, 0] >= FIRST_KNOWN
            value = numbers[np.maximum(ids[:, 0] - FIRST_KNOWN, 0)]
            result.append(
                {"name": field, "numbers": [v if k else None for v, k in zip(value.tolist(), known, strict=True)]}
            )
        else:
            values = [[int(v) - FIRST_KNOWN for v in row if v >= FIRST_KNOWN] for row in ids]
            used = sorted({value for row in values for value in row})  # a sample needs few of a large vocabulary
            place_of = {value: k for k, value in enumerate(used)}
            values = [[place_of[value] for value in row] for row in values]
            result.append({"name": field, "words": [words[value] for value in used], "values": values})
    result.append({"name": CLICKS, "numbers": analysed.clicks[rows].tolist(), "counts": True})
    return result


def _as_numbers(words: list[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def field_to_colour_by(known: list[dict[str, Any]], name: str | None) -> int:
    """The place of the field `name`; without a name, of the first with few values, else of the first."""
    names = [field["name"] for field in known]
    if name is not None:
        if name not in names:
            raise UserError(f"--field {name}: items have no such field to colour by; {nearest(name, names)}")
        return names.index(name)
    few = [k for k, field in enumerate(known) if len(field.get("words", ())) in range(2, FEW_VALUES + 1)]
    return few[0] if few else 0


def pictures(
    dataset: Dataset, rows: np.ndarray, order: np.ndarray, most: int, folder: str | None
) -> tuple[list[str], float]:
    """(one text a row: its first picture as a small JPEG in base64, empty where there is none; width / height of most of them).

    Args:
      order: [n] places in `rows`, those that get a picture first.
      most: pictures in all.
      folder: of `<item id>.jpg`, in place of the dataset's own.
    """
    result = [""] * len(rows)
    ratios: list[float] = []
    if most and _has_pictures(dataset, folder):
        paths = content.images(dataset, 1, folder)
        for place in order:
            value = paths.index[rows[place], 0]
            if value >= 0 and not result[place] and len(ratios) < most:
                result[place], ratio = _thumbnail(Path(paths.values[value]))
                ratios += [ratio] if ratio else []
    ratio = float(np.median(ratios)) if ratios else WITHOUT_PICTURES
    return result, min(max(ratio, NARROWEST), WIDEST)


def _has_pictures(dataset: Dataset, folder: str | None) -> bool:
    if folder is not None:
        return True
    table = dataset.item_table
    return "image" in table.column_names and table.column("image").null_count < table.num_rows


def _thumbnail(path: Path) -> tuple[str, float]:
    """(JPEG in base64, width / height); "" and 0 of a file that is no picture."""
    try:
        image = open_image(path.read_bytes())
    except Exception:  # Pillow's decoders raise what they like on damaged files; a page lives without a picture
        return "", 0.0
    image.thumbnail((PICTURE_WIDTH, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode(), image.width / image.height
