"""The rungs: ways for content to reach the ranker, from none to trained with the click, cheapest first."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from em3_jax.trials.runs import PlannedRun

IDS, FUSION = "ids", "em3"
POPULARITY = "popularity"
"""Of the row of what needs no model; it is no rung."""
LEMUR = "configs/lemur.py"
CODES = "verdict"
"""Name of the code set."""
FROZEN: Mapping[str, Any] = {"model.content": "pre_extracted", "model.cic.weight": 0.0}
_NOTHING_TRAINED: Mapping[str, Any] = {**FROZEN, "optim.multipliers": ()}


class Rung(NamedTuple):
    """A way for content to reach the ranker.

    Attributes:
      name: of its runs.
      label: as the page has it.
      about: what it does, in a line.
      cost: of a training example, in those of IDs alone; nominal, see `budget`.
      variant, changes: of the config file; see `PlannedRun`.
      config: file of its config, "" = that of the others.
      vectors_of: rung whose trained vectors it reads, frozen.
      settings_of: rung whose choice between fast and slow content it takes over.
      codes: whether it reads semantic IDs of the content, made before.
      trains: whether the click trains a content module, which then chooses how fast it learns.
    """

    name: str
    label: str
    about: str
    cost: float
    variant: str = ""
    changes: Mapping[str, Any] = {}
    config: str = ""
    vectors_of: str = ""
    settings_of: str = ""
    codes: bool = False
    trains: bool = False

    @property
    def waits_for(self) -> str:
        """The rung that has to be done before: it reads its vectors, or takes over its choice."""
        return self.vectors_of or self.settings_of


def _parts(*names: str) -> Mapping[str, Any]:
    return {"model.content_parts": names}


LADDER = (
    Rung(IDS, "IDs alone", "the ranking model without content", 1.0, "id_only"),
    Rung(
        "similarity",
        "IDs + cosines",
        "the mean and the largest cosine of the candidate's vectors with the history's",
        1.5,
        changes={**_NOTHING_TRAINED, **_parts("similarity")},
    ),
    Rung(
        "simtier",
        "IDs + SimTier",
        "the histogram of the same cosines (Sheng et al. 2024)",
        1.7,
        changes={**_NOTHING_TRAINED, **_parts("simtier")},
    ),
    Rung(
        "codes",
        "semantic IDs",
        "residual codes of the vectors, as item fields with rows of their own (QARM, TIGER)",
        1.4,
        "id_only",
        {"data.codes": (CODES,)},
        codes=True,
    ),
    Rung(
        "frozen",
        "frozen vectors",
        "one linear layer on each vector, and attention over the history's",
        2.5,
        changes={"model.fusion": "mean", "model.cic.weight": 0.0},
        trains=True,
    ),
    Rung(
        "make",
        "MAKE",
        "vectors that EM3 has trained for epochs, frozen, read by a fresh ranker (Sheng et al. 2024)",
        2.5,
        changes=FROZEN,
        vectors_of=FUSION,
    ),
    Rung(FUSION, "EM3", "the FQ-Former, trained with the click, and CIC", 5.0, trains=True),
    Rung(
        "em3_similarity", "EM3 + cosines", "both", 5.5, changes=_parts("item", "user", "similarity"), settings_of=FUSION
    ),
)
"""The rungs of every dataset with content."""


def of_raw(sets: tuple[str, ...]) -> tuple[Rung, ...]:
    """The rungs of datasets that hold raw content.

    Args:
      sets: its feature sets of raw content.
    """
    about = "an encoder of raw words and pictures that the click trains, and a memory bank (Han et al. 2025)"
    return (Rung("lemur", "LEMUR", about, 12.0, changes={"data.features": sets}, config=LEMUR),)


def planned(rung: Rung, share: float, settings: Mapping[str, Any], eval_every: int, source: str = "") -> PlannedRun:
    """A rung's run on a share of the training rows.

    Args:
      settings: those that the baseline has chosen, for all rungs.
      eval_every: steps between evaluations on all rows; a share has as many of them an epoch.
      source: name of the run whose vectors it reads.
    """
    changes = {"train.eval_every": max(round(eval_every * share), 1), "data.rows_share": share}
    changes |= {key: value for key, value in settings.items() if key not in rung.changes}
    made = {**changes, **rung.changes}
    return PlannedRun(
        run_name(rung.name, share), rung.variant, made, vectors_of=source, overlaid=rung.codes, config=rung.config
    )


def run_name(rung: str, share: float) -> str:
    """Of the folder, but for the seed: "em3_20" of 20 % of the rows."""
    return f"{rung}_{100 * share:g}".replace(".", "p")
