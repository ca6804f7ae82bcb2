"""The page of a verdict: one HTML file that asks nothing of the network, its charts drawn as SVG."""

import html
from collections.abc import Sequence
from typing import Any

from em3_jax.report.document import document, palette
from em3_jax.report.panels import COLORS
from em3_jax.verdict import words
from em3_jax.verdict.ladder import IDS

WIDTH, LEFT, RIGHT = 640, 190, 20  # of the charts, in pixels
ROW = 30
LEAST_ROWS = 100  # of a slice that is drawn: the interval of a smaller one would set the scale


def page(found: dict[str, Any]) -> str:
    """The HTML of what `conclude` found, with the command."""
    data, splits = found["data"], found["data"]["splits"]
    rows = ", ".join(f"{splits[name]['rows']:,} {name}" for name in ("train", "valid", "test"))
    says = "".join(f"<p>{html.escape(one)}</p>" for one in words.sentences(found))
    not_told = "".join(f"<li>{html.escape(one)}</li>" for one in words.untold(found))
    body = (
        f'<main>\n<p class="kicker">Does content pay? {html.escape(data["root"])}: {rows} rows</p>\n'
        f"<h1>{html.escape(words.headline(found))}</h1>\n<div>{says}</div>\n"
        f"<h2>The ladder</h2>\n{_ladder(found)}{_ladder_notes(found)}"
        f"<h2>Where the gain is</h2>\n{_slices(found)}"
        f"<h2>With more data</h2>\n{_curve(found)}{_importance(found)}"
        f"<h2>What it could not tell</h2>\n<ul>{not_told}</ul>\n"
        f"<h2>Train it</h2>\n<pre>{html.escape(found['command'])}</pre>\n</main>\n"
    )
    return document(f"Does content pay? {data['name']}", palette() + STYLE, body)


def _ladder(found: dict[str, Any]) -> str:
    """A row a rung: what it is, its metrics, its gain as a bar with its interval, its cost."""
    # Popularity, which is no way for content, is far from all others and would set the scale.
    gains = [row["gain"] for row in found["ladder"] if row["p_corrected"] is not None]
    scale = _Scale(0.0, *(v for gain in gains for v in (gain["low"], gain["high"])), width=220, left=10)
    ids = next(row for row in found["ladder"] if row["name"] == IDS)
    body = ""
    for row in found["ladder"]:
        gain = row["gain"]
        best = ' class="best"' if row["name"] == found["recommended"] else ""
        best = ' class="behind"' if row["share"] < found["top"] else best
        bar = _bar(scale, gain, 22) if gain and row["p_corrected"] is not None else ""
        numbers = f"{gain['value']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f})" if gain else ""
        cost = f"{row['gigaflops'] / ids['gigaflops']:.1f} x" if row["gigaflops"] and ids["gigaflops"] else ""
        p = f"{row['p_corrected']:.2g}" if row["p_corrected"] is not None else ""
        cells = [
            f"{row['share']:.0%}",
            str(row["seeds"]),
            f"{row['auc']:.4f}",
            f"{row['gauc']:.4f}",
            numbers,
            bar,
            p,
            cost,
        ]
        title = f"<th>{html.escape(row['label'])}<small>{html.escape(row['about'])}</small></th>"
        body += f"<tr{best}>{title}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
    names = ("", "rows", "seeds", "AUC", "GAUC", "AUC over IDs, 95 %", "", "p", "FLOPs")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _ladder_notes(found: dict[str, Any]) -> str:
    return (
        "<p class='note'>Test split, read once, after the choice on validation. A rung that was left behind, in grey, stands "
        "at the share of the training rows that it got to, against IDs there: not to be compared with the others. "
        f"Intervals: bootstrap over {found['by']}s, paired, and the seeds (a difference moves by {found['seed_sd']:.4f} "
        "from seed to seed). p: against IDs, corrected for all ways (Holm). FLOPs: of a training step, in those of IDs "
        "alone.</p>\n"
    )


