"""The page of a protocol: the same words as text, as Markdown, and as HTML without a network."""

import base64
import html
import io
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.core import strict_json, terminal
from em3_jax.core.errors import UserError
from em3_jax.report.document import document
from em3_jax.report.panels import COLORS

BESIDE = ("95 %", "p")  # columns that belong to the one before


class Table(NamedTuple):
    """A table of texts; `header` names its columns, the first `names` of which are names, `cells` has a list a row."""

    title: str
    header: list[str]
    cells: list[list[str]]
    names: int = 1

    def text(self) -> str:
        """In columns of spaces; all but the names on the right."""
        joined = [k for k, name in enumerate(self.header) if name in BESIDE]
        return f"{self.title}\n{terminal.table(self.header, self.cells, self.names, joined=joined)}"

    def markdown(self) -> str:
        """A Markdown table below its title."""
        rows = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *self.cells]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(row) + " |" for row in rows)])

    def html(self) -> str:
        """The table of a page."""
        cells = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)  # noqa: E731
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in self.cells)
        return (
            f"<h2>{html.escape(self.title)}</h2>\n<div class=wide><table><thead><tr>{cells(self.header, 'th')}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )


class Page(NamedTuple):
    """What a protocol found.

    Attributes:
      title: of the page.
      said: paragraphs: what was measured, on how many rows, and how sure it is.
      tables: in their order.
      picture: a PNG; None without.
      command: what was called.
    """

    title: str
    said: list[str]
    tables: list[Table]
    picture: bytes | None
    command: str

    def text(self) -> str:
        """For a terminal."""
        said = [terminal.paragraph(one) for one in self.said]
        return "\n\n".join([*said, *(table.text() for table in self.tables)])

    def markdown(self, picture: str) -> str:
        """The page in Markdown; `picture` is the file of the picture beside it."""
        shown = [f"![{self.title}]({picture})"] * (self.picture is not None)
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([f"# {self.title}", *self.said, *shown, *tables, f"```\n{self.command}\n```"]) + "\n"

    def html(self) -> str:
        """The page as one file."""
        shown = ""
        if self.picture is not None:
            data = base64.b64encode(self.picture).decode()
            shown = f'<img alt="{html.escape(self.title)}" src="data:image/png;base64,{data}">\n'
        said = "\n".join(f"<p>{html.escape(one)}</p>" for one in self.said)
        tables = "\n".join(table.html() for table in self.tables)
        body = (
            f"<main>\n<h1>{html.escape(self.title)}</h1>\n{said}\n{shown}{tables}\n"
            f"<pre>{html.escape(self.command)}</pre>\n</main>\n"
        )
        return document(self.title, STYLE, body)


STYLE = """
:root { color-scheme: light dark; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 16px 20px 48px; }
h1 { font-size: 22px; } h2 { font-size: 16px; margin-top: 28px; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 12px; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr { border-top: 1px solid #8884; }
pre { overflow-x: auto; padding: 8px; border: 1px solid #8884; border-radius: 6px; }
"""


def signed(value: float) -> str:
    """ "+0.0123"; "-" where it is undefined."""
    return f"{value:+.4f}" if math.isfinite(value) else "-"


def number(value: float) -> str:
    """ "0.7123"; "-" where it is undefined."""
    return f"{value:.4f}" if math.isfinite(value) else "-"


def interval(low: float, high: float) -> str:
    """ "+0.0012 to +0.0034"; "-" where none is known."""
    return f"{low:+.4f} to {high:+.4f}" if math.isfinite(low) else "-"


def command_line() -> str:
    """The command of this process, as one may call it again."""
    program = Path(sys.argv[0]).name
    name = "python -m em3_jax" if program == "__main__.py" else program
    return shlex.join([*name.split(), *sys.argv[1:]])


def folder(out: Path) -> Path:
    """The folder, made; refuses one that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot make this folder ({error.strerror}); choose another --out") from None
    return out


def write(out: Path, name: str, report: dict[str, Any], page: Page) -> list[Path]:
    """Writes <name>.json, .md, .html and .png to the folder `out`; returns their paths."""
    folder(out)
    texts = {
        ".json": strict_json.dumps(report | {"command": page.command}, indent=1) + "\n",
        ".md": page.markdown(f"{name}.png"),
        ".html": page.html(),
    }
    written = [out / f"{name}{ending}" for ending in texts]
    try:
        for path, text in zip(written, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        if page.picture is not None:
            written.append(out / f"{name}.png")
            written[-1].write_bytes(page.picture)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None
    return written


def show(page: Page, report: dict[str, Any], written: Sequence[Path] = ()) -> None:
    """Prints a page, and where it was written.

    Args:
      report: the numbers, for `--json-lines`.
      written: files.
    """
    text = "\n".join([page.text(), *(f"{path}: written" for path in written)])
    terminal.result(text, **report, written=[str(path) for path in written])


class Bar(NamedTuple):
    """A bar: its label, its value and the 95 % interval of that, NaN where it is not known."""

    label: str
    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """Points joined by a line: x, value and 95 % interval, each [n]; dashed where it is a floor."""

    label: str
    x: Sequence[float]
    value: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    is_floor: bool = False


def bars(panels: Sequence[tuple[str, Sequence[Bar]]]) -> bytes:
    """A PNG of horizontal bars with intervals, panels (title, bars) of the same labels."""
    plt = _pyplot()
    height = 1.1 + 0.3 * max(len(of) for _, of in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(2.2 + 3.6 * len(panels), height), squeeze=False, sharey=True)
    for k, (axis, (title, of)) in enumerate(zip(axes[0], panels, strict=True)):
        places = range(len(of))
        axis.barh(places, [bar.value for bar in of], height=0.62, color=COLORS[k % len(COLORS)], alpha=0.55)
        below = [max(bar.value - bar.low, 0) for bar in of]
        above = [max(bar.high - bar.value, 0) for bar in of]
        axis.errorbar([b.value for b in of], places, xerr=[below, above], fmt="none", ecolor="black", capsize=2.5, lw=1)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(places, [_literal(bar.label) for bar in of])
        axis.set_ylim(len(of) - 0.4, -0.6)
        axis.set_title(title, loc="left", fontsize=11)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.xaxis.set_major_locator(plt.MaxNLocator(5, steps=[1, 2, 5, 10]))
    return _png(figure)


def curves(panels: Sequence[tuple[str, Sequence[Curve]]], x_label: str, in_percent: bool = False) -> bytes:
    """A PNG of curves with intervals, panels (title, curves) side by side.

    Args:
      panels: whose curves have the same labels.
      x_label: what x is.
      in_percent: whether x is a share.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels) + 0.4, 3.9), squeeze=False)
    for axis, (title, of) in zip(axes[0], panels, strict=True):
        spread = max(max(curve.x) for curve in of) - min(min(curve.x) for curve in of) or 1
        for k, curve in enumerate(of):
            x = [one + (k - (len(of) - 1) / 2) * 0.008 * spread for one in curve.x]  # so that no interval hides another
            below = [v - low for v, low in zip(curve.value, curve.low, strict=True)]
            above = [high - v for v, high in zip(curve.value, curve.high, strict=True)]
            form = {"linestyle": "--" if curve.is_floor else "-", "marker": "" if curve.is_floor else "o"}
            axis.errorbar(
                x, curve.value, yerr=[below, above], label=_literal(curve.label), color=COLORS[k % len(COLORS)],
                markersize=4.5, capsize=3, linewidth=1.6, elinewidth=1, **form,
            )  # fmt: skip
        axis.set_title(_literal(title), loc="left", fontsize=11)
        axis.set_xlabel(x_label)
        axis.set_xticks(sorted({x for curve in of for x in curve.x}))
        if in_percent:
            axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return _png(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["figure.constrained_layout.use"] = True
    return plt


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    file = io.BytesIO()
    figure.savefig(file, dpi=130, format="png")
    plt.close(figure)
    return file.getvalue()


def _literal(text: str) -> str:
    """Matplotlib would read formulas between dollar signs."""
    return text.replace("$", r"\$")
