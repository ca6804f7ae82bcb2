"""Trained = served: recorded requests are the same to the training code, and a feature that is served wrong is named."""

import json

import numpy as np
import pytest

from em3_jax.export import command as export
from em3_jax.predict import replay
from em3_jax.serving import store
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, score
from em3_jax.serving.service import Model
from tests.conftest import user_error
from tests.export.served_runs import PLAIN, make_requests, runs  # noqa: F401

pytestmark = pytest.mark.quickly_compiled


def asked(dataset, request: dict) -> ScoreRequest:
    """A request of the log, as JSON has it; with it ids and values that nobody knows."""
    columns, row = dataset.interactions, request["row"]
    events = slice(columns["history_start"][row], columns["history_end"][row])
    context, of_events = dataset.fields.context[row % 2 :], dataset.fields.event[row % 2 :]
    return ScoreRequest(
        user=int(columns["user"][row]) if row % 7 else None,
        history=[*map(int, dataset.events["item"][events]), 4711],
        candidates=[*map(int, request["candidates"]), 4712],
        context={field.name: int(columns[f"context_{field.name}"][row]) for field in context},
        history_fields={f.name: [*map(int, dataset.events[f"field_{f.name}"][events]), 1] for f in of_events},
    )  # fmt: skip


def record(model: Model, dataset, path) -> None:
    recorder = Recorder(path)
    for request in make_requests(dataset, 40):
        seen = []
        one = asked(dataset, request)
        recorder(model, one, score(model, one, seen).logit, seen)
    recorder.close()


@pytest.fixture(scope="module", params=["em3", "lemur"])
def served(request, runs, tiny, tmp_path_factory):  # noqa: F811
    """(the run's folder, the store, the model, the dataset)."""
    root = tmp_path_factory.mktemp("store")
    export.export(runs(request.param), root, PLAIN)
    return runs(request.param), root, Model(store.open_current(root), ()), tiny.dataset


def test_what_is_served_is_what_is_trained(served, tmp_path):
    directory, root, model, dataset = served
    record(model, dataset, tmp_path / "requests.jsonl")
    with open(tmp_path / "requests.jsonl", "a") as file:
        file.write('{"version": "0000001", "che')  # of a service that was killed
    assert replay.replay(directory, root, tmp_path / "requests.jsonl").requests == 40
    recorder = Recorder(tmp_path / "requests.jsonl")  # and begun again; times are read by none of its models
    for times in ({"time": "now"}, {"time": 2**64}, {"time": 3, "history_times": [1]}):
        seen, one = [], ScoreRequest(candidates=[3, float("inf")], history=[5, -float("inf")], **times)
        recorder(model, one, score(model, one, seen).logit, seen)
    recorder.close()
    found = replay.replay(directory, root, tmp_path / "requests.jsonl")
    assert (found.requests, found.versions, found.gone) == (43, 1, 0) and found.candidates > 400
    assert found.inputs == {} and found.logits == 0 and found.largest < 1e-6
    for feature in (
        "user.age",
        "item.tags",
        "history item.category",
        "context.hour",
        "event.kind",
        "candidate.content",
    ):
        drilled = replay.replay(directory, root, tmp_path / "requests.jsonl", drill=feature)
        assert list(drilled.inputs) == [feature] and drilled.logits == 0
        assert drilled.inputs[feature].values > 40 and drilled.inputs[feature].line == 1
    message = user_error(lambda: replay.replay(directory, root, tmp_path / "requests.jsonl", drill="user.aeg"))
    assert "--drill user.aeg: no such feature; did you mean 'user.age'?" in message


@pytest.mark.parametrize(
    ("array", "column", "feature"),
    [("user_rows", 1, "user.age"), ("item_rows", 1, "item.category"), ("looked_up.content", 0, "candidate.content")],
)
def test_a_feature_that_is_served_wrong_is_named(served, tmp_path, monkeypatch, array, column, feature):
    """The service reads the row after, as one off by one would."""
    directory, root, model, dataset = served
    arrays = model.version.arrays
    arrays[array] = arrays[array].copy()
    arrays[array][:-1, column] = np.roll(arrays[array][:-1, column], 1)
    wrong = type(model.version).made(model.version.folder, model.manifest, arrays, model.version.files)
    broken = Model(wrong, (), like=model)
    monkeypatch.setattr(broken, "checksum", model.checksum)
    record(broken, dataset, tmp_path / "requests.jsonl")
    found = replay.replay(directory, root, tmp_path / "requests.jsonl")
    assert set(found.inputs) == {feature} | {
        feature.replace("item.", "history item.").replace("candidate.", "history.")
    }
    assert found.logits > 0


def test_what_cannot_be_replayed_is_one_line(served, tmp_path, monkeypatch):
    directory, root, model, dataset = served
    path = tmp_path / "requests.jsonl"
    assert "cannot be read" in user_error(replay.replay, directory, root, path)
    record(model, dataset, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + "{}\n")
    assert "requests.jsonl line 2: not a recorded request" in user_error(replay.replay, directory, root, path)
    path.write_text(json.dumps(json.loads(lines[0]) | {"logits": [0.5]}) + "\n")
    assert "line 1: not a recorded request (1 logits for" in user_error(replay.replay, directory, root, path)
    path.write_text(json.dumps(json.loads(lines[0]) | {"inputs": []}) + "\n")
    assert "line 1: not a recorded request" in user_error(replay.replay, directory, root, path)
    path.write_bytes(b"\xff\n")
    assert "line 1: not a recorded request" in user_error(replay.replay, directory, root, path)
    path.write_text(json.dumps(json.loads(lines[0]) | {"checksum": "0"}) + "\n")
    assert "answered with checksum 0, that in" in user_error(replay.replay, directory, root, path)
    path.write_text(json.dumps(json.loads(lines[0]) | {"version": "0000099"}) + "\n")
    assert replay.replay(directory, root, path).gone == 1
    given = ["em3 replay", f"--workdir={directory}", f"--store={root}", f"--requests={path}"]
    monkeypatch.setattr("sys.argv", given)
    assert "no request was replayed, the versions that answered its 1 are no longer in" in user_error(replay.main)
    path.write_text("")
    assert "no request was replayed, it is empty" in user_error(replay.main)
    assert "no store, it has no file 'current'" in user_error(replay.replay, directory, tmp_path, path)
