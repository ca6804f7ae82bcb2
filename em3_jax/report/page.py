"""The page of `plot`: one HTML file that asks nothing of the network. The panels are drawn in the browser, as SVG, from JSON."""

import html
import math

from em3_jax.core import strict_json
from em3_jax.report.document import document, palette
from em3_jax.report.panels import COLORS, DASHES, DOTS, Panel

GROUPS = {
    "losses": "Losses",
    "validation": "Validation",
    "speed": "Speed",
    "norms": "Norms",
    "model": "Inside the model",
    "further": "Further values",
}
FOLDED = "further"
MOST_SETTINGS = 8  # more are folded: the panels should be in sight


def page(
    panels: list[Panel],
    names: list[str],
    x_label: str,
    rows: list[dict[str, str]],
    settings: list[list[str]],
    notes: list[str],
    folded: bool = True,
) -> str:
    """The HTML.

    Args:
      panels: in their order.
      names: of the runs.
      x_label: what x is.
      rows: of the table, one a run, column -> text.
      settings: [name, value in each run] of those that differ.
      notes: sentences above the panels.
      folded: whether the group of further values begins folded.
    """
    groups = [group for group in GROUPS if any(panel.group == group for panel in panels)]
    sections = "".join(_section(group, panels, folded and group == FOLDED and len(groups) > 1) for group in groups)
    data = {"runs": names, "x": x_label, "dashes": DASHES, "dots": DOTS, "colors": len(COLORS)}
    data |= {"panels": [_plain(panel) for panel in panels]}
    # No "<" is left, so no name can end the script.
    text = strict_json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    body = (
        f'<header><h1>Runs</h1><div id="legend"></div><button id="theme" aria-label="light or dark">◐</button></header>\n'
        f"<main>\n{_runs_table(rows)}{_settings_table(settings, names)}{said}{sections}</main>\n"
        f'<div id="tip" role="status" hidden></div>\n<script type="application/json" id="data">{text}</script>\n'
    )
    return document(", ".join(names), palette() + STYLE, body, SCRIPT)


def _plain(panel: Panel) -> dict:
    lines = []
    for line in panel.lines:
        y = [value if math.isfinite(value) else None for value in line.y]
        steps = {} if list(line.x) == list(line.steps) else {"steps": list(line.steps)}
        beside = {"beside": line.beside} if line.beside else {}
        plain = {"run": line.run, "x": list(line.x), "y": y, "best": line.best}
        lines.append(plain | steps | beside)
    return {"name": panel.name, "zero": panel.from_zero, "lines": lines}


def _section(group: str, panels: list[Panel], folded: bool) -> str:
    cards = "".join(
        f'<figure><figcaption>{html.escape(panel.title)}</figcaption><div class="plot" data-panel="{k}"></div></figure>'
        for k, panel in enumerate(panels)
        if panel.group == group
    )
    state = "" if folded else " open"
    return f'<details{state}><summary>{GROUPS[group]}</summary><div class="grid">{cards}</div></details>\n'


def _swatch(run: int) -> str:
    return f'<i class="swatch" style="--c: var(--c{run % len(COLORS)})"></i>'


