"""The page on Python and the examples of all public names are run as they stand, in an empty folder with planted data."""

import doctest
import inspect
import re
import tarfile

import numpy as np
import pytest

import em3_jax as em3
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


@pytest.mark.parametrize("name", [name for name in em3.__all__ if not name.startswith("_")])
def test_every_public_name_has_an_example_that_runs(folder, name):
    with tarfile.open(FILES) as archive:
        store = [one for one in archive.getmembers() if one.name.startswith("./store")]
        archive.extractall(folder, store, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    documented = inspect.getdoc(getattr(em3, name))
    assert documented and documented.partition("\n")[0].endswith(".")
    example = doctest.DocTestParser().get_doctest(documented, {}, f"em3.{name}", None, 0)
    assert example.examples, f"em3.{name} has no example"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.DocTestRunner(optionflags=flags).run(example)
    assert not failed


def test_what_is_public_is_named_once_and_is_lazy():
    assert sorted(em3.__all__) == em3.__all__ and set(em3.__all__) == {"__version__", *em3._MODULES}
    assert set(em3.__all__) <= set(dir(em3))
