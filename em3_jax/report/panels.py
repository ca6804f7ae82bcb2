"""Panels of lines, one line a run, and the picture of them; what `plot` and `curves` draw."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from em3_jax.core import paths
from em3_jax.core.errors import UserError

if TYPE_CHECKING:  # it takes a second to import, and only pictures need it
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

METRICS = "metrics.jsonl"  # as `logs.MetricWriter` writes it
COLORS = ("#2563c9", "#d9541e", "#138a5e", "#a8329a", "#8a6a00", "#0e86a5", "#c2253f", "#6b5bd2")
COLORS_ON_DARK = ("#6ea8ff", "#ff8f5c", "#4cc994", "#e27fd2", "#d8b33f", "#4fc8e6", "#ff7387", "#a79bff")
DOTS = (1, 2)  # of a line that another is to be seen against
DASHES = ((), (6, 3), (2, 2))  # the ninth run has the first one's colour, dashed
COLUMNS = 3


class Line(NamedTuple):
    """One run in one panel.

    Attributes:
      run: its number.
      x: [n] where.
      y: [n] what is drawn; NaN leaves a gap.
      steps: [n] training steps, where x is something else.
      best: index of the best step; None has no mark.
      beside: what the value is to be seen against, drawn thin and dotted; "" is the value itself.
    """

    run: int
    x: Sequence[float]
    y: Sequence[float]
    steps: Sequence[int] = ()
    best: int | None = None
    beside: str = ""

    def is_drawn(self) -> bool:
        return any(map(math.isfinite, self.y))


class Panel(NamedTuple):
    """One picture.

    Attributes:
      name: the short name.
      title: what stands above it.
      lines: one a run that has it.
      from_zero: the y axis begins at 0.
      group: panels that stand together.
    """

    name: str
    title: str
    lines: list[Line]
    from_zero: bool = False
    group: str = ""


def named_folder(spec: str) -> tuple[str, Path]:
    """(name, folder) of "name=folder" or "folder"; a folder that is there may have a = in its name."""
    name, _, folder = ("", "", spec) if Path(spec).is_dir() else spec.rpartition("=")
    return name or Path(folder).name or folder, paths.local(folder)


def distinct(names: list[str], specs: list[str]) -> list[str]:
    """The names; runs that share one are called by what the command line says of them."""
    names = [spec if names.count(name) > 1 else name for name, spec in zip(names, specs, strict=True)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name}: given twice; give each run a name of its own, name=workdir")
    return names


def check_smooth(smooth: int) -> None:
    if smooth < 1:
        raise UserError(f"--smooth {smooth}: give 1 or more")


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Means of each value and those before it, `width` in all; undefined values are left out, and stay undefined alone."""
    array = np.asarray(values, np.float64)
    if width == 1:
        return array.tolist()
    kernel, defined = np.ones(width), np.isfinite(array)
    total = np.convolve(np.where(defined, array, 0), kernel)[: len(array)]
    count = np.convolve(defined, kernel)[: len(array)]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).tolist()


def alone(y: Sequence[float]) -> list[int]:
    """Indices of defined values without a defined neighbour: a line does not show them, a dot does."""
    defined = [False, *map(math.isfinite, y), False]
    return [k - 1 for k in range(1, len(y) + 1) if defined[k] and not defined[k - 1] and not defined[k + 1]]


def writable(path: Path) -> Path:
    """The path, with its folder made; refuses what cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
    return path


def draw(panels: list[Panel], names: list[str], x_label: str, out: Path) -> None:
    """Writes the PNG; the same panels give the same bytes.

    Args:
      panels: at least one.
      names: of the runs.
      x_label: what x is.
      out: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(len(panels), COLUMNS)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    handles: dict[int, Line2D] = {}
    for k, (axis, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        for line in panel.lines:
            handles.setdefault(line.run, _draw_line(axis, line))
        axis.set_title(_literal(panel.title), fontsize=11)
        if k + columns >= len(panels):  # nothing below it
            axis.set_xlabel(x_label)
        if panel.from_zero:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.ticklabel_format(useOffset=False)  # else a number in the corner is to be added
        axis.spines[["top", "right"]].set_visible(False)
        for scale, (_, most) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            if most >= 1000:
                scale.set_major_formatter(lambda value, _: f"{value:,.10g}")
        axis.xaxis.set_major_locator(plt.MaxNLocator(5, steps=[1, 2, 5, 10]))
    runs = sorted(handles)
    labels = [_literal(names[run]) for run in runs]
    figure.legend([handles[run] for run in runs], labels, loc="outside upper left", ncols=columns, frameon=False)
    figure.savefig(out, dpi=120, format="png")
    plt.close(figure)


def _draw_line(axis: "Axes", line: Line) -> "Line2D":
    color, dash = COLORS[line.run % len(COLORS)], DASHES[line.run // len(COLORS) % len(DASHES)]
    width, dash = (1, DOTS) if line.beside else (1.6, dash)
    handle = axis.plot(line.x, line.y, linewidth=width, color=color, dashes=dash)[0]
    dots = alone(line.y)
    axis.plot([line.x[k] for k in dots], [line.y[k] for k in dots], "o", markersize=4, color=color)
    if line.best is not None:
        axis.plot(
            line.x[line.best], line.y[line.best], "o", markersize=8, color=color, markeredgecolor="white", zorder=3
        )
    return handle


def _literal(text: str) -> str:
    """Matplotlib would read formulas between dollar signs."""
    return text.replace("$", r"\$")