def _runs_table(rows: list[dict[str, str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in rows[0])
    body = ""
    for k, row in enumerate(rows):
        first, *others = row.values()
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in others)
        body += f"<tr><th>{_swatch(k)}{html.escape(first)}</th>{cells}</tr>"
    return f'<div class="table"><table id="runs"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>\n'


def _settings_table(settings: list[list[str]], names: list[str]) -> str:
    if not settings:
        return ""
    head = "".join(f"<th>{_swatch(k)}{html.escape(name)}</th>" for k, name in enumerate(names))
    body = "".join(
        f"<tr><th>{html.escape(setting)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for setting, *cells in settings
    )
    count = f"{len(settings)} setting{'s differ' if len(settings) > 1 else ' differs'}"
    table = f"<table><thead><tr><th>config</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    state = " open" if len(settings) <= MOST_SETTINGS else ""
    return f'<details id="settings"{state}><summary>{count}</summary><div class="table">{table}</div></details>\n'


STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header { position: sticky; top: 0; z-index: 2; display: flex; align-items: center; gap: 8px 16px; padding: 8px 20px;
  background: var(--card); border-bottom: 1px solid var(--rule); }
h1 { font-size: 17px; margin: 0; }
main { max-width: 1400px; margin: 0 auto; padding: 16px 20px 48px; }
main > p { color: var(--soft); margin: 6px 0; }
#legend { display: flex; flex-wrap: wrap; gap: 6px; flex: 1; min-width: 0; max-height: 30vh; overflow-y: auto; }
button { font: inherit; color: inherit; background: none; border: 1px solid var(--rule); border-radius: 6px; padding: 3px 10px;
  cursor: pointer; max-width: 100%; overflow-wrap: anywhere; text-align: left; }
button:hover { border-color: var(--soft); }
button[aria-pressed=false] { color: var(--soft); text-decoration: line-through; }
button[aria-pressed=false] .swatch { opacity: .45; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; background: var(--c); margin-right: 7px; }
.table { overflow-x: auto; margin: 4px 0 12px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px; white-space: nowrap; }
td { max-width: 46ch; overflow: hidden; text-overflow: ellipsis; }
#settings td { white-space: normal; min-width: 14ch; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; }
tbody th { font-weight: 500; }
tbody tr { border-top: 1px solid var(--rule); }
details { margin: 14px 0; }
summary { font-weight: 600; cursor: pointer; padding: 4px 0; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); margin-top: 6px; }
figure { margin: 0; padding: 12px 12px 6px; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  min-width: 0; }
figcaption { font-weight: 500; font-size: 14px; margin-bottom: 4px; overflow-wrap: anywhere; }
.plot { height: 220px; }
svg { display: block; width: 100%; height: 100%; touch-action: pan-y; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
.rule { stroke: var(--rule); }
.pointer { stroke: var(--soft); stroke-dasharray: 3 3; }
.line { fill: none; stroke: var(--c); stroke-width: 1.7; stroke-linejoin: round; }
.dot { fill: var(--c); }
.best { fill: var(--c); stroke: var(--card); stroke-width: 2; }
#tip { position: absolute; z-index: 3; pointer-events: none; background: var(--card); border: 1px solid var(--rule);
  border-radius: 7px; box-shadow: 0 3px 14px #0003; padding: 7px 11px; font-size: 13px; font-variant-numeric: tabular-nums;
  max-width: min(340px, 94vw); }
