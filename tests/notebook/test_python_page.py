"""The page on Python and the examples of all public names are run as they stand, in an empty folder with planted data."""

import ast
import doctest
import importlib
import inspect
import re
import tarfile

import numpy as np
import pytest

import em3_jax as em3
from em3_jax import serving
from tests.conftest import ROOT
from tests.test_before_rooms import FILES

pytestmark = pytest.mark.quickly_compiled


@pytest.fixture
def folder(planted, tmp_path, monkeypatch):
    """A folder with data/synthetic, and a store that serves."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthetic").symlink_to(planted.root)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs_as_it_stands(folder, capsys):
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    assert all("range(200)" in block for block in blocks[1:3])
    blocks[1:3] = [block.replace("range(200)", "range(4)") for block in blocks[1:3]]
    scope: dict = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), scope)
    assert int(scope["state"].step) == 4
    assert [int(state.step) for state in scope["states"]] == [4, 4, 4]
    assert scope["own"].model.loss is scope["brier_loss"]
    assert em3.Experiment(scope["own"]).parts.work.task.loss_of_clicks is scope["brier_loss"]
    assert scope["looked"].history.keys() == {"id_attention", "content_attention"}
    assert (folder / "runs" / "python" / "run.json").is_file()
    aucs = re.findall(r"^0\.\d+$", capsys.readouterr().out, re.MULTILINE)
    assert len(aucs) == 2 and np.all(np.array(aucs, float) > 0.3)


@pytest.fixture
def store(folder):
    """The folder "store" that the examples serve."""
    with tarfile.open(FILES) as archive:
        inside = [one for one in archive.getmembers() if one.name.startswith("./store")]
        archive.extractall(folder, inside, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def of_module(module: str, functions_alone: bool = False) -> list[tuple[str, str]]:
    """(module, name) of what is defined there without an underscore; of a class its methods belong to its example."""
    kinds = (ast.FunctionDef,) if functions_alone else (ast.FunctionDef, ast.ClassDef)
    path = ROOT / f"{module.replace('.', '/')}.py"
    made = [node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, kinds)]
    return [(module, name) for name in made if not name.startswith("_")]


TABLES = sorted(f"em3_jax.tables.{path.stem}" for path in (ROOT / "em3_jax" / "tables").glob("[!_]*.py"))
PUBLIC = [("em3_jax", name) for name in em3.__all__ if not name.startswith("_")]
PUBLIC += [("em3_jax.serving", name) for name in serving.__all__]
PUBLIC += [one for module in ("em3_jax.losses", "em3_jax.metrics") for one in of_module(module)]
PUBLIC += [one for module in TABLES for one in of_module(module, functions_alone=True)]


def failures(documented: str, name: str) -> int:
    """How many lines of a docstring's example do not give what stands below them; it stands alone, imports and all."""
    example = doctest.DocTestParser().get_doctest(documented, {}, name, None, 0)
    assert example.examples, f"{name} has no example"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.DocTestRunner(optionflags=flags).run(example).failed


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_name_has_an_example_that_runs(store, module, name):
    documented = inspect.getdoc(getattr(importlib.import_module(module), name))
    assert documented and documented.partition("\n\n")[0].endswith("."), "a sentence comes first"
    assert not failures(documented, f"{module}.{name}")


def test_classes_that_have_examples_run_them(store):
    kept = [one for module in (*TABLES, "em3_jax.core.terminal") for one in of_module(module)]
    texts = {one: inspect.getdoc(getattr(importlib.import_module(one[0]), one[1])) or "" for one in kept}
    shown = {one: text for one, text in texts.items() if ">>>" in text and one not in PUBLIC}
    assert ("em3_jax.tables.sketch", "CountMin") in shown
    assert not [one for one, text in shown.items() if failures(text, ".".join(one))]


def test_an_example_that_is_wrong_or_missing_fails(capsys):
    assert failures(">>> 1 + 1\n3", "wrong") == 1 and failures(">>> 1 + 1\n2", "right") == 0
    with pytest.raises(AssertionError, match=r"bare has no example"):
        failures("Does something.", "bare")


def test_what_is_public_is_named_once_and_is_lazy():
    assert sorted(em3.__all__) == em3.__all__ and set(em3.__all__) == {"__version__", *em3._MODULES}
    assert set(em3.__all__) <= set(dir(em3))
