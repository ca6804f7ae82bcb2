"""Tables of docs/results/ as the pages have them: python -m reproduce.results, as part of `make docs`.

A number in a table is written once, in a JSON file, with where it comes from. A page marks where the table stands:

    <!-- generated: docs/results/tiktok.json -->
    <!-- end -->

and what is between the two is written by this program alone: the table, and below it command, config, seeds and commit. The
file has

    title      what the table is
    sources    list of {"of", "command", "config", "seeds", "commit", "note", "machine", "date"}; "of" says which rows where
               there are several. Command, seeds and commit that nobody wrote down are null, and the page says so
    columns    list of {"key", "name", "form", "interval", "unit"}; form, as "+.4f", is for all numbers of the column but
               those of intervals
    rows       list of {key: cell}

and a cell is null (nothing to tell, "-"), a text, a number, a list of cells, or what a statistic consists of, as far as it
is known: {"mean", "sd"}, {"low", "high"}, {"value", "p"}, with "form" and "unit" of its own. Further keys are kept and not
shown: "values", one a seed, and "n".

`em3 reproduce --keep docs/results/NAME.json` writes such a file of what it has just measured, see `reproduce.kept`.
"""

import json
import posixpath
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em3_jax.core.errors import UserError
from reproduce import pages

ROOT = Path(__file__).parents[1]
FOLDER = "docs/results"
BEGIN, END = "<!-- generated: {} -->", "<!-- end -->"
BEGINS = re.compile(r"^<!-- generated: ", re.MULTILINE)  # at the beginning of a line; elsewhere it is an example of one
SECTION = re.compile(r"^<!-- generated: (\S+) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE)
WIDTH = 100  # of a page's lines
SOURCE = ("command", "commit", "seeds")  # what every source has, or says that it has not
SHOWN_OF_COMMIT = 7


def read(path: Path) -> dict[str, Any]:
    """The table of a file, checked.

    Raises:
      UserError: it lacks something, or a row has what no column shows and no other file has either.
    """
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}; make it with `em3 reproduce --keep`") from error
    for name in ("title", "sources", "columns", "rows"):
        if not table.get(name):
            raise UserError(f"{path}: no {name}; `python -m pydoc reproduce.results` says what a table has")
    for source in table["sources"]:
        if lacking := [name for name in SOURCE if name not in source]:
            raise UserError(f"{path}: a source without {', '.join(lacking)}; write null where it is not known")
    keys = {column["key"] for column in table["columns"]}
    for number, row in enumerate(table["rows"]):
        if lacking := sorted(keys - row.keys()):
            raise UserError(f"{path}: rows[{number}] has no {', '.join(lacking)}; null is for nothing to tell")
    return table


def markdown(table: Mapping[str, Any], link: str) -> list[str]:
    """The lines of a table and of its sources.

    Args:
      table: of `read`.
      link: from the page to the table's file.
    """
    columns = table["columns"]
    rows = [[_cell(row[column["key"]], column) for column in columns] for row in table["rows"]]
    lines = [*pages.table([column["name"] for column in columns], rows), ""]
    told = [_source(source) for source in table["sources"]]
    if len(told) == 1:
        return lines + _wrapped(f"Source: {told[0]} ([numbers]({link})).")
    lines += [line for one in told for line in _wrapped(f"- {one}", "  ")]
    return [*lines, "", f"[Numbers]({link})."]


def _wrapped(text: str, indent: str = "") -> list[str]:
    settings: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, **settings)


def _cell(cell: Any, column: Mapping[str, Any]) -> str:
    """What a cell shows."""
    match cell:
        case None:
            return "-"
        case str():
            return cell
        case list():
            return ", ".join(_cell(one, column) for one in cell)
        case Mapping():
            return _statistic(cell, {**column, **cell})
    return _number(cell, column.get("form", ""), column.get("unit", ""))


def _statistic(cell: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    form, unit = column.get("form", ""), column.get("unit", "")
    told = ""
    if (value := cell.get("mean", cell.get("value"))) is not None:
        told = _number(value, form, unit)
        told += f" ± {cell['sd']:{form.lstrip('+')}}{unit}" if cell.get("sd") is not None else ""
    if cell.get("low") is not None:
        own = column.get("interval", form)
        between = f"{cell['low']:{own}} to {cell['high']:{own}}{unit}"
        told = f"{told} ({between})" if told else between
    if cell.get("p") is not None:
        told += f" (p {cell['p']:.2g})"
    return told or "-"


def _number(value: float, form: str, unit: str) -> str:
    return f"{value:{form}}{unit}"


def _source(source: Mapping[str, Any]) -> str:
    """ "`command`, config `x`, seeds 0 to 2, commit 0123456" of a source."""
    told = [f"`{source['command']}`"] if source["command"] else []
    told += [f"config `{source['config']}`"] if source.get("config") else []
    told += [_seeds(source["seeds"])] if source["seeds"] else []
    told += [f"commit {source['commit'][:SHOWN_OF_COMMIT]}"] if source["commit"] else []
    told += [source[name] for name in ("note", "machine", "date") if source.get(name)]
    lacking = [name for name in SOURCE if not source[name]]
    told += [f"{_listed(lacking)} not recorded"] if lacking else []
    return (f"{source['of']}: " if source.get("of") else "") + ", ".join(told)


def _seeds(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    one_by_one = len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"seeds {seeds[0]} to {seeds[-1]}" if one_by_one else f"seeds {_listed(list(map(str, seeds)))}"


def _listed(names: list[str]) -> str:
    """ "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def regenerated(page: str, text: str, root: Path = ROOT) -> str:
    """The text of a page with its marked sections made anew.

    Args:
      page: its path within the checkout, such as "docs/results.md".
      root: the checkout.

    Raises:
      UserError: a section begins and does not end, or its file cannot be read.
    """
    if len(BEGINS.findall(text)) != len(SECTION.findall(text)):
        raise UserError(f"{page}: a section '{BEGIN.format('...')}' is not closed; end it with the line {END}")

    def section(found: re.Match) -> str:
        link = posixpath.relpath(found[1], posixpath.dirname(page) or ".")
        lines = markdown(read(root / found[1]), link)
        return "\n".join([BEGIN.format(found[1]), "", *lines, "", END])

    return SECTION.sub(section, text)


def main() -> None:
    """Writes the sections of all pages anew, and says which pages have changed."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text("utf-8")
        page = str(path.relative_to(ROOT))
        if (made := regenerated(page, text)) != text:
            path.write_text(made, "utf-8")
            print(f"{page}: written")


if __name__ == "__main__":
    main()
