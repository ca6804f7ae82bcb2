"""Pages hold together: links lead somewhere, and the README is read in one sitting."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text("utf-8"))
    words = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = LINK.findall(FENCED.sub("", page.read_text("utf-8")))
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
    pages = {f"docs/{page.name}" for page in PAGES[1:]}
    assert pages <= reached


def test_the_readme_is_read_in_one_sitting():
    text = PAGES[0].read_text("utf-8")
    assert len(text.split()) <= 900
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")] == []
