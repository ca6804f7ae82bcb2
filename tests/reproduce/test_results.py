"""Tables of pages: each is made of a file of docs/results/, and a new run's table becomes a page's by one command."""

import json
import re

import pytest

from reproduce import kept, results
from tests.conftest import ROOT, user_error

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MANUAL = "settings.md"  # defaults, no results; tests/config compares it with the schema
TABLE = re.compile(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n?)+)", re.MULTILINE)
MEASURED = re.compile(r"[+-]?\d[\d,]*(\.\d+)?( |$)")  # what a cell of numbers begins with
NAMED = re.compile(r"\bcommit [0-9a-f]{7}\b|Made by `")  # in the paragraph before a table, or in a row of it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_are_what_their_files_say(page):
    text = page.read_text("utf-8")
    assert results.regenerated(str(page.relative_to(ROOT)), text) == text, "python -m reproduce.results"


def test_every_file_is_on_a_page_and_says_where_it_is_from():
    marked = {name for page in PAGES for name in results.SECTION.findall(page.read_text("utf-8"))}
    files = sorted((ROOT / results.FOLDER).iterdir())
    assert marked == {str(path.relative_to(ROOT)) for path in files}
    for path in files:
        told = [source["command"] and source["commit"] for source in results.read(path)["sources"]]
        assert told[0], (
            f"{path.name}: command or commit not recorded"
        )  # what stands beside, as others' code, may lack it


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_of_numbers_is_without_a_source(page):
    text = page.read_text("utf-8")
    typed = results.SECTION.sub("", text) if page.name != MANUAL else ""
    for found in TABLE.finditer(typed):
        rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in found[1].splitlines()]
        of_numbers = [row for row in rows if any(MEASURED.match(cell) for cell in row)]
        before = typed[: found.start()].rstrip().rpartition("\n\n")[2]
        assert len(of_numbers) < len(rows) / 2 or NAMED.search(before), f"{page.name}: {found[0][:100]}"
    assert page.name != "results.md" or not TABLE.search(typed)


@pytest.fixture
def table(tmp_path):
    """A table of each kind of cell, as a file."""
    columns = [
        {"key": "what", "name": "what"},
        {"key": "auc", "name": "AUC", "form": ".4f", "interval": ".2f"},
        {"key": "gain", "name": "gain", "form": "+.1f", "unit": " %"},
    ]
    rows = [
        {"what": "a", "auc": {"mean": 0.5, "sd": 0.25, "values": [0.25, 0.75]}, "gain": None, "n": 4},
        {"what": "b", "auc": {"mean": 0.7, "sd": None}, "gain": {"low": -1, "high": 2.25}},
        {"what": "", "auc": [0.1, {"value": 3, "form": "d", "unit": " x"}], "gain": {"value": 1, "p": 0.0321}},
        {"what": "c", "auc": {"mean": 0.5, "sd": 0.1, "low": 0.4, "high": 0.6}, "gain": 7},
    ]
    source = {"command": "em3 this", "config": "configs/that.py", "seeds": [0, 1, 2], "commit": "0123456789"}
    made = {"title": "A table", "sources": [source], "columns": columns, "rows": rows}
    path = tmp_path / "docs" / "results" / "one.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(made), "utf-8")
    return path, made


def test_cells_and_sources(table, tmp_path):
    path, made = table
    text = "Before\n<!-- generated: docs/results/one.json -->\nold\n<!-- end -->\nAfter\n"
    page = results.regenerated("docs/page.md", text, tmp_path)
    assert page == results.regenerated("docs/page.md", page, tmp_path)
    assert page.splitlines() == [
        "Before",
        "<!-- generated: docs/results/one.json -->",
        "",
        "| what | AUC | gain |",
        "| --- | --- | --- |",
        "| a | 0.5000 ± 0.2500 | - |",
        "| b | 0.7000 | -1.0 to +2.2 % |",
        "|  | 0.1000, 3 x | +1.0 % (p 0.032) |",
        "| c | 0.5000 ± 0.1000 (0.40 to 0.60) | +7.0 % |",
        "",
        "Source: `em3 this`, config `configs/that.py`, seeds 0 to 2, commit 0123456",
        "([numbers](results/one.json)).",
        "",
        "<!-- end -->",
        "After",
    ]
    made["sources"] += [{"of": "others", "command": None, "seeds": [7, 9], "commit": None, "note": "of 2020"}]
    path.write_text(json.dumps(made), "utf-8")
    page = results.regenerated("README.md", text, tmp_path)
    assert "\n- others: seeds 7 and 9, of 2020, command and commit not recorded\n" in page
    assert "[Numbers](docs/results/one.json)." in page


def test_a_number_that_was_typed_is_seen(table, tmp_path):
    text = results.regenerated("a.md", "<!-- generated: docs/results/one.json -->\n<!-- end -->\n", tmp_path)
    assert results.regenerated("a.md", text.replace("0.7000", "0.7001"), tmp_path) == text


def test_mistakes_are_one_line(table, tmp_path):
    path, made = table
    open_section = "<!-- generated: docs/results/one.json -->\n"
    assert "page.md: a section" in user_error(results.regenerated, "page.md", open_section, tmp_path)
    missing = "<!-- generated: docs/results/two.json -->\n<!-- end -->"
    assert "two.json: cannot be read" in user_error(results.regenerated, "page.md", missing, tmp_path)
    for change, message in (
        ({"rows": [{"what": "a", "auc": 1}]}, "rows[0] has no gain; null is for nothing to tell"),
        ({"rows": []}, "no rows"),
        ({"sources": [{"command": "x"}]}, "a source without commit, seeds; write null where it is not known"),
    ):
        path.write_text(json.dumps(made | change), "utf-8")
        assert message in user_error(results.read, path)
    assert "--keep" in user_error(kept.check, tmp_path / "nowhere" / "one.json")
