"""The page of reliability diagrams: one HTML file that asks nothing of the network, and runs no script."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from em3_jax.report.document import document, palette
from em3_jax.report.reliability import FOOT, bounds, headline, limits, said, series

WIDTH, SIDE, LEFT, TOP, STRIP, GAP = 400, 330, 56, 10, 64, 30  # of a diagram, and the histogram below it
BOTTOM = TOP + SIDE


def page(facts: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """The HTML.

    Args:
      facts: of `evaluation.reliability.of_heads`.
      title: what was evaluated.
    """
    cards = "".join(_card(one) for one in facts.values())
    body = (
        f"<main>\n<h1>{html.escape(title)}</h1>\n<p>{html.escape(FOOT)} Point to a tenth to see its numbers.</p>\n"
        f'<div class="grid">{cards}</div>\n</main>\n'
    )
    return document(title, palette() + STYLE, body)


def _card(one: Mapping[str, Any]) -> str:
    """A label: its diagram, and its tenths as a table."""
    legend = "".join(
        f'<span style="--c:var(--c{color})"><i></i>{name}: {said(points)}</span>' for name, color, points in series(one)
    )
    return (
        f"<figure><figcaption>{html.escape(headline(one))}</figcaption><div class=legend>{legend}</div>{_picture(one)}"
        f"<details><summary>tenths</summary>{''.join(_table(*part) for part in series(one))}</details></figure>\n"
    )


def _table(name: str, color: int, points: Any) -> str:
    columns = ("predicted", "observed", "low", "high")
    rows = "".join(
        f"<tr><td>{k}</td><td>{point['rows']:,}</td>"
        + "".join(
            f"<td>{point[column]:.4g}</td>" if math.isfinite(point[column]) else "<td>-</td>" for column in columns
        )
        + "</tr>"
        for k, point in enumerate(points, 1)
    )
    head = "".join(f"<th>{text}</th>" for text in (name, "rows", "predicted", "observed", "from", "to"))
    return f'<table style="--c:var(--c{color})"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


class _Axis:
    """From values to pixels, along x and along y."""

    def __init__(self, one: Mapping[str, Any]):
        self.low, self.high = limits(one)
        self.log = one["log"]

    def share(self, value: float) -> float:
        """From 0 at the lowest value to 1 at the highest."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def x(self, value: float) -> float:
        return LEFT + SIDE * self.share(value)

    def y(self, value: float) -> float:
        return TOP + SIDE * (1 - self.share(value))

    def ticks(self) -> list[float]:
        """Round values within."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [factor * 10.0**power for power in powers for factor in (1, 3)]
        else:
            rough = (self.high - self.low) / 8
            power = 10.0 ** math.floor(math.log10(rough))
            apart = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
            found = [k * apart for k in range(math.ceil(self.low / apart), math.floor(self.high / apart) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def _picture(one: Mapping[str, Any]) -> str:
    """The diagram and the histogram below it, as SVG."""
    axis, drawn = _Axis(one), series(one)
    points = "".join(_points(axis, *part, part is drawn[-1]) for part in drawn)
    name, height = html.escape(headline(one)), BOTTOM + GAP + STRIP + 22
    said_below = "predicted; below its rows" + ("" if one["amount"] else f" and those with {html.escape(one['label'])}")
    axes = (
        f"<text x={LEFT + SIDE} y={height - 6} text-anchor=end>{said_below}</text>"
        f'<text transform="translate(12 {TOP + SIDE / 2:.0f}) rotate(-90)" text-anchor=middle>observed</text>'
    )
    inside = f"{_grid(axis)}{points}{_histogram(axis, one)}{axes}"
    return f'<svg viewBox="0 0 {WIDTH} {height}" role=img aria-label="{name}">{inside}</svg>'


def _grid(axis: _Axis) -> str:
    """The ticks of both axes, and the diagonal."""
    parts = []
    for value in axis.ticks():
        x, y, text = axis.x(value), axis.y(value), f"{value:.4g}"
        parts.append(f'<path class=rule d="M{LEFT} {y:.1f}H{LEFT + SIDE}M{x:.1f} {TOP}V{BOTTOM}"/>')
        parts.append(f"<text x={LEFT - 8} y={y + 4:.1f} text-anchor=end>{text}</text>")
        parts.append(f"<text x={x:.1f} y={BOTTOM + 17} text-anchor=middle>{text}</text>")
    return "".join(parts) + f'<path class=diagonal d="M{LEFT} {BOTTOM}L{LEFT + SIDE} {TOP}"/>'


def _points(axis: _Axis, name: str, color: int, points: Sequence[Mapping[str, float]], on_top: bool) -> str:
    """A point with its interval for each tenth."""
    at = [(axis.x(point["predicted"]), axis.y(max(point["observed"], axis.low))) for point in points]
    marks = ""
    for k, (point, (x, y)) in enumerate(zip(points, at, strict=True), 1):
        low, high = (axis.y(min(end, axis.high)) for end in bounds(point, axis.low))
        told = f"{name}, tenth {k}: {point['rows']:,} rows, predicted {point['predicted']:.4g}"
        told += f", observed {point['observed']:.4g}"
        told += f" ({point['low']:.4g} to {point['high']:.4g})" if math.isfinite(point["low"]) else ""
        caps = "".join(f"M{x - 3.5:.1f} {end:.1f}h7" for end in (low, high))
        marks += (
            f'<g class=mark><title>{told}</title><path class=bar d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'
            f"<circle class=dot cx={x:.1f} cy={y:.1f} r=4.5 /></g>"
        )
    line = "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    kind = "top" if on_top else "below"
    return f'<g class={kind} style="--c:var(--c{color})"><path class=line d="M{line}"/>{marks}</g>'


def _histogram(axis: _Axis, one: Mapping[str, Any]) -> str:
    """Rows by prediction, and those with the label."""
    found, foot = one["histogram"], BOTTOM + GAP + STRIP
    most, parts = max(found["rows"]) or 1, []
    for (a, b), rows, hits in zip(itertools.pairwise(found["edges"]), found["rows"], found["positives"], strict=True):
        x, told = axis.x(max(a, axis.low)), f"{a:.4g} to {b:.4g}: {rows:,} rows"
        boxes = {"rows": rows}
        if not one["amount"]:
            boxes["hits"] = hits
            told += f", {hits:,} with {html.escape(one['label'])}"
        shapes = "".join(
            f"<rect class={kind} x={x:.1f} y={foot - STRIP * n / most:.1f} width={max(axis.x(b) - x, 0):.2f} "
            f"height={STRIP * n / most:.1f} />"
            for kind, n in boxes.items()
        )
        parts.append(f"<g><title>{told}</title>{shapes}</g>")
    rule = f'<path class=rule d="M{LEFT} {foot}H{LEFT + SIDE}"/>'
    return "".join(parts) + rule + f"<text x={LEFT - 8} y={foot - STRIP + 8} text-anchor=end>{most:,}</text>"


STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 16px 20px 48px; }
h1 { font-size: 18px; margin: 0 0 4px; overflow-wrap: anywhere; }
main > p { color: var(--soft); margin: 0 0 14px; max-width: 110ch; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); align-items: start; }
figure { margin: 0; padding: 14px 16px 10px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; color: var(--soft); font-size: 13.5px; margin-bottom: 6px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; background: var(--c); margin-right: 6px; }
svg { display: block; width: 100%; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.rule { stroke: var(--rule); fill: none; }
.diagonal { stroke: var(--soft); stroke-dasharray: 5 4; fill: none; }
.line { fill: none; stroke: var(--c); opacity: .45; }
.bar { stroke: var(--c); stroke-width: 1.5; fill: none; }
.dot { fill: var(--c); stroke: var(--c); stroke-width: 1.5; }
.below .dot { fill: var(--card); }
.mark:hover .dot { r: 6px; }
.mark:hover .bar { stroke-width: 3; }
.rows { fill: var(--rule); }
.hits { fill: var(--soft); }
details { margin-top: 6px; }
summary { cursor: pointer; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: right; padding: 2px 8px; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th:first-child { color: var(--c); }
tbody tr { border-top: 1px solid var(--rule); }
"""
