"""How far something is: a bar on a terminal, and where there is none, as in a Slurm log, a line now and then.

With `--json-lines` it is a record now and then, with `--quiet` nothing.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from em3_jax.core import terminal

LINES_EVERY = 60.0


class Progress:
    """A progress bar on a terminal; elsewhere a line where nothing has been said for `lines_every` seconds.

    Args:
      total, start: last and first of what is counted.
      unit: what is counted.
      lines_every: seconds between the lines where there is no terminal; 0 = no lines.
      quiet: neither bar nor lines.
      doing: what is done, to stand before the counts.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        unit: str = "step",
        lines_every: float = LINES_EVERY,
        quiet: bool = False,
        doing: str = "",
    ):
        quiet = quiet or not (terminal.shows_progress() or terminal.is_json())
        is_terminal = sys.stderr.isatty() and terminal.shows_progress() and not quiet
        self._bar = tqdm(
            total=total,
            initial=start,
            unit=unit,
            dynamic_ncols=True,
            disable=not is_terminal,
            smoothing=0.1,
            desc=doing or None,
        )
        self._doing = doing and f"{doing}: "
        self._unit, self._total, self._done = unit, total, start
        self._lines_every = 0.0 if is_terminal or quiet else lines_every
        self._values: dict[str, tuple[float, str]] = {}
        self._last_line = time.perf_counter()
        self._first: tuple[float, int] | None = None  # when the first was done, which has compiled, and how many then

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)
        self._done += steps
        now = time.perf_counter()
        self._first = self._first or (now, self._done)
        if self._lines_every and now - self._last_line >= self._lines_every:
            self._say_how_far(now)

    def _say_how_far(self, now: float) -> None:
        """ "step 1,200 of 8,000  loss 0.5123  examples/s 9,800  0:12:34 left"."""
        assert self._first is not None  # a line is made when something has been done
        began, first = self._first
        values, left, seconds = self._values, "", None
        if self._done > first and now > began:
            speed = (self._done - first) / (now - began)
            values = values or {f"{self._unit}/s": (speed, ",.1f")}
            seconds = (self._total - self._done) / speed
            left = f"  {tqdm.format_interval(seconds)} left"
        said = "".join(f"  {name} {value:{form}}" for name, (value, form) in values.items())
        of: dict[str, Any] = {"doing": self._doing.removesuffix(": "), "unit": self._unit, "done": self._done}
        of |= {"total": self._total, "seconds_left": seconds} | {name: value for name, (value, _) in values.items()}
        self.say(f"{self._doing}{self._unit} {self._done:,} of {self._total:,}{said}{left}", "progress", **of)

    def show(self, values: Mapping[str, tuple[float, str]]) -> None:
        """Values beside the bar, and in the lines: name -> (value, the form that it is shown in)."""
        self._values = dict(values)
        self._bar.set_postfix({name: f"{value:{form}}" for name, (value, form) in values.items()}, refresh=False)

    def say(self, line: str, event: str = "note", /, **values: Any) -> None:
        """A line that stays, above the bar; with `--json-lines` a record of the values."""
        self._last_line = time.perf_counter()
        if terminal.is_json():
            terminal.say(line, event, **values)
            return
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
