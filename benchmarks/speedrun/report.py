"""The table of a race, appended to benchmarks/SPEEDRUN.md, and a line of JSON per run beside it."""

import dataclasses
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.speedrun.race import CONVERGED, LIMIT, TARGET, Run

COLUMNS = (
    "contender", "prepared to target, s", "raw to target, s", "reached", "best AUC", "examples/s", "peak, MB",
    "processor s",
)  # fmt: skip
NOTHING = "-"


def spread(values: Iterable[float], form: str) -> str:
    """Median and range, "3.1 (2.9 to 4.0)"; of a single value only that."""
    found = sorted(value for value in values if value == value)
    if not found:
        return NOTHING
    middle = format(statistics.median(found), form)
    return middle if len(found) == 1 else f"{middle} ({found[0]:{form}} to {found[-1]:{form}})"


def row(name: str, runs: Sequence[Run]) -> list[str]:
    """The cells of a contender: times of the runs that reached the target, all else of all runs."""
    reached = [run for run in runs if run.ended == TARGET]
    failed = [run for run in runs if run.ended not in (TARGET, CONVERGED, LIMIT)]
    if failed:
        return [name, f"failed: {failed[0].ended}", *[NOTHING] * (len(COLUMNS) - 2)]
    to_target = spread((run.seconds for run in reached), ".1f")
    if not reached:
        how = "stopped by itself" if runs[0].ended == CONVERGED else "limit"
        to_target = f"not reached ({how} after {spread((run.seconds for run in runs), '.0f')})"
    from_raw = [run.seconds + run.preparing for run in reached if run.preparing is not None]
    return [
        name,
        to_target,
        spread(from_raw, ".1f"),
        f"{len(reached)} of {len(runs)}",
        spread((run.best for run in runs), ".4f"),
        spread((run.speed for run in runs), ",.0f"),
        spread((run.peak_bytes / 1e6 for run in runs), ",.0f"),
        spread((run.processor for run in runs), ".1f"),
    ]


def table(runs: dict[str, list[Run]], missing: dict[str, str]) -> str:
    """Markdown; contenders in the order of time to the target, those that did not reach it last.

    Args:
      runs: contender -> its runs.
      missing: contender -> why it has none, in a line.
    """

    def order(item: tuple[str, list[Run]]) -> tuple[int, float]:
        reached = [run.seconds for run in item[1] if run.ended == TARGET]
        return (0, statistics.median(reached)) if reached else (1, 0.0)

    rows = [row(name, found) for name, found in sorted(runs.items(), key=order)]
    rows += [[name, why, *[NOTHING] * (len(COLUMNS) - 2)] for name, why in missing.items()]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def append(page: Path, heading: str, said: str, made: str) -> None:
    """Adds a section at the end of the page; what is there stays.

    Args:
      said: a paragraph above the table.
      made: the table.
    """
    with open(page, "a", encoding="utf-8") as file:
        file.write(f"\n## {heading}\n\n{said}\n\n{made}")


def log(lines: Path, name: str, run: Run, **known: object) -> None:
    """Adds a run to the file of JSON lines; what is no number is null there."""
    found = {key: None if value != value else value for key, value in dataclasses.asdict(run).items()}
    with open(lines, "a", encoding="utf-8") as file:
        file.write(json.dumps(known | {"contender": name} | found) + "\n")
