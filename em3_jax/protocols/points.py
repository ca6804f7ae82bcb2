"""Points of a curve: a metric at a place x, how sure it is, and what it differs by from others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from em3_jax.evaluation import compare
from em3_jax.evaluation.compare import Model
from em3_jax.evaluation.influence import error_of
from em3_jax.protocols import page

METRICS = ("auc", "gauc", "logloss")
NAMES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log-loss"}
ALL = "all"
DIFFERENCE, ABOVE, MENDED = COMPARED = ("difference", "above", "mended")
"""What a point is compared with: where its curve begins, the baseline, and what it mends."""
Point = dict[str, Any]
Curves = Mapping[str, Sequence[Point]]


def of(x: float, model: Model, against: Mapping[str, Model | None]) -> Point:
    """The point of a model on all rows of the split.

    Args:
      x: where it stands on the curve.
      model: measured at x.
      against: what it differs from, by the names of `COMPARED`; itself, and None, are left out.

    Returns:
      {"x", "n", metric: {"mean", "sd", "low", "high"}}, and of each other under its name the
      difference, "low", "high" and "p" of it as {name: {"value", ...}} in the metric's; NaN where
      something is not known.
    """
    point: Point = {"x": x, "n": model.reports[0]["slices"][ALL]["n"]}
    for metric in METRICS:
        values = model.values(ALL, metric)
        error = error_of(float(values.mean()), model.moved(ALL, metric))
        sd = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        point[metric] = {"mean": error.value, "sd": sd, "low": error.low, "high": error.high}
        for name, other in against.items():
            if other is not None and other is not model:
                found = compare.measured(other, model, ALL, metric)
                of_other = {"value": found["difference"], "low": found["low"], "high": found["high"], "p": found["p"]}
                point[metric][name] = of_other
    return point


def clusters(model: Model) -> str:
    """ "737 users" whose rows count as one each."""
    assert model.moved_by is not None  # of models that were evaluated by this version
    return f"{len(model.moved_by[0].clusters):,} {model.by}s"


def legend(seeds: int, counted: str) -> str:
    """What the intervals are."""
    single = counted.rpartition(" ")[2].removesuffix("s")
    spread = (
        "Means and standard deviations are over the seeds, p is of the paired t-test over them; " if seeds > 1 else ""
    )
    return f"{spread}95 % intervals are of the rows, those of one {single} counted as one, differences paired."


def table(
    metric: str,
    x_name: str,
    x_text: Callable[[float], str],
    curves: Curves,
    beside: tuple[list[str], Mapping[float, list[str]]] = ([], {}),
    above: str = "baseline",
) -> page.Table:
    """The table of a metric, a line a point.

    Args:
      metric: of `METRICS`.
      x_name, x_text: the first column, and its cells.
      curves: label -> points.
      beside: further columns, and the cells at each x.
      above: what the point is above, where it is.
    """
    every = [point[metric] for points in curves.values() for point in points]
    compared = [name for name in COMPARED if any(name in value for value in every)]
    header = [x_name, *beside[0], "model", NAMES[metric], "95 %"]
    for name in compared:
        header += [f"above {above}" if name == ABOVE else name, "95 %", "p"]
    cells = []
    for x in sorted({point["x"] for points in curves.values() for point in points}):
        for label, points in curves.items():
            for value in (one[metric] for one in points if one["x"] == x):
                mean = page.number(value["mean"])
                mean += f" ± {page.number(value['sd'])}" if np.isfinite(value["sd"]) else ""
                of_own = f"{page.number(value['low'])} to {page.number(value['high'])}"
                row = [x_text(x), *beside[1].get(x, []), label, mean, of_own]
                cells.append(row + [cell for name in compared for cell in _compared(value.get(name))])
    return page.Table(NAMES[metric], header, cells, names=2 + len(beside[0]))


def _compared(found: Mapping[str, float] | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    p = f"{found['p']:.2g}" if np.isfinite(found["p"]) else "-"
    return [page.signed(found["value"]), page.interval(found["low"], found["high"]), p]


def floor_table(point: Point) -> page.Table:
    """What the baseline has, in a line."""
    header = ["baseline", *(cell for metric in METRICS for cell in (NAMES[metric], "95 %"))]
    cells = [f"n = {point['n']:,}"]
    for metric in METRICS:
        value = point[metric]
        cells += [page.number(value["mean"]), f"{page.number(value['low'])} to {page.number(value['high'])}"]
    return page.Table("Baseline", header, [cells])


def picture(curves: Curves, x_label: str, floor: str = "", in_percent: bool = False) -> bytes:
    """A PNG of AUC and GAUC over x, those of them that are defined.

    Args:
      curves: label -> points.
      x_label: what x is.
      floor: label of the curve that is drawn dashed.
      in_percent: whether x is a share.
    """
    panels = []
    for metric in METRICS[:2]:
        drawn = []
        for label, points in curves.items():
            x, values = [point["x"] for point in points], [point[metric] for point in points]
            mean, low, high = ([value[name] for value in values] for name in ("mean", "low", "high"))
            drawn.append(page.Curve(label, x, mean, low, high, is_floor=label == floor))
        if any(np.isfinite(value) for curve in drawn for value in curve.value):
            panels.append((f"{NAMES[metric]}, 95 % of the rows", drawn))
    return page.curves(panels, x_label, in_percent)