def _slices(found: dict[str, Any]) -> str:
    rows = [row for row in found["slices"] if row["gain"] and (row["rows"] >= LEAST_ROWS or row["name"] == "all")]
    if not rows:
        return "<p>No slice has rows of both classes.</p>\n"
    scale = _Scale(0.0, *(v for row in rows for v in (row["gain"]["low"], row["gain"]["high"])))
    marks = ""
    for k, row in enumerate(rows):
        y = 34 + ROW * k
        share = (
            "" if row["share_of_gain"] is None or row["name"] == "all" else f", {row['share_of_gain']:.0%} of the gain"
        )
        marks += f'<text x="0" y="{y - 2}">{html.escape(row["name"])}</text>'
        marks += f'<text class="soft" x="0" y="{y + 11}">{row["share_of_rows"]:.0%} of the rows{share}</text>'
        marks += _interval(scale, row["gain"], y, "var(--c0)")
    label = words.label_of(found, found["best"])
    return _chart(f"AUC of {label} over IDs alone, 95 %", scale, marks, 34 + ROW * len(rows))


def _curve(found: dict[str, Any]) -> str:
    """The gains at each share of the rows, and the forecast."""
    curves = {name: points for name, points in found["curves"].items() if points}
    predicted = found["forecast"]
    every = [value for points in curves.values() for point in points for value in (point["low"], point["high"])]
    whole = found["data"]["splits"]["train"]["rows"]
    shares = sorted({point["share"] for points in curves.values() for point in points})
    if predicted:
        every += [predicted["low"], predicted["high"]]
        shares.append(shares[-1] * predicted["times"])
    height, low, high = 240, min(0.0, *every), max(0.0, *every)
    step = 430 / max(len(shares) - 1, 1)
    x = {share: 60 + step * k for k, share in enumerate(shares)}
    y = lambda value: 20 + (high - value) / (high - low or 1) * height  # noqa: E731
    marks = f'<line class="rule" x1="50" x2="500" y1="{y(0):.1f}" y2="{y(0):.1f}"/>'
    for value in _ticks(low, high, 5):
        marks += f'<text class="soft" x="44" y="{y(value) + 4:.1f}" text-anchor="end">{value:+.3g}</text>'
    for share in shares:
        marks += (
            f'<text class="soft" x="{x[share]:.1f}" y="{height + 42}" text-anchor="middle">{share * whole:,.0f}</text>'
        )
    order = [row["name"] for row in found["ladder"]]
    for name, points in curves.items():
        color = f"var(--c{order.index(name) % len(COLORS)})"
        path = " ".join(f"{x[p['share']]:.1f},{y(p['gain']):.1f}" for p in points)
        marks += f'<polyline fill="none" stroke="{color}" stroke-width="2" points="{path}"/>'
        for point in points:
            marks += f'<circle cx="{x[point["share"]]:.1f}" cy="{y(point["gain"]):.1f}" r="3.5" fill="{color}"/>'
    if predicted:
        last, ahead = curves[found["best"]][-1], shares[-1]
        color = f"var(--c{order.index(found['best']) % len(COLORS)})"
        a, b = (x[last["share"]], y(last["gain"])), (x[ahead], y(predicted["value"]))
        ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
        marks += f'<line stroke="{color}" stroke-dasharray="5 4" {ends}/>'
        ends = f'y1="{y(predicted["low"]):.1f}" y2="{y(predicted["high"]):.1f}"'
        marks += f'<line stroke="{color}" stroke-width="2" x1="{b[0]:.1f}" x2="{b[0]:.1f}" {ends}/>'
        marks += f'<circle cx="{b[0]:.1f}" cy="{b[1]:.1f}" r="4" fill="var(--card)" stroke="{color}" stroke-width="2"/>'
    names = [(order.index(name), words.label_of(found, name)) for name in curves]
    legend = "".join(
        f'<span><i style="background:var(--c{k % len(COLORS)})"></i>{html.escape(label)}</span>'
        for k, label in sorted(names)
    )
    title = "AUC over IDs alone, by training rows" + (
        "; dashed: the forecast, with its 95 % interval" if predicted else ""
    )
    svg = f'<svg viewBox="0 0 520 {height + 52}" role="img" aria-label="{title}">{marks}</svg>'
    return f"<figure><figcaption>{title}</figcaption>{svg}<div class='legend'>{legend}</div></figure>\n"


