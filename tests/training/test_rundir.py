"""workdir: what a run's record says of the machine."""

import json
import warnings

import pytest

from em3_jax.config import schema
from em3_jax.config.schema.lemur import FieldEncoder as EncoderSettings
from em3_jax.config.schema.ranking import Data
from em3_jax.training import rundir
from em3_jax.training.run import Run

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
