"""Draws streams: em3 curves em3=runs/stream-em3 lemur=runs/stream-lemur --out curves.png

A line a run, over the windows of the log, each scored before it was trained on: AUC and GAUC of all rows, AUC of cold items, and
for runs with a memory bank the share of history slots that it fills and the cosine of stored and current representations.
`em3 plot` draws the other runs.
"""

from pathlib import Path

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.report import panels
from em3_jax.training.curve import CURVE, last_quarter, mean, read_curve

PANELS = (
    ("AUC", ("all", "auc")),
    ("GAUC", ("all", "gauc")),
    ("AUC, cold items", ("cold items", "auc")),
    ("bank: slots filled", ("train/coverage_long",)),
    ("bank: cosine of stored and current", ("train/staleness_cosine",)),
    ("rows that came late", ("late",)),
    ("lag of a window, seconds", ("time/lag_seconds",)),
    ("rows a second", ("time/examples_per_second",)),
    ("ids in the table", ("ids/resident",)),
    ("ids that have left", ("ids/spilled",)),
)


def load(spec: str) -> tuple[str, list[dict]]:
    """(name, lines of the curve) of "name=workdir" or "workdir"."""
    name, folder = panels.named_folder(spec)
    path = folder / CURVE
    if not path.is_file() and (folder / panels.METRICS).is_file():
        raise UserError(f"{folder}: no stream, it has epochs; draw it with `em3 plot {folder}`")
    if not path.is_file():
        raise UserError(f"{path}: file missing; is {folder} the --workdir of a stream (configs/online.py)?")
    lines = read_curve(path)
    if not lines:
        raise UserError(f"{path}: no window is done yet; draw it later")
    return name, lines


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
    shown = []
    for title, keys in PANELS:
        lines = [
            panels.Line(
                k,
                [line["end"] / 1000 for line in curve],
                panels.running_mean([_value(line, keys) for line in curve], smooth),
            )
            for k, (_, curve) in enumerate(runs)
        ]
        drawn = [line for line in lines if line.is_drawn()]
        shown += [panels.Panel(title, title, drawn)] if drawn else []
    if not shown:
        raise UserError("no window of these runs has both clicks and rows without; there is no AUC to draw yet")
    panels.draw(shown, [name for name, _ in runs], "thousand rows of the log", panels.writable(out))


def table(runs: list[tuple[str, list[dict]]]) -> str:
    """Means over the windows, weighted by their rows: all of them, and the last quarter."""
    header = ["run", "windows", "AUC", "GAUC", "cold AUC", "last quarter: AUC", "GAUC"]
    rows = [[name, f"{one['windows']:,}", *(f"{value:.4f}" for value in _values(one))] for name, one in means(runs)]
    return terminal.table(header, rows)


def means(runs: list[tuple[str, list[dict]]]) -> list[tuple[str, dict[str, float]]]:
    """(name, what `table` shows of the run)."""
    found = []
    for name, lines in runs:
        last = last_quarter(lines)
        one = {"windows": len(lines), "auc": mean(lines, "all", "auc"), "gauc": mean(lines, "all", "gauc")}
        one |= {"cold_auc": mean(lines, "cold items", "auc")}
        one |= {f"last_quarter_{metric}": mean(last, "all", metric) for metric in ("auc", "gauc")}
        found.append((name, one))
    return found


def _values(one: dict[str, float]) -> list[float]:
    return [value for name, value in one.items() if name != "windows"]


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="name=workdir, or workdir")
    parser.add_argument("--out", type=paths.local, help="PNG to write")
    parser.add_argument("--smooth", type=int, default=1, help="windows of a running mean (default 1)")
    args = parser.parse_args()
    panels.check_smooth(args.smooth)
    loaded = [load(spec) for spec in args.runs]
    names = panels.distinct([name for name, _ in loaded], args.runs)
    runs = [(name, lines) for name, (_, lines) in zip(names, loaded, strict=True)]
    if args.out:
        draw(runs, args.out, args.smooth)
    written = [f"{args.out}: written"] if args.out else []
    terminal.result("\n".join([table(runs), *written]), runs=dict(means(runs)), written=[str(args.out)] * len(written))