#tip[hidden] { display: none; }
#tip b { font-weight: 500; color: var(--soft); }
#tip div { display: flex; align-items: baseline; gap: 0; }
#tip span { flex: 1; overflow-wrap: anywhere; margin-right: 16px; }
@media (max-width: 600px) { main { padding: 12px 10px 40px; } header { padding: 8px 10px; } h1 { display: none; } }
"""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const hidden = new Set();
const color = (run) => `--c: var(--c${run % data.colors})`;
const margin = {left: 54, right: 12, top: 8, bottom: 36}, height = 220;

function make(parent, tag, attributes, text) {
  const svg = parent.namespaceURI.endsWith("svg") || tag === "svg";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

// 1, 2 or 5 times a power of ten apart.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const apart = power * ([1, 2, 5].find((factor) => factor * power >= rough * 0.999) || 10);
  const places = Math.max(0, -Math.floor(Math.log10(apart) + 1e-9));
  const text = (value) => Math.abs(value) >= 1e5 || (places > 5 && value !== 0)
    ? value.toExponential(1).replace("e+", "e") : value.toLocaleString("en", {maximumFractionDigits: places});
  const found = [];
  for (let k = Math.ceil(low / apart - 1e-9); k * apart <= high + apart * 1e-9; k++) found.push(k * apart || 0);
  return found.map((value) => [value, text(value)]);
}

const shown = (value) => value === 0 ? "0" : Math.abs(value) >= 1e4 && Math.abs(value) < 1e9
  ? Math.round(value).toLocaleString("en") : Math.abs(value) < 1e-4 || Math.abs(value) >= 1e9
  ? value.toExponential(3) : value.toPrecision(5);

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return [low, high];
}

function draw(box) {
  const panel = data.panels[box.dataset.panel], width = box.clientWidth;
  if (!width) return;
  box.replaceChildren();
  const svg = make(box, "svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": panel.name});
  const lines = panel.lines.filter((line) => !hidden.has(line.run));
  if (!lines.length) return;
  let [left, right] = extent(lines.flatMap((line) => line.x));
  let [low, high] = extent(lines.flatMap((line) => line.y));
  if (panel.zero) low = Math.min(low, 0);
  if (left === right) { left -= 1; right += 1; }
  const spread = high - low || Math.abs(high) || 1;
  high += spread * 0.06;
  if (!panel.zero) low -= spread * 0.06;
  const plot = {width: width - margin.left - margin.right, height: height - margin.top - margin.bottom};
  const px = (x) => margin.left + (x - left) / (right - left) * plot.width;
  const py = (y) => margin.top + (high - y) / (high - low) * plot.height;
  for (const [value, text] of ticks(low, high, 6)) {
    make(svg, "line", {class: "rule", x1: margin.left, x2: width - margin.right, y1: py(value), y2: py(value)});
    make(svg, "text", {x: margin.left - 7, y: py(value) + 4, "text-anchor": "end"}, text);
  }
  for (const [value, text] of ticks(left, right, width > 330 ? 5 : 4)) {
    const anchor = px(value) > width - margin.right - 16 ? "end" : "middle";
    make(svg, "text", {x: px(value) + (anchor === "end" ? 6 : 0), y: height - margin.bottom + 16, "text-anchor": anchor}, text);
  }
  make(svg, "text", {x: width - margin.right, y: height - 3, "text-anchor": "end"}, data.x);
  for (const line of lines) drawLine(svg, line, px, py);
  hover(svg, lines, left, right, px, py, width);
}

function drawLine(svg, line, px, py) {
  const style = color(line.run) + (line.beside ? "; stroke-width: 1" : "");
  const round = Math.floor(line.run / data.colors);
  const dash = line.beside ? data.dots : data.dashes[round % data.dashes.length];
  let path = "", open = false;
  line.y.forEach((y, k) => {
    if (y !== null) path += `${open ? "L" : "M"}${px(line.x[k]).toFixed(1)} ${py(y).toFixed(1)}`;
    if (y !== null && !open && (line.y[k + 1] ?? null) === null)
      make(svg, "circle", {class: "dot", style, cx: px(line.x[k]), cy: py(y), r: 2.6});
    open = y !== null;
  });
  make(svg, "path", {class: "line", "data-run": line.run, style, d: path, "stroke-dasharray": dash.join(" ") || "none"});
  if (line.best !== null)
    make(svg, "circle", {class: "best", style, cx: px(line.x[line.best]), cy: py(line.y[line.best]), r: 5.5});
}

function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (xs[middle] < x) low = middle + 1; else high = middle; }
  return low > 0 && x - xs[low - 1] <= xs[low] - x ? low - 1 : low;
}

function hover(svg, lines, left, right, px, py, width) {
  const layer = make(svg, "g", {});
  const leave = () => { tip.hidden = true; layer.replaceChildren(); };
  const move = (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const wanted = left + (at - margin.left) / (width - margin.left - margin.right) * (right - left);
    const points = lines.map((line) => [line, nearest(line.x, wanted)]);
    const x = points.map(([line, k]) => line.x[k]).reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
    layer.replaceChildren();
    tip.replaceChildren();
    make(layer, "line", {class: "pointer", x1: px(x), x2: px(x), y1: margin.top, y2: height - margin.bottom});
    const bySteps = !lines[0].steps;
    make(tip, "b", {}, bySteps ? `step ${x.toLocaleString("en")}` : `${x.toFixed(2)} minutes`);
    for (const [line] of points) {
      const k = nearest(line.x, x), y = line.y[k];
      if (x < line.x[0] || x > line.x[line.x.length - 1]) continue;  // not begun, or over
      const row = make(tip, "div", {style: color(line.run)});
      make(row, "i", {class: "swatch"});
      make(row, "span", {}, data.runs[line.run] + (line.beside ? `, ${line.beside}` : ""));
      const where = bySteps ? (line.x[k] === x ? "" : ` at ${line.x[k].toLocaleString("en")}`)
        : ` at step ${line.steps[k].toLocaleString("en")}`;
      make(row, "em", {style: "font-style: normal"}, (y === null ? "undefined" : shown(y)) + where);
      if (y !== null) make(layer, "circle", {class: "best", style: color(line.run), cx: px(line.x[k]), cy: py(y), r: 4});
    }
    tip.hidden = false;
    const beside = event.pageX + 16 + tip.offsetWidth > document.documentElement.clientWidth + scrollX;
    tip.style.left = `${Math.max(scrollX + 4, beside ? event.pageX - tip.offsetWidth - 16 : event.pageX + 16)}px`;
    tip.style.top = `${Math.max(scrollY + 4, event.pageY - tip.offsetHeight - 12)}px`;
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}

const boxes = document.querySelectorAll(".plot");
const drawAll = () => { tip.hidden = true; boxes.forEach(draw); };
data.runs.forEach((name, run) => {
  const button = make(document.getElementById("legend"), "button", {"aria-pressed": "true", title: "show or hide"});
  make(button, "i", {class: "swatch", style: color(run)});
  button.append(name);
  button.addEventListener("click", () => {
    if (!hidden.delete(run)) hidden.add(run);
    button.setAttribute("aria-pressed", String(!hidden.has(run)));
    drawAll();
  });
});
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
});
document.querySelectorAll("details").forEach((node) => node.addEventListener("toggle", drawAll));
addEventListener("resize", drawAll);
drawAll();
"""
