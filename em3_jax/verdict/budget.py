"""How much of the ladder a budget of time holds: a plan that depends on the data, the budget and the cores alone.

The estimate is nominal, not timed: the same command plans the same on every machine of as many cores,
so that its page is the same. Costs were measured on 2 cores, see benchmarks/NOTES.md.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from em3_jax.core.errors import UserError
from em3_jax.verdict.ladder import IDS, Rung

SHARES = (0.2, 0.4, 1.0)
"""Of the top stage's rows."""
SETTINGS_TRIED = 3  # by IDs alone, at the smallest share
FIXED = 9.0  # seconds of a run on one core for starting, compiling, scoring
EXAMPLE = 3.5e-5  # seconds of a core for an example of IDs alone
EPOCHS = 9.0  # that a run takes before its patience ends, about
LEAST_ROWS = 2_000  # of the top stage
SEEDS = (3, 2)
MORE_OF_IDS = 2  # seeds: they are cheap, and tell how far a result moves from seed to seed
KEPT = (3, 2)  # content rungs that the first and the second stage hand on
UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


class Plan(NamedTuple):
    """What is run.

    Attributes:
      top: share of the training rows that the last stage has.
      seeds: of the content rung that is chosen; IDs alone have `MORE_OF_IDS` more.
      seconds: estimate of the time it takes.
    """

    top: float
    seeds: int
    seconds: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the training rows, a stage each."""
        return tuple(share * self.top for share in SHARES)

    @property
    def seeds_of_ids(self) -> int:
        return self.seeds + MORE_OF_IDS


def seconds_of(text: str) -> float:
    """900.0 of "15min", "900s", "0.25h".

    Raises:
      UserError: it is no such time.
    """
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(number) :].strip()
    try:
        value = float(number) * UNITS[unit]
    except (ValueError, KeyError):
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--budget {text}: give a time, such as 15min, 900s or 2h")
    return value


def plan(rows: int, rungs: Sequence[Rung], budget: float, cores: int) -> Plan:
    """The largest plan that fits.

    Args:
      rows: of the training split.
      budget: in seconds.
      cores: that runs share.

    Raises:
      UserError: not even the smallest fits; says how much it takes.
    """
    least = min(LEAST_ROWS / rows, 1.0)
    tops = [1.0]
    while tops[-1] / 2 > least:
        tops.append(tops[-1] / 2)
    plans = [Plan(top, seeds, estimate(rows * top, rungs, seeds, cores)) for top in tops for seeds in SEEDS]
    for one in plans:
        if one.seconds <= budget:
            return one
    need = math.ceil(plans[-1].seconds / 60)
    raise UserError(
        f"--budget {_told(budget)}: the smallest ladder on these data takes about {need} "
        f"min on {cores} cores; give --budget {need}min or more"
    )


def _told(seconds: float) -> str:
    return f"{seconds / 60:.3g}min" if seconds >= 60 else f"{seconds:.3g}s"


def estimate(rows: float, rungs: Sequence[Rung], seeds: int, cores: int) -> float:
    """Seconds of a ladder whose last stage has so many rows, where the dearest rungs go on."""
    costs = sorted((rung.cost for rung in rungs if rung.name != IDS), reverse=True)
    tried = [rung.cost for rung in rungs if rung.trains]  # twice, see `climb.SLOW`
    ids, finalists = 1.0, costs[: KEPT[1]]
    stages = (
        [*[ids] * (SETTINGS_TRIED + 1), *costs, *tried],
        [ids, *costs[: KEPT[0]]],
        [*[ids] * (seeds + MORE_OF_IDS), *finalists, *costs[:1] * (seeds - 1)],
    )
    total = sum(
        FIXED * len(of_stage) + EXAMPLE * EPOCHS * share * rows * sum(of_stage)
        for share, of_stage in zip(SHARES, stages, strict=True)
    )
    return total / min(cores, 2)
