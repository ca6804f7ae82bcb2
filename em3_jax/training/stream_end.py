"""What a stream says when it ends: where its windows are, or what is wanted where it had nothing to do."""

import statistics
from pathlib import Path
from typing import NamedTuple

from em3_jax.config.schema.course import Stream as StreamSettings
from em3_jax.core import terminal
from em3_jax.training.curve import CURVE, last_quarter, mean, read_curve


class Ended(NamedTuple):
    """How a stream has ended.

    Attributes:
      stopped_by: "end", a signal, or what did not grow.
      windows: done in all.
      before: of these, those done when it began.
      waiting: rows that are in no window which is done.
    """

    stopped_by: str
    windows: int
    before: int
    waiting: int


def say(ended: Ended, own: StreamSettings, root: str | Path, directory: Path) -> None:
    """Prints how a stream has ended; of one that has done windows the numbers that matter, and the next command."""
    text, values = said(ended, own, root, directory), ended._asdict() | {"workdir": str(directory)}
    if ended.windows <= ended.before:
        terminal.result(text, **values)
        return
    lines = read_curve(directory / CURVE)
    speed = [line["time/examples_per_second"] for line in lines if "time/examples_per_second" in line]
    numbers = {
        "auc": mean(lines, "all", "auc"),
        "auc_of_the_last_quarter": mean(last_quarter(lines), "all", "auc"),
        "examples_per_second": statistics.median(speed) if speed else float("nan"),
    }
    rows = [
        ("auc of all windows", f"{numbers['auc']:.4f}"),
        ("auc of their last quarter", f"{numbers['auc_of_the_last_quarter']:.4f}"),
        ("examples/s, median window", f"{numbers['examples_per_second']:,.0f}"),
    ]
    width = max(len(name) for name, _ in rows)
    shown = "\n".join([text, *(f"  {name:<{width}}  {value}" for name, value in rows)])
    terminal.result(shown, next_command=_drawing(directory), **values, **numbers)


def _drawing(directory: Path) -> str:
    return f"em3 curves {directory} --out curves.png"


def said(ended: Ended, own: StreamSettings, root: str | Path, directory: Path) -> str:
    """How a run has ended, in a line.

    Args:
      own: config.stream.
      root: of the dataset.
      directory: of the run.
    """
    stopped_by, windows, before, waiting = ended
    done, draw = count(windows), f"draw them with `{_drawing(directory)}`"
    if windows > before:
        return f"{stopped_by}: {done} in {directory}"
    if stopped_by.startswith("SIG"):
        return f"{stopped_by}: {done} in {directory}, none of them by this run; run the same command again to go on"
    nothing = f"{stopped_by}: nothing to do, {done} in {directory} done before; " if windows else f"{stopped_by}: "
    if own.most_windows and windows >= own.most_windows:
        return f"{nothing}config.stream.most_windows={own.most_windows} asks for no more; give a larger one, or {draw}"
    if not own.follow:
        return f"{nothing}{root} has no further rows; prepare it with more, or {draw}"
    shorter = "" if windows else ", or choose a shorter config.stream.window"
    further = "further window" if windows else "window"
    return (
        f"{nothing}no {further} of '{own.window}' is complete, {waiting:,} row{'s' * (waiting != 1)} wait{'s' * (waiting == 1)}; "
        f"add rows to the log that {own.follow} names{shorter}"
    )


def count(windows: int) -> str:
    """ "8 windows"."""
    return f"{windows:,} window{'s' * (windows != 1)}"