def _importance(found: dict[str, Any]) -> str:
    rows = found.get("importance") or []
    if not rows:
        return ""
    scale = _Scale(0.0, *(v for row in rows for v in (row["low"], row["high"])))
    marks = ""
    for k, row in enumerate(rows):
        y = 30 + ROW * k
        marks += f'<text x="0" y="{y + 4}">{html.escape(row["name"])}</text>' + _interval(scale, row, y, "var(--c0)")
    chart = _chart("AUC lost where a feature set is permuted among the items, 95 %", scale, marks, 30 + ROW * len(rows))
    return f"<h2>What of content carries it</h2>\n{chart}"


class _Scale:
    """From values to places in a chart."""

    def __init__(self, *values: float, width: int = WIDTH - LEFT - RIGHT, left: int = LEFT):
        self.low, self.high = min(values), max(values)
        self.width, self.left = width, left

    def __call__(self, value: float) -> float:
        return self.left + (value - self.low) / (self.high - self.low or 1.0) * self.width


def _interval(scale: _Scale, gain: dict[str, Any], y: float, color: str) -> str:
    """A dot with its interval."""
    a, b, c = (f"{scale(gain[key]):.1f}" for key in ("low", "high", "value"))
    line = f'<line stroke="{color}" stroke-width="2" x1="{a}" x2="{b}" y1="{y}" y2="{y}"/>'
    return f'{line}<circle cx="{c}" cy="{y}" r="4.5" fill="{color}"/>'


def _bar(scale: _Scale, gain: dict[str, Any], height: int) -> str:
    zero = f'<line class="rule" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="{height}"/>'
    width = scale.width + 2 * scale.left
    inner = zero + _interval(scale, gain, height / 2, "var(--c0)")
    return f'<svg class="bar" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{inner}</svg>'


def _chart(title: str, scale: _Scale, marks: str, height: int) -> str:
    """A chart of rows, with a line at zero and ticks below."""
    ticks = f'<line class="rule" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="14" y2="{height}"/>'
    for value in _ticks(scale.low, scale.high, 5):
        ticks += f'<text class="soft" x="{scale(value):.1f}" y="{height + 14}" text-anchor="middle">{value:+.3g}</text>'
    svg = f'<svg viewBox="0 0 {WIDTH} {height + 22}" role="img" aria-label="{html.escape(title)}">{ticks}{marks}</svg>'
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>\n"


def _ticks(low: float, high: float, count: int) -> Sequence[float]:
    """Round values between two, about `count` of them."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0**-6
    while True:
        for factor in (1, 2, 5):
            step = factor * power
            if span / step <= count:
                first = int(-(-low // step))
                return [step * k for k in range(first, int(high // step) + 1)]
        power *= 10


STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 4px 0 14px; }
h2 { font-size: 17px; margin: 30px 0 8px; }
p { margin: 6px 0; }
.kicker, .note { color: var(--soft); font-size: 13.5px; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 10px; white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; white-space: normal; min-width: 180px; }
tbody th small { display: block; color: var(--soft); font-weight: 400; font-size: 12.5px; }
tbody tr { border-top: 1px solid var(--rule); }
tr.behind > *, tr.behind small { color: var(--soft); }
tr.behind svg { opacity: .5; }
tr.best th { box-shadow: inset 3px 0 0 var(--c0); }
figure { margin: 0; padding: 12px 14px 8px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  max-width: 760px; }
figcaption { font-weight: 500; font-size: 14px; margin-bottom: 6px; }
svg { display: block; width: 100%; }
svg.bar { width: auto; }
svg text { fill: var(--ink); font-size: 12.5px; font-variant-numeric: tabular-nums; }
svg text.soft { fill: var(--soft); font-size: 11px; }
.rule { stroke: var(--rule); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
"""
