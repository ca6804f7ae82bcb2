"""A store goes on with the dataset it serves and with what has come of it; another one it takes when it is asked to alone."""

import re

import numpy as np
import pytest

from em3_jax import cli, train
from em3_jax.export import command as export
from em3_jax.export import same_data
from em3_jax.serving import store
from tests.conftest import user_error
from tests.grown_tables import grown
from tests.training.test_growth import data, settings, trained  # noqa: F401

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

PLAIN = export.Settings(batch_size=16, platforms=("cpu",))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A dataset of the same users and items, with the same fields, whose interactions are others."""
    return grown(tmp_path_factory.mktemp("other") / "data", later=False, seed=6)


def a_run(dataset, folder):
    train.train(settings(dataset) | {"train": settings(dataset)["train"] | {"epochs": 0.1}}, folder)
    return folder


def test_a_run_of_another_dataset_is_refused_or_asked_for(data, trained, other, tmp_path, monkeypatch, capsys):  # noqa: F811
    export.export(trained, tmp_path / "s", PLAIN)
    run = a_run(other, tmp_path / "run")
    for update in (False, True):
        message = user_error(export.export, run, tmp_path / "s", PLAIN._replace(update=update))
        assert message.startswith(f"{tmp_path / 's'}: version 0000001 is of another dataset (hash "), message
        assert data["first"].meta["data_hash"][:12] in message and other.meta["data_hash"][:12] in message
        # So few users and items without times, that some of the pairs are there by chance.
        found = re.search(
            r"of 64 rows sampled of it, (\d+) are in this one; choose another --out, or --other-data", message
        )
        assert 0 < int(found.group(1)) < 32
        assert "\n" not in message
    assert store.current_name(tmp_path / "s") == "0000001"
    arguments = ["export", "--workdir", run, "--out", tmp_path / "s", "--platforms", "cpu"]
    monkeypatch.setattr("sys.argv", [str(one) for one in arguments])
    with pytest.raises(SystemExit) as left:
        cli.run(export.main)
    assert left.value.code == 2 and "--other-data to serve this one" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [str(one) for one in [*arguments, "--other-data"]])
    export.main()
    assert store.open_current(tmp_path / "s").manifest["data_hash"] == other.meta["data_hash"]


def test_a_grown_dataset_goes_on_in_its_store(data, trained, tmp_path):  # noqa: F811
    export.export(trained, tmp_path / "s", PLAIN)
    afresh = a_run(data["later"], tmp_path / "afresh")  # trained from nothing: its record names no dataset before
    assert export.export(afresh, tmp_path / "s", PLAIN).version == "0000002"
    assert "of another dataset" in user_error(export.export, trained, tmp_path / "s", PLAIN), "it would shrink"


def manifest(dataset, **changed) -> dict:
    fields = {"context": [["device"]], "event": [["device"]]}
    made = {"version": "1", "data_hash": dataset.meta["data_hash"], "rows": same_data.sample(dataset)}
    return made | {"serving": {"fields": fields}} | changed


def test_what_makes_a_dataset_another(data, other):  # noqa: F811
    first, later = data["first"], data["later"]
    record = {"data_hash": later.meta["data_hash"], "grown_from": []}

    def refused(served, record=record, dataset=later) -> bool:
        try:
            same_data.check("s", served, record, dataset, permitted=False)
        except export.UserError:
            same_data.check("s", served, record, dataset, permitted=True)
            return True
        return False

    assert not refused(None), "an empty store takes any"
    assert not refused(manifest(first)) and refused(manifest(other))
    rows, foreign = same_data.sample(first), [f"{k:016x}" for k in range(same_data.SAMPLE)]
    assert len(rows) == same_data.SAMPLE
    for gone, expected in ((32, False), (33, True)):
        assert refused(manifest(first, rows=foreign[:gone] + rows[gone:])) == expected, "rows of before may go"
    # Of a run that grew, or whose dataset has grown since, whatever its rows say.
    lineage = record | {"grown_from": [other.meta["data_hash"]]}
    assert not refused(manifest(other), lineage)
    assert not refused(manifest(other), {"data_hash": other.meta["data_hash"]})
    old = manifest(first)
    del old["rows"]
    assert refused(old) and not refused(old, record | {"grown_from": [first.meta["data_hash"]]})
    fields = {"context": [["device"], ["hour"]], "event": [["device"]]}
    assert refused(manifest(first, serving={"fields": fields})), "requests may name the hour"


def test_a_sample_of_few_rows_is_the_same_as_of_all(data):  # noqa: F811
    dataset = data["later"]
    number = dataset.meta["counts"]["interactions"]
    every = same_data.trained_rows.fingerprints(dataset, range(number))
    for rows in np.array([0, 3, number - 1, 3]), np.zeros(0, np.int64):
        assert same_data.trained_rows.fingerprints(dataset, rows).tolist() == every[rows].tolist()
