"""What recipes say of themselves: commands that name them, and results that a page of the project has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "base"]
EXPECTED = re.compile(r"^Expected [^\n]*\((?P<page>\S+\.md)\): (?P<said>.+?)\.$", re.MULTILINE | re.DOTALL)
DEPENDS_ON_THE_DATA = ("own_data",)


def head(path: Path) -> str:
    return path.read_text("utf-8").split('"""')[1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_has_commands_and_results_that_a_page_has(path):
    assert re.search(rf"--config[= ]configs/{path.stem}\.py", head(path)), "no command that names it"
    found = EXPECTED.search(head(path))
    assert (found is None) == (path.stem in DEPENDS_ON_THE_DATA)
    if found:
        page, numbers = (
            (ROOT / found["page"]).read_text("utf-8"),
            re.findall(r"[+-]?\d\.\d+(?: ± \d\.\d+)?", found["said"]),
        )
        assert numbers and [number for number in numbers if number not in page] == []
