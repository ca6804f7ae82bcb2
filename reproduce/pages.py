"""What the reports share: measures of rows, cells of a table, the plot, the three files."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core import strict_json
from em3_jax.evaluation import compare
from em3_jax.evaluation.compare import Model


def measured(baseline: Model, model: Model, slice_name: str, metric: str) -> dict[str, Any]:
    """`compare.measured`, and the "values", one a seed."""
    values = model.values(slice_name, metric).tolist()
    return compare.measured(baseline, model, slice_name, metric) | {"values": values}


def mean(summary: dict) -> str:
    """ "0.7647 ± 0.0009" of what `measured` gives."""
    if not np.isfinite(summary["mean"]):
        return "-"
    return f"{summary['mean']:.4f}" + (f" ± {summary['sd']:.4f}" if np.isfinite(summary["sd"]) else "")


def number(value: float | None, form: str) -> str:
    """The number in that form, "-" where there is none."""
    return f"{value:{form}}" if value is not None and np.isfinite(value) else "-"


def seeds(count: int) -> str:
    """ "3 seeds"."""
    return f"{count} seed{'s' * (count > 1)}"


def interval(measured: dict) -> str:
    """ "+0.0012 to +0.0034" of a difference, "-" where none is known."""
    if not np.isfinite(measured.get("low", np.nan)):
        return "-"
    return f"{measured['low']:+.4f} to {measured['high']:+.4f}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


class Bar(NamedTuple):
    """A bar of the plot.

    Attributes:
      label: of the row.
      values: one a seed.
      paper: the paper's value, if it has one.
    """

    label: str
    values: np.ndarray
    paper: float | None


def plot(panels: dict[str, list[Bar]], axis_label: str, path: Path) -> None:
    """A panel a title, in it a bar a mean, a dot a seed, and the paper's value as a mark on the same scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    heights = [0.5 * len(bars) + 0.5 for bars in panels.values()]
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 1.2 + sum(heights)), squeeze=False, height_ratios=heights)
    for (title, bars), axis in zip(panels.items(), axes[:, 0], strict=True):
        for k, bar in enumerate(bars):
            axis.barh(k, np.mean(bar.values), height=0.6, color="#9ecae1")
            place = np.full(len(bar.values), k)
            axis.plot(bar.values, place, "o", color="#08519c", markersize=4, label=None if k else "one seed")
        marks = [(bar.paper, k) for k, bar in enumerate(bars) if bar.paper is not None]
        if marks:
            axis.plot(*zip(*marks, strict=True), "D", color="#de2d26", markersize=6, label="paper")
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1, 0].set_xlabel(axis_label)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", fontsize=8, frameon=False, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(result: dict[str, Any], page: str, command: str, out: Path) -> None:
    """Writes the .md and .json of result["file"] to `out`."""
    name = result["file"]
    (out / f"{name}.json").write_text(strict_json.dumps(result | {"command": command}, indent=1), encoding="utf-8")
    (out / f"{name}.md").write_text(page, encoding="utf-8")
