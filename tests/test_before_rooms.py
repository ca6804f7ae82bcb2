"""What the commit before the rooms made is read as it was: a run resumed and evaluated, a store served and updated."""

import json
import tarfile
from pathlib import Path

import pytest

from em3_jax import evaluate, train
from em3_jax.core import strict_json
from em3_jax.export import command as export
from em3_jax.serving import Service, store
from em3_jax.training import rundir
from tests.conftest import ROOT

FILES = ROOT / "tests" / "data" / "before_rooms" / "files.tar.xz"


@pytest.fixture
def before(tmp_path, monkeypatch) -> Path:
    """The folder of data/, run/ and store/, where one is: the run names its dataset by a relative path."""
    options = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, **options)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def expected(before) -> dict:
    return strict_json.undefined_as_nan(json.loads((before / "expected.json").read_text("utf-8")))


def test_its_evaluation_is_the_same(before, expected):
    found = evaluate.evaluate(before / "run", "test")["slices"]
    for name, values in expected["test"].items():
        assert {key: found[name][key] for key in values} == pytest.approx(values, abs=1e-5, nan_ok=True)


def test_a_run_goes_on_to_the_same_numbers(before, expected):
    config = rundir.read("run")["config"]
    config["train"]["epochs"] = 1.4
    assert train.train(config, "run")["step"] == 27
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text("utf-8").splitlines()]
    later = [line for line in lines if "valid/auc" in line and line["step"] > 14]
    assert len(later) == len(expected["resumed"]) == 3
    for line, values in zip(later, expected["resumed"], strict=True):
        assert {key: line[key] for key in values} == pytest.approx(values, abs=1e-5)


def test_its_store_is_served_and_updated(before, expected):
    for version in ("0000001", "0000002"):
        assert store.current_name(Path("store")) == version
        with Service("store") as service:
            scores = service.model.score(3, [1, 2, 3], [4, 5, 6, 7]).probability
            assert scores.tolist() == pytest.approx(expected["scores"], abs=1e-5)
            assert service.model.lookup([5]).vectors[0].tolist() == pytest.approx(expected["vector"], abs=1e-4)
        if version == "0000001":
            done = export.export("run", "store", export.Settings(platforms=("cpu",), update=True))
            assert done.encoded == 0, "the items' vectors are taken over from the version before"
