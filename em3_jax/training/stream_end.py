"""What a stream says when it ends: where its windows are, or what is wanted where it had nothing to do."""

from pathlib import Path
from typing import NamedTuple

from em3_jax.config.schema.course import Stream as StreamSettings


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


def said(ended: Ended, own: StreamSettings, root: str | Path, directory: Path) -> str:
    """The last line of a run.

    Args:
      own: config.stream.
      root: of the dataset.
      directory: of the run.
    """
    stopped_by, windows, before, waiting = ended
    done, draw = count(windows), f"draw them with `em3 curves {directory} --out curves.png`"
    if windows > before:
        return f"{stopped_by}: {done} in {directory}; {draw}"
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
