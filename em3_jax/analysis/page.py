"""The page: one HTML file with style, program, data and pictures inside, whose own policy forbids it any network."""

import base64
import hashlib
import html
import importlib.resources
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from em3_jax.analysis import items, maps
from em3_jax.analysis.similarity import Choice
from em3_jax.analysis.spaces import BASELINE_IDS, CONTENT, FROZEN, IDS, Analysed, Space
from em3_jax.core import strict_json
from em3_jax.serving.neighbours import Neighbours

SHOWN_NEIGHBOURS = 12
SCRIPTS = ("shared.js", "tables.js", "search.js", "map.js", "browse.js")  # in this order
ORDER = (CONTENT, FROZEN, IDS, BASELINE_IDS)


class Look(NamedTuple):
    """What the page shows.

    Attributes:
      field: field to colour the map by at first; None chooses one.
      title: text column of the titles; None takes the dataset's first.
      items: rows of items that are on the page at any rate; it opens with the first.
      most_items: items on the page.
      most_pictures: pictures on the page.
      images: folder of pictures in place of the dataset's own.
      seed: of the map.
    """

    field: str | None = None
    title: str | None = None
    items: tuple[int, ...] = ()
    most_items: int = 2000
    most_pictures: int = 2000
    images: str | None = None
    seed: int = 0


def contents(
    analysed: Analysed,
    tables: list[dict[str, Any]],
    cold: np.ndarray,
    popular: np.ndarray,
    choice: Choice,
    look: Look,
    done: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """All that the page knows, as JSON values.

    Args:
      tables: 8 and 9.
      cold, popular: rows of cold and popular items.
      done: called after the map of each of the spaces `ORDER`.
    """
    dataset, first = analysed.dataset, np.array(look.items, np.int64)
    rows = items.chosen(analysed, first, cold, popular, look.most_items)
    title_column, titles = items.titles(dataset, rows, look.title)
    known = items.fields(analysed, rows)
    field = items.field_to_colour_by(known, look.field)
    by_clicks = np.argsort(-analysed.clicks[rows], kind="stable")
    asked = np.searchsorted(rows, first)
    pictures, ratio = items.pictures(dataset, rows, np.concatenate([asked, by_clicks]), look.most_pictures, look.images)
    spaces = [analysed.spaces[key] for key in ORDER]
    positions = []
    for space in spaces:
        positions.append(maps.make(space.vectors[rows], space.present[rows], look.seed))
        done()
    positions = [positions[0], *(maps.turned(other, positions[0]) for other in positions[1:])]
    pictured = [place for place in by_clicks if pictures[place]]
    start = asked[0] if len(asked) else (pictured or by_clicks)[0]
    return {
        "model": analysed.model,
        "dataset": dataset.meta.get("name") or dataset.root.name,
        "runs": analysed.runs,
        "frozen": analysed.frozen_sets,
        "total": dataset.num_items,
        "cold_most": choice.cold_most,
        "popular_share": choice.popular_share,
        "tables": tables,
        "spaces": [{"key": space.key, "name": space.name, "about": space.about} for space in spaces],
        "ids": [str(item) for item in dataset.item_table.column("id").take(rows).to_pylist()],
        "titles": titles,
        "texts": items.texts(dataset, rows, title_column),
        "shown": analysed.shown[rows].tolist(),
        "clicks": analysed.clicks[rows].tolist(),
        "cold": np.flatnonzero(np.isin(rows, cold)).tolist(),
        "popular": np.flatnonzero(np.isin(rows, popular)).tolist(),
        "fields": known,
        "field": field,
        "neighbours": [nearest(space, rows) for space in spaces],
        "maps": [maps.whole(map_) for map_ in positions],
        "side": maps.SIDE,
        "start": int(start),
        "ratio": round(ratio, 3),
        "pictures": pictures,
    }


def nearest(space: Space, rows: np.ndarray) -> list[list[list[float]]]:
    """Of each item on the page, [places of its neighbours, their cosines]: exact, among the items on the page."""
    here = space.vectors[rows]
    present = space.present[rows]
    found, cosine = Neighbours(here, present).search(here, SHOWN_NEIGHBOURS, leave_out=np.arange(len(rows)))
    found[~present] = -1
    return [
        [places[places >= 0].tolist(), [round(float(value), 3) for value in of_item[places >= 0]]]
        for places, of_item in zip(found, cosine, strict=True)
    ]


def render(values: dict[str, Any]) -> str:
    """The HTML of what `contents` gives."""
    values = dict(values)
    pictures = values.pop("pictures")
    folder = importlib.resources.files("em3_jax.analysis") / "web"
    template, style = ((folder / name).read_text("utf-8") for name in ("page.html", "page.css"))
    program = "".join((folder / name).read_text("utf-8") for name in SCRIPTS)
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(program)}'; "
        "base-uri 'none'; form-action 'none'",
        "title": html.escape(f"Item neighbours: {values['dataset']}"),
        "style": style,
        "program": program,
        "data": as_script_data(values),
        "pictures": as_script_data(pictures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _hash(text: str) -> str:
    """What a content security policy calls the text of an element: nothing else may run or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_script_data(values: Any) -> str:
    """JSON that stands inside a script element whatever its texts hold: no text can end the element or begin a comment."""
    text = strict_json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
