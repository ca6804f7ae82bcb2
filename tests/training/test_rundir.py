"""workdir: what a run's record says of the machine."""

import warnings

import pytest

from em3_jax.training import rundir


def claim(folder, **cic):
    config = {"task": "lemur", "data": {"root": ""}, "model": {"cic": {"weight": 0.1} | cic}}
    return rundir.claim(folder, config, "hash", {})


def test_a_run_that_goes_on_with_other_cores_says_so(tmp_path, monkeypatch):
    """Sums on CPUs are divided over the cores, so the last digits depend on them."""
    monkeypatch.setattr(rundir, "cores", lambda: 4)
    assert not claim(tmp_path, over="items") and rundir.read(tmp_path)["cores"] == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert claim(tmp_path, over="items")
    for now, hint in ((2, None), (8, "taskset -c 0-1")):
        before = rundir.read(tmp_path)["cores"]
        monkeypatch.setattr(rundir, "cores", lambda now=now: now)
        with pytest.warns(UserWarning, match=f"on {before} CPU cores and goes on with {now}") as warned:
            assert claim(tmp_path, over="items")
        text = str(warned[0].message)
        assert "\n" not in text and (hint is None) == ("taskset" not in text) and (hint or "") in text
        assert rundir.read(tmp_path)["cores"] == now


def test_the_number_of_cores_is_that_of_this_process():
    assert 1 <= rundir.cores() <= 4096


def test_cic_of_an_earlier_version_was_over_items(tmp_path):
    claim(tmp_path)
    assert rundir.read(tmp_path)["config"]["model"]["cic"] == {"over": "items", "weight": 0.1}
