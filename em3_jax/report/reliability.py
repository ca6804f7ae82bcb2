"""Reliability diagrams of an evaluated run: what was predicted against what was observed, by tenths, as PNG and as a page."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em3_jax.report.panels import COLORS

if TYPE_CHECKING:  # it takes a second to import, and only pictures need it
    from matplotlib.axes import Axes

COLUMNS = 3
INK, SOFT, BARS = "#1b2230", "#5d6678", "#c3cad6"
FOOT = (
    "A point is a tenth of the rows by prediction; bars: 95 %, rows of one user (or item) counted as one. "
    "ratio: predicted over observed, error: mean gap, of all tenths."
)


def draw(facts: Mapping[str, Mapping[str, Any]], title: str, out: Path) -> None:
    """Writes the PNG; the same facts give the same bytes.

    Args:
      facts: of `evaluation.reliability.of_heads`.
      title: above all.
      out: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = list(facts.values())
    columns = 2 if len(shown) == 4 else min(len(shown), COLUMNS)
    rows = -(-len(shown) // columns)
    foot = textwrap.wrap(FOOT, 66 * columns)
    size = (4.3 * columns + 0.2, 6.1 * rows + 0.9 + 0.25 * len(foot))
    figure = plt.figure(figsize=size, layout="constrained")
    figure.suptitle(_literal(title) + "\n", x=0.01, ha="left", fontsize=12, color=INK)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[4, 1] * rows)
    for k, one in enumerate(shown):
        row, column = divmod(k, columns)
        above, below = (figure.add_subplot(grid[2 * row + part, column]) for part in (0, 1))
        _diagram(above, one)
        _counts(below, one)
    figure.supxlabel("\n".join(foot), x=0.01, ha="left", fontsize=8.5, color=SOFT)
    figure.savefig(out, dpi=130, format="png")
    plt.close(figure)


def limits(one: Mapping[str, Any]) -> tuple[float, float]:
    """(lowest, highest) value of both axes."""
    points = [*one["before"], *one["after"]]
    found = [point[name] for point in points for name in ("predicted", "observed", "low", "high")]
    found = [value for value in [*found, *one["histogram"]["edges"]] if math.isfinite(value)]
    if one["log"]:
        means = [point[name] for point in points for name in ("predicted", "observed") if point[name] > 0]
        return min(means) / 1.6, max(found) * 1.2
    spread = max(found) - min(found) or abs(max(found)) or 1.0
    return max(min(found) - 0.05 * spread, 0.0), max(found) + 0.05 * spread


def said(points: Sequence[Mapping[str, float]]) -> str:
    """ "ratio 1.02, error 0.013": predictions in what was observed, and the mean gap of the tenths."""
    rows = sum(point["rows"] for point in points)
    total = {name: sum(point["rows"] * point[name] for point in points) for name in ("predicted", "observed")}
    gap = sum(point["rows"] * abs(point["predicted"] - point["observed"]) for point in points) / rows
    ratio = f"{total['predicted'] / total['observed']:.3f}" if total["observed"] else "undefined"
    return f"ratio {ratio}, error {gap:.3g}"


def series(one: Mapping[str, Any]) -> list[tuple[str, int, Sequence[Mapping[str, float]]]]:
    """(name, number of its colour, tenths) of what is drawn, the last one on top."""
    if one["after"]:
        return [("as trained", 1, one["before"]), ("calibrated", 0, one["after"])]
    return [("as trained", 0, one["before"])]


def bounds(point: Mapping[str, float], low: float) -> tuple[float, float]:
    """The ends of a tenth's interval, none of them below `low`; where there is none the point itself."""
    at = max(point["observed"], low)
    return tuple(max(point[end], low) if math.isfinite(point[end]) else at for end in ("low", "high"))  # type: ignore[return-value]


def headline(one: Mapping[str, Any]) -> str:
    """What stands above a diagram."""
    kind = "mean" if one["amount"] else "rate"
    return f"{one['label']}: {one['rows']:,} rows, {kind} {one['mean']:.4g}"


def _diagram(axis: "Axes", one: Mapping[str, Any]) -> None:
    """The diagonal, and a point with its interval for each tenth."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits(one)
    if one["log"]:
        axis.set_xscale("log")
        axis.set_yscale("log")
    axis.plot([low, high], [low, high], color=SOFT, linewidth=1, dashes=(5, 4), zorder=1)
    drawn = series(one)
    for place, (name, number, points) in enumerate(drawn):
        color, on_top = COLORS[number], place == len(drawn) - 1
        x = [point["predicted"] for point in points]
        y = [max(point["observed"], low) for point in points]  # logarithmic axes have no 0
        ends = [bounds(point, low) for point in points]
        bars = [
            [at - end[0] for at, end in zip(y, ends, strict=True)],
            [end[1] - at for at, end in zip(y, ends, strict=True)],
        ]
        axis.errorbar(
            x, y, yerr=bars, fmt="o", color=color, markersize=6, markerfacecolor=color if on_top else "white",
            markeredgewidth=1.4, clip_on=False, elinewidth=1.4, capsize=2.5, zorder=3 + place,
        )  # fmt: skip
        axis.plot(x, y, color=color, linewidth=1, alpha=0.45, zorder=2 + place)
        text = f"{name}: {said(points)}"
        at = 1.03 + 0.06 * (len(drawn) - 1 - place)
        axis.text(0, at, text, transform=axis.transAxes, fontsize=9.5, color=color)
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal", adjustable="box")
    axis.set_title(_literal(headline(one)), fontsize=11, loc="left", color=INK, pad=8 + 16 * len(drawn))
    if not one["log"]:
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axis.set_ylabel("observed, mean of a tenth")
    _plain(axis)


def _counts(axis: "Axes", one: Mapping[str, Any]) -> None:
    """Rows by prediction, and those with the label."""
    from matplotlib.ticker import MaxNLocator

    found = one["histogram"]
    edges = found["edges"]
    width = [b - a for a, b in itertools.pairwise(edges)]
    axis.bar(edges[:-1], found["rows"], width, align="edge", color=BARS, label="rows")
    if not one["amount"]:
        axis.bar(
            edges[:-1], found["positives"], width, align="edge", color=SOFT, label=f"with {_literal(one['label'])}"
        )
    if one["log"]:
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axis.set_xlim(*limits(one))
    axis.set_xlabel("predicted")
    axis.set_ylabel("rows")
    axis.set_ylim(top=1.3 * max(found["rows"]))  # room for the legend
    axis.legend(frameon=False, fontsize=8, loc="upper right", handlelength=1, borderpad=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    _plain(axis)


def _plain(axis: "Axes") -> None:
    for scale in (axis.xaxis, axis.yaxis):
        if scale.get_scale() == "log":
            scale.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(BARS)
    axis.tick_params(colors=SOFT, labelsize=9)
    axis.xaxis.label.set_color(SOFT)
    axis.yaxis.label.set_color(SOFT)


def _literal(text: str) -> str:
    """Matplotlib would read formulas between dollar signs."""
    return text.replace("$", r"\$")
