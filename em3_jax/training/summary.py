"""How a run ends: the numbers that matter, and the next command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.core import terminal

WHY = {"end": "all epochs are done", "patience": "config.train.patience evaluations brought nothing better"}


class Ended(NamedTuple):
    """How the training loop has ended.

    Attributes:
      stopped_by: "end", "patience" or a signal.
      step: the last one.
      total: the steps of all epochs.
      seconds: since the loop began, in this process.
      speed: examples a second of the steps of this process; None where it made none.
    """

    stopped_by: str
    step: int
    total: int
    seconds: float
    speed: float | None


def say(ended: Ended, directory: Path, metric: str, notes: Mapping[str, Any], command: str) -> None:
    """Prints how a run has ended.

    Args:
      directory: of the run.
      metric: config.eval.metric.
      notes: {"best_step", "best_value", ...} of the run.
      command: what is usually next.
    """
    values = ended._asdict() | {"workdir": str(directory), "metric": metric}
    values |= {"best_step": notes["best_step"], "best_value": notes["best_value"]}
    values["examples_per_second"] = values.pop("speed")
    if ended.stopped_by.startswith("SIG"):
        said = f"{ended.stopped_by}: saved step {ended.step:,} of {ended.total:,} in {directory}"
        terminal.result(f"{said}; run the same command again to go on", **values)
        return
    best = f"{notes['best_value']:.4f} on validation, at step {notes['best_step']:,}"
    rows = [[f"best {metric}", terminal.styled(best, "green")]]
    if ended.speed is not None:
        rows += [["examples/s", f"{ended.speed:,.0f}"], ["time", terminal.duration(ended.seconds)]]
    lines = [f"{ended.stopped_by} at step {ended.step:,} of {ended.total:,}: {WHY[ended.stopped_by]}"]
    lines += [f"  {name:<{max(len(first) for first, _ in rows)}}  {value}" for name, value in rows]
    terminal.result("\n".join(lines), next_command=command, **values)
