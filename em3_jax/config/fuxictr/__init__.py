"""An experiment of FuxiCTR in the terms of em3_jax: a mapping for `em3 prepare table`, and a recipe.

DIN, SIM, DCNv2, DeepFM, WideDeep, and of several labels MMoE, PLE and SharedBottom are known.
FuxiCTR has columns where em3_jax has users, items and impressions: columns of ids are found by
their names, or named; others become fields of the impressions, or of the items where the dataset
has a file of them (`item_info`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.config import parse, recipes, schema
from em3_jax.config.fuxictr.columns import Columns
from em3_jax.config.fuxictr.settings import OLD_NAMES, settings_of

EVENTS = "events.parquet"


class Converted(NamedTuple):
    """What an experiment becomes.

    Attributes:
      mapping: TOML for `em3 prepare table --mapping`.
      recipe: Python for `em3 train --config`.
      notes: what is not carried over, a line a key.
      user_info: file of users' sequences, of which `sequences.write` makes the events that the mapping names; None without.
      ids: the columns of users' and items' ids.
    """

    mapping: str
    recipe: str
    notes: list[str]
    user_info: Path | None = None
    ids: tuple[str, str] = ("", "")


def convert(
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    name: str,
    folder: Path,
    user: str = "",
    item: str = "",
    out: Path = Path(),
) -> Converted:
    """The experiment in the terms of em3_jax.

    Args:
      model, dataset: its sections of the two files.
      name: of the experiment.
      folder: of the dataset's file, which its paths are relative to.
      user, item: columns of ids; "" = found by their names.
      out: the folder for what is made besides.

    Raises:
      UserError: the model is not known, or ids are not found.
    """
    model = {OLD_NAMES.get(key, key): value for key, value in model.items()}
    columns = Columns(dataset, model, folder, user, item)
    settings, notes = settings_of(model, columns)
    settings = {"data.root": "data"} | settings
    _check(settings)
    amounts = [key.removeprefix(LOSSES) for key in settings if key.startswith(LOSSES)]
    further = [label for label in settings.get("model.heads.labels", ()) if label not in amounts]
    events = None if columns.user_info is None else out / EVENTS
    mapping = columns.mapping(further, amounts, events)
    return Converted(mapping, _recipe(name, settings), [*notes, *columns.notes], columns.user_info, columns.ids)


LOSSES = "model.heads.losses."


def _recipe(name: str, settings: Mapping[str, Any]) -> str:
    plain_name = re.sub(r"[^\w .:/-]", "_", name)
    return "\n".join(
        [
            f'"""{plain_name} of FuxiCTR, by `em3 convert-config`.',
            "",
            "em3 prepare table --mapping mapping.toml --out data",
            'em3 train --config=recipe.py --config.data.root=data --workdir=run"""',
            "",
            "from em3_jax.config import parse, recipes, schema",
            "",
            "SETTINGS = {",
            *(f"    {key!r}: {value!r}," for key, value in settings.items()),
            "}",
            "",
            "",
            'def get_config(arg: str = ""):',
            "    config = parse.editable(schema.Ranking())",
            "    for name, value in SETTINGS.items():",
            "        recipes.change(config, name, value)",
            "    return config",
            "",
        ]
    )


def _check(settings: Mapping[str, Any]) -> None:
    """Refuses values that a config cannot have."""
    config = parse.editable(schema.Ranking())
    for name, value in settings.items():
        recipes.change(config, name, value)
    parse.parse(config)
