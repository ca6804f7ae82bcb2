"""Systems that train an image encoder inside the click model, with their published ablations, as a list of runs.

Numbers beside the rows are DICM's GAUC (CIKM 2018: aggregators, ad and behaviour images, warm start), whose
baseline has the images' IDs; the others publish relative gains, or none that could be found. Systems are
variants of configs/pictures.py. On a split by items, or on folds of it, errors are by item, and on folds the
test splits are pooled.
"""

from collections.abc import Mapping
from typing import Any

from em3_jax.core.errors import UserError, nearest
from em3_jax.trials.runs import PlannedRun
from reproduce.tables import Group, Row, Table

CONFIG = "configs/pictures.py"
SYSTEMS = (  # label, run and variant
    ("DeepCTR: the candidate's picture, a net of 17 layers", "deepctr"),
    ("CNN: the same net without attention", "cnn"),
    ("SE: attention over channels", "se"),
    ("CBAM: attention over channels and places", "cbam"),
    ("CSCNN: both, told the item's category", "cscnn"),
    ("HCCM: fixed lower part, category beside squeezed maps", "hccm"),
)
AGGREGATORS = (("concat", 0.6232), ("max", 0.6236), ("sum", 0.6248), ("attentive", 0.6257), ("multi_query", 0.6260))
BASELINE = 0.6205
_EM3 = {  # with the variant id_only, which has no encoders: EM3 on vectors that one has made before
    "model.content": "end_to_end",
    "model.fusion": "fq_former",
    "model.cic.weight": 0.1,
}


def _em3(*features: str) -> Mapping[str, Any]:
    return _EM3 | {"data.features": features}


def _dicm() -> list[tuple[Row, PlannedRun]]:
    """DICM by aggregator, by whose pictures it sees, and by what of an earlier model it starts with."""

    def one(label: str, name: str, changes: Mapping[str, Any], paper: float, **others: str) -> tuple[Row, PlannedRun]:
        return Row(f"DICM, {label}", name, paper), PlannedRun(name, "dicm", changes, settings_of="dicm", **others)

    rows = []
    for name, paper in AGGREGATORS:
        run = "dicm" if name == "multi_query" else f"dicm_{name}"
        rows.append(one(f"{name.replace('_', '-')}", run, {"model.content_aggregator": name}, paper))
    best = {"model.content_aggregator": "multi_query"}
    rows += [
        one("the candidate's picture alone", "dicm_candidate", best | {"model.content_parts": ("item",)}, 0.6235),
        one("pictures of the behaviour alone", "dicm_behaviour", best | {"model.content_parts": ("user",)}, 0.6219),
    ]
    for label, parts, paper in (("all but IDs from", "all_but_ids", 0.6283), ("all from", "all", 0.6230)):
        changes = best | {"train.init_parts": parts}
        rows.append(one(f"{label} an earlier model", f"dicm_from_{parts}", changes, paper, init_from="dicm"))
    return rows


def table(only: tuple[str, ...] = ()) -> Table:
    """The table.

    Args:
      only: names of the runs whose rows are wanted, beside the baseline; none: all.

    Raises:
      UserError: there is no row of that name.
    """
    planned = [
        (Row("baseline (IDs alone)", "id_only", BASELINE), PlannedRun("id_only", "id_only", settings_of="id_only"))
    ]
    planned += [(Row(label, name), PlannedRun(name, name, settings_of=name)) for label, name in SYSTEMS]
    planned += _dicm()
    for label, name, features in (
        ("image vectors", "em3_image", ("image",)),
        ("text vectors", "em3_text", ("text",)),
        ("both", "em3_both", ("image", "text")),
    ):
        run = PlannedRun(name, "id_only", _em3(*features), settings_of="em3_both")
        planned.append((Row(f"EM3 on frozen {label}", name), run))
    names = [row.run for row, _ in planned]
    for name in only:
        if name not in names:
            raise UserError(f"--models {name}: no such row; {nearest(name, names)}")
    shown = [row for row, _ in planned if not only or row.run in only or row.run == "id_only"]
    runs = {run.name: run for _, run in planned}
    needed = {row.run for row in shown}
    needed |= {runs[name].init_from for name in needed}
    notes = (
        "EM3 reads the feature sets `image` and `text`, DICM `image`, the other systems the pictures' pixels. An "
        "earlier model is the DICM of the same seed, trained on the same rows; the paper's saw earlier days.",
    )
    kept = {name: run for name, run in runs.items() if name in needed}
    return Table("images", "Pictures in the ranker", (Group("", tuple(shown)),), kept, notes, metric="gauc")
