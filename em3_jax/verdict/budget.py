"""How much of the ladder a budget of time holds: a plan that depends on the data, the budget and the cores alone.

The estimate is nominal, not timed: the same command plans the same on every machine of as many cores,
so that its page is the same. Costs were measured on 2 cores, see benchmarks/NOTES.md.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from em3_jax.core.errors import UserError
from em3_jax.verdict.ladder import IDS, Rung

SHARES = (0.25, 0.5, 1.0)
"""Of the top stage's rows; the stages double."""
SETTINGS_TRIED = 3  # by IDs alone, at the smallest share
FIXED = 9.0  # seconds of a run on one core for starting, compiling, scoring
EXAMPLE = 3.5e-5  # seconds of a core for an example of IDs alone
EPOCHS = 9.0  # that a run takes before its patience ends, about
LEAST_ROWS = 2_000  # of the top stage
SEEDS = (3, 2)
UNITS = {"s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600}


class Plan(NamedTuple):
    """What is run.

    Attributes:
      top: share of the training rows that the last stage has.
      seeds: of the last stage's finalists.
      seconds: estimate of the time it takes.
    """

    top: float
    seeds: int
    seconds: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the training rows, a stage each."""
        return tuple(share * self.top for share in SHARES)


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
        f"--budget {budget / 60:.2g}min: the smallest ladder on these data takes about {need} "
        f"min on {cores} cores; give --budget {need}min or more"
    )


def estimate(rows: float, rungs: Sequence[Rung], seeds: int, cores: int) -> float:
    """Seconds of a ladder whose last stage has so many rows."""
    costs = sorted((rung.cost for rung in rungs if rung.name != IDS), reverse=True)
    tried = [rung.cost for rung in rungs if rung.trains]  # twice, see `climb.SLOW`
    ids = 1.0
    stages = [(SHARES[0], [*[ids] * (SETTINGS_TRIED + 1), *costs, *tried])]
    half = costs[: keep(len(costs))]
    stages.append((SHARES[1], [ids, *half]))
    finalists = costs[: keep(len(half))]
    stages += [(SHARES[2], [ids, *finalists])] * seeds
    total = sum(FIXED * len(of_stage) + EXAMPLE * EPOCHS * share * rows * sum(of_stage) for share, of_stage in stages)
    return total / min(cores, 2)


def keep(rungs: int) -> int:
    """How many of so many content rungs a stage hands on."""
    return max(math.ceil(rungs / 2), 2)
