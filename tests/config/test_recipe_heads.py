"""What recipes say of themselves: commands that name them, and results and costs that a page of the project has."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem != "base"]
EXPECTED = re.compile(r"^Expected [^\n]*\((?P<page>\S+\.md)\): (?P<said>.+?)\.$", re.MULTILINE | re.DOTALL)
COST = re.compile(r"^Cost \((?P<page>\S+\.md)\): (?P<said>.+)\.$", re.MULTILINE)
ONE_COST = re.compile(r"(?P<variant>[\w,]+) (?P<seconds>[\d,]+) s of processors and (?P<memory>\d+\.\d GB)")
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


def test_costs_are_those_of_a_row_of_the_page_that_names_the_command():
    found = {path.stem: COST.search(head(path)) for path in RECIPES}
    costs = {stem: one for stem, one in found.items() if one}
    assert "em3_synthetic" in costs and all(
        "\nCost" not in head(ROOT / f"configs/{stem}.py") for stem in {*found} - {*costs}
    )
    for stem, cost in costs.items():
        rows = [
            line
            for line in (ROOT / cost["page"]).read_text("utf-8").splitlines()
            if line.startswith("| `python train.py")
        ]
        parts = cost["said"].split(", ")
        for part in parts:
            one = ONE_COST.fullmatch(part)
            assert one, f"{stem}: '{part}' is no cost: <variant> <n> s of processors and <n.n> GB"
            cells = f" | {one['seconds']} s | {one['memory']} |"
            own = f"--config=configs/{stem}.py"
            named = [
                row
                for row in rows
                if f"{own}:{one['variant']}" in row or (one["variant"] == "default" and f"{own} " in row)
            ]
            assert [row for row in named if row.endswith(cells)], f"{stem}: {cost['page']} has no row with '{part}'"
