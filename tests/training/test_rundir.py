"""workdir: what a run's record says of the machine."""

import json
import warnings

import pytest

from em3_jax.config import parse, schema
from em3_jax.config.schema.lemur import FieldEncoder as EncoderSettings
from em3_jax.config.schema.ranking import Data
from em3_jax.training import rundir
from em3_jax.training.run import Run
from tests.conftest import user_error

RUN = schema.Ranking(data=Data(root="data/any"))


def claim(folder):
    return rundir.claim(folder, RUN, "hash", {})


def test_a_run_that_goes_on_with_other_cores_says_so(tmp_path, monkeypatch):
    """Sums on CPUs are divided over the cores, so the last digits depend on them."""
    monkeypatch.setattr(rundir, "cores", lambda: 4)
    assert not claim(tmp_path) and rundir.read(tmp_path)["cores"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert claim(tmp_path)
    for now, hint in ((2, None), (8, "taskset -c 0-1")):
        before = rundir.read(tmp_path)["cores"]
        monkeypatch.setattr(rundir, "cores", lambda now=now: now)
        with pytest.warns(UserWarning, match=f"on {before} CPU cores and goes on with {now}") as warned:
            assert claim(tmp_path)
        text = str(warned[0].message)
        assert "\n" not in text and (hint is None) == ("taskset" not in text) and (hint or "") in text
        assert rundir.read(tmp_path)["cores"] == now


def test_the_number_of_cores_is_that_of_this_process():
    assert 1 <= rundir.cores() <= 4096


def test_what_a_run_of_an_earlier_version_lacks_is_as_it_was_then(tmp_path):
    claim(tmp_path)
    path = tmp_path / "run.json"
    record = json.loads(path.read_text("utf-8"))
    del record["config"]["model"]["cic"]["over"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert Run.open(tmp_path).config == RUN
    assert claim(tmp_path), "it goes on"
    of_lemur = {"task": "lemur", "model": {"encoder": {"width": 32}}, "stream": {}, "data": {"root": "data/any"}}
    path.write_text(json.dumps(record | {"config": of_lemur}), encoding="utf-8")
    found = Run.open(tmp_path).config
    assert isinstance(found, schema.Lemur) and found.model.encoder == EncoderSettings(width=32, means=False)
    assert found.data.order == "chronological"


@pytest.mark.parametrize(
    "change",
    [
        {"config": None}, {"config": 3}, {"data_hash": 3}, {"data_hash": None}, {"features": 3}, {"config": {"model": 3}},
        {"config": {"data": None}}, {"own_files": []},
    ],
)  # fmt: skip
def test_what_is_no_record_of_a_run_is_one_line(tmp_path, change):
    claim(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text("utf-8")) | change
    for wrong in (record, [1], 3, None):
        (tmp_path / "run.json").write_text(json.dumps(wrong), encoding="utf-8")
        assert "is not the record of a run; train again" in user_error(Run.open, tmp_path)


def test_a_setting_that_is_wrong_in_a_record_is_said_with_its_file(tmp_path):
    claim(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text("utf-8"))
    for section, message in (({"epochs": "eight"}, "train.epochs='eight': give a"), ({"num_steps": 3}, "unknown key")):
        record["config"]["train"] = section
        (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
        for refused in (lambda: Run.open(tmp_path).config, lambda: claim(tmp_path)):
            found = user_error(refused)
            assert found.startswith(f"{tmp_path}/run.json: config.train.") and message in found


def test_settings_of_a_model_of_ones_own_are_the_same_again(tmp_path):
    """A tuple is a list in JSON."""
    model = {"retrieval": "mine:Model", "retrieval_settings": {"sizes": (3, 4), "inside": {"a": (1,)}}}
    config = parse.parse({"task": "retrieval", "data": {"root": "data/any"}, "model": model})
    assert not rundir.claim(tmp_path, config, "hash", {}) and rundir.claim(tmp_path, config, "hash", {})
