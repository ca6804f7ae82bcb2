"""The wheel, away from the checkout: every command is there, and a model goes from planted data to scores."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from em3_jax.__main__ import COMMANDS
from tests.conftest import ROOT

pytestmark = pytest.mark.quickly_compiled

SMALL = (
    "--config.model.fusion_settings.width=8", "--config.model.fusion_settings.ffn_width=8",
    "--config.model.backbone_settings.hidden=(8,)", "--config.data.history_length=8",
    "--config.data.batch_size=64", "--config.train.epochs=0.3", "--config.eval.batch_size=128",
)  # fmt: skip
SCORE = """
import sys
from em3_jax.serving import Service
with Service(sys.argv[1]) as service:
    print(len(service.model.score(1, [2, 3], [4, 5, 6]).probability))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A folder that holds what the wheel holds, installed without what it needs."""
    built, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    tree = tmp_path_factory.mktemp("source")
    for name in ("em3_jax", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", built, tree], check=True)
    (file,) = built.glob("*.whl")
    zipfile.ZipFile(file).extractall(site)
    return site


@pytest.fixture
def call(wheel, tmp_path):
    """Runs Python in an empty folder on the wheel's files; -S: without the checkout that this environment has installed."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(wheel), sysconfig.get_path("purelib")]))

    def run(*arguments: str, path: str = "", code: int = 0) -> str:
        environment_ = environment | {
            "PYTHONPATH": os.pathsep.join([path, environment["PYTHONPATH"]]).strip(os.pathsep)
        }
        command = [sys.executable, "-S", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment_, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout if not code else done.stderr

    return run


def test_from_planted_data_to_scores(call, wheel):
    where = call("-c", "import em3_jax; print(em3_jax.__file__)")
    assert Path(where.strip()).is_relative_to(wheel)
    em3 = ("-m", "em3_jax")
    call(*em3, "prepare", "synthetic", "--interactions", "1500", "--users", "60", "--items", "40", "--out", "data")
    said = call(*em3, "train", "--config=em3_synthetic", "--config.data.root=data", "--workdir=run", *SMALL)
    assert "next: em3 eval --workdir=run" in said, "there is no eval.py here"
    assert "auc" in call(*em3, "eval", "--workdir=run")
    assert "version 0000001" in call(*em3, "export", "--workdir", "run", "--out", "store", "--platforms", "cpu")
    assert call("-c", SCORE, "store").strip() == "3"


def test_help_names_every_command_and_recipe(call):
    text = call("-m", "em3_jax", "--help")
    for name, command in COMMANDS.items():
        assert f"  {name:<12}{command.about}\n" in text
    of_train = call("-m", "em3_jax", "train", "--help")
    for recipe in (ROOT / "configs").glob("*.py"):
        assert f"configs/{recipe.name}" in of_train or recipe.stem == "base"
    assert "did you mean 'compare'?" in call("-m", "em3_jax", "comapre", code=2)
    assert call("-m", "em3_jax.compare", "--help") == call("-m", "em3_jax", "compare", "--help")


def test_old_ways_to_call_a_command_are_doors_to_it(call):
    # files of a checkout, or newer than doors
    without = ("train", "eval", "reproduce", "recommend", "convert-config", "seal", "replay")
    for name in COMMANDS:
        if name not in without:
            assert (
                call("-c", f"import importlib.util as u; print(bool(u.find_spec('em3_jax.{name}')))").strip() == "True"
            )


def test_a_missing_extra_is_one_line_that_says_which(call, tmp_path):
    (tmp_path / "without").mkdir()
    program = "raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')"
    (tmp_path / "without" / "fastapi.py").write_text(program, encoding="utf-8")
    said = call("-m", "em3_jax", "serve", "--store", "x", path=str(tmp_path / "without"), code=2)
    assert said == "error: this needs fastapi; pip install 'em3_jax[serve]'\n"
