"""Pages hold together: links lead somewhere, and the README is read in one sitting."""

import json
import re
from pathlib import Path

import pytest
import yaml

from em3_jax import __version__

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
BESIDE = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md")]
PAGES = [ROOT / "README.md", *DOCS, *BESIDE]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text("utf-8"))
    words = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in words}


def text_of(page: Path) -> str:
    """A page's text, or what stands in a notebook's cells of text."""
    text = page.read_text("utf-8")
    if page.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    return FENCED.sub("", text)


@pytest.mark.parametrize("page", PAGES + NOTEBOOKS, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = LINK.findall(text_of(page))
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in headings(target), link


def test_every_page_is_reached_from_the_readme():
    reached = set(LINK.findall(PAGES[0].read_text("utf-8")))
    assert {str(page.relative_to(ROOT)) for page in PAGES[1:]} <= reached


def test_the_site_has_every_page():
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = set(re.findall(r"^ +- [^:]+: (\S+\.md)$", site, re.MULTILINE))
    pages = {page.name for page in DOCS} | {str(page.relative_to(ROOT)) for page in BESIDE}
    pages |= {f"examples/{notebook.stem}.md" for notebook in NOTEBOOKS}
    assert nav == pages | {"index.md", *(f"benchmarks/{name}.md" for name in ("NOTES", "SCALE", "SPEEDRUN"))}


def test_every_finding_is_told_in_words():
    page = (ROOT / "docs/findings.md").read_text("utf-8")
    told = re.findall(r"\(\.\./(findings/\w+\.sh)\)", page)
    scripts = {f"findings/{path.name}" for path in (ROOT / "findings").iterdir()}
    assert set(told) == scripts and len(told) == len(scripts)


def test_the_readme_is_read_in_one_sitting():
    text = PAGES[0].read_text("utf-8")
    assert len(text.split()) <= 900
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")] == []


def test_what_is_cited_is_this_version_and_the_papers_of_the_readme():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    papers = re.findall(r"https://arxiv\.org/abs/[\d.]+", PAGES[0].read_text("utf-8"))
    assert cited["version"] == __version__
    assert [one["url"] for one in cited["references"]] == papers
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
