"""Draws streams: python -m em3_jax.curves em3=runs/stream-em3 lemur=runs/stream-lemur --out curves.png

A line a run, over the windows of the log, each scored before it was trained on: AUC and GAUC of all rows, AUC of cold items, and
for runs with a memory bank the share of history slots that it fills and the cosine of stored and current representations.
"""

import argparse
from pathlib import Path

from em3_jax import cli
from em3_jax.online import CURVE, read_curve
from em3_jax.types import UserError

PANELS = (
    ("AUC", ("all", "auc")),
    ("GAUC", ("all", "gauc")),
    ("AUC, cold items", ("cold items", "auc")),
    ("bank: slots filled", ("train/coverage_long",)),
    ("bank: cosine of stored and current", ("train/staleness_cosine",)),
)


def load(spec: str) -> tuple[str, list[dict]]:
    """(name, lines of the curve) of "name=workdir" or "workdir"."""
    name, _, folder = spec.rpartition("=")
    path = Path(folder) / CURVE
    if not path.is_file():
        raise UserError(f"{path}: file missing; is {folder} the --workdir of a stream (configs/online.py)?")
    return name or Path(folder).name, read_curve(path)


def _value(line: dict, keys: tuple[str, ...]) -> float:
    for key in keys:
        line = line.get(key, {})
    return line if isinstance(line, float | int) else float("nan")


def draw(runs: list[tuple[str, list[dict]]], out: Path, smooth: int = 1) -> None:
    """Writes the picture.

    Args:
      runs: (name, lines).
      smooth: windows of a running mean.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shown = [
        (title, keys)
        for title, keys in PANELS
        if any(np.isfinite(_value(line, keys)) for _, lines in runs for line in lines)
    ]
    rows_of_panels = -(-len(shown) // 3)
    size = (4 * min(len(shown), 3), 3 * rows_of_panels)
    figure, axes = plt.subplots(rows_of_panels, min(len(shown), 3), figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (title, keys) in zip(axes.flat, shown, strict=False):
        for k, (name, lines) in enumerate(runs):
            values = np.array([_value(line, keys) for line in lines])
            thousands = np.array([line["end"] for line in lines]) / 1000
            if not np.isfinite(values).any():
                continue
            kernel, defined = np.ones(smooth), np.isfinite(values)
            total = np.convolve(np.where(defined, values, 0), kernel)[: len(values)]
            count = np.convolve(defined, kernel)[: len(values)]
            mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
            axis.plot(thousands, mean, label=name, linewidth=1.5, color=f"C{k}")
        axis.set_title(title)
        axis.set_xlabel("thousand rows of the log")
        axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def table(runs: list[tuple[str, list[dict]]]) -> str:
    """Means over the windows, weighted by their rows: all of them, and the last quarter."""
    lines = [f"{'run':<20}{'windows':>9}{'AUC':>9}{'GAUC':>9}{'cold AUC':>10}   last quarter:{'AUC':>8}{'GAUC':>9}"]
    for name, curve in runs:
        last = curve[-max(len(curve) // 4, 1) :]
        cells = [_mean(curve, "all", "auc"), _mean(curve, "all", "gauc"), _mean(curve, "cold items", "auc")]
        ends = [_mean(last, "all", "auc"), _mean(last, "all", "gauc")]
        lines.append(
            f"{name:<20}{len(curve):>9}{cells[0]:>9.4f}{cells[1]:>9.4f}{cells[2]:>10.4f}{'':>16}{ends[0]:>8.4f}{ends[1]:>9.4f}"
        )
    return "\n".join(lines)


def _mean(lines: list[dict], slice_name: str, metric: str) -> float:
    """Windows where the metric is undefined are left out."""
    pairs = [(line[slice_name][metric], line[slice_name]["n"]) for line in lines]
    pairs = [(value, n) for value, n in pairs if value == value]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="name=workdir, or workdir")
    parser.add_argument("--out", help="PNG to write")
    parser.add_argument("--smooth", type=int, default=1, help="windows of a running mean (default 1)")
    args = parser.parse_args()
    if args.smooth < 1:
        raise UserError(f"--smooth {args.smooth}: give 1 or more")
    runs = [load(spec) for spec in args.runs]
    print(table(runs))
    if args.out:
        draw(runs, Path(args.out), args.smooth)
        print(f"{args.out}: written")


if __name__ == "__main__":
    cli.run(main)
