"""How far something is: a bar on a terminal, and where there is none, as in a Slurm log, a line now and then."""

import sys
import time

from tqdm import tqdm

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
        is_terminal = sys.stderr.isatty() and not quiet
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
        self._values: dict[str, str] = {}
        self._last_line = time.perf_counter()
        self._first: tuple[float, int] | None = None  # when the first was done, which has compiled, and how many then

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)
        self._done += steps
        now = time.perf_counter()
        self._first = self._first or (now, self._done)
        if self._lines_every and now - self._last_line >= self._lines_every:
            self.say(self._line(now))

    def _line(self, now: float) -> str:
        """ "step 1,200 of 8,000  loss 0.5123  examples_s 9,800  0:12:34 left"."""
        assert self._first is not None  # a line is made when something has been done
        began, first = self._first
        values, left = self._values, ""
        if self._done > first and now > began:
            speed = (self._done - first) / (now - began)
            values = values or {f"{self._unit}/s": f"{speed:,.1f}"}
            left = f"  {tqdm.format_interval((self._total - self._done) / speed)} left"
        said = "".join(f"  {name} {value}" for name, value in values.items())
        return f"{self._doing}{self._unit} {self._done:,} of {self._total:,}{said}{left}"

    def show(self, **values: str) -> None:
        """Values beside the bar, and in the lines."""
        self._values = values
        self._bar.set_postfix(values, refresh=False)

    def say(self, line: str) -> None:
        """A line that stays, above the bar."""
        self._last_line = time.perf_counter()
        self._bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._bar.close()
