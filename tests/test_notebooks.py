"""The notebooks of examples/ run cell by cell, and print what is stored in them.

They are small enough to be run as they stand, without Jupyter: cells are Python alone. What a run prints must be what
is stored, word by word; of its numbers those with a decimal point may differ by `TOLERANCE`, since machines round
otherwise and training goes on from there.
"""

import contextlib
import io
import json
import re
from pathlib import Path

import matplotlib
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.seconds(120)

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NUMBER = re.compile(r"[+-]?\d+\.\d+")
TOLERANCE = 0.05  # five to ten times what other programs for the same sums have moved them by
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict) -> str:
    """What is stored of a cell's text."""
    return "".join("".join(one["text"]) for one in cell["outputs"] if one["output_type"] == "stream")


def check_same(found: str, stored: str, tolerance: float = TOLERANCE) -> None:
    """Fails unless both are the same text but for decimals within the tolerance."""
    assert NUMBER.sub("#", found).split() == NUMBER.sub("#", stored).split()
    pairs = zip(map(float, NUMBER.findall(found)), map(float, NUMBER.findall(stored)), strict=True)
    assert [pair for pair in pairs if abs(pair[0] - pair[1]) > tolerance] == []


@each
def test_runs_and_prints_what_is_stored(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: (drawn.extend(plt.get_fignums()), plt.close("all")))
    scope: dict = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path)):
        said = io.StringIO()
        drawn.clear()
        with contextlib.redirect_stdout(said):
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), scope)
        check_same(said.getvalue(), printed(cell))
        pictures = [one for one in cell["outputs"] if "image/png" in one.get("data", {})]
        assert len(drawn) == len(pictures)


@each
def test_is_stored_as_it_ran_from_top_to_bottom(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [one for cell in cells for one in cell["outputs"]]
    assert {one["output_type"] for one in outputs} == {"stream", "display_data"}  # no errors, no bare values
    assert {one["name"] for one in outputs if one["output_type"] == "stream"} == {"stdout"}  # no warnings
    assert not re.search(r"(?<![\w.])/\w+/", "".join(map(printed, cells)))  # no path of some machine
    assert sum(len("".join(cell["source"]).splitlines()) for cell in cells) < 80
    assert path.stat().st_size < 100_000


def test_numbers_that_moved_are_seen():
    check_same("AUC 0.781, 3 of 4", "AUC  0.785, 3 of 4")
    for other in ("AUC 0.681, 3 of 4", "AUC 0.781, 2 of 4", "AUC 0.781 0.781, 3 of 4", "GAUC 0.781, 3 of 4"):
        with pytest.raises(AssertionError):
            check_same(other, "AUC 0.785, 3 of 4")
