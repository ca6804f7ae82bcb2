"""Export and serving: the scores are eval's, a killed export resumes, updates encode what is new alone, mistakes are one line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from em3_jax import train
from em3_jax.core.errors import UserError
from em3_jax.data.catalogue import CataloguePass
from em3_jax.data.features import write_features
from em3_jax.export import command as export
from em3_jax.metrics import auc
from em3_jax.serving import store
from em3_jax.serving.programs import SIZES, file_name
from em3_jax.serving.service import Model, Service
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
from tests.conftest import ROOT, user_error
from tests.export.served_runs import PLAIN, REQUESTS, ask, expected_logits, make_requests
from tests.training.test_growth import data, settings, trained  # noqa: F401

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]
encode_items = export.encode_items


@pytest.mark.parametrize(
    ("name", "tolerance"), [("em3", 1e-6), ("ids", 1e-6), ("lemur", 1e-6), ("bf16", 2e-3), ("no_history", 1e-6)]
)
def test_scores_from_looked_up_embeddings_are_those_of_eval(runs, tiny, tmp_path, name, tolerance):
    dataset = tiny.dataset
    export.export(runs(name), tmp_path, PLAIN)
    model = Model(store.open_current(tmp_path, verify=True))
    requests = make_requests(dataset, REQUESTS if name == "em3" else 60)
    answers = [ask(model, dataset, request) for request in requests]
    expected = 1 / (1 + np.exp(-expected_logits(runs(name), requests).astype(np.float64)))
    found = np.concatenate([answer.probability for answer in answers])
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert found.std() > 1e-3 and all(answer.known.all() and answer.user_known for answer in answers)


def test_looked_up_embeddings_are_those_of_the_model_and_unknown_ids_are_flagged(runs, tiny, tmp_path):
    export.export(runs("em3"), tmp_path, PLAIN._replace(dtype="float16"))
    model = Model(store.open_current(tmp_path))
    parts = Run.open(runs("em3")).experiment
    state, _ = Checkpoints(runs("em3")).restore(parts.program.shapes)
    items = parts.work.dataset.num_items
    embedded = np.asarray(parts.program.embed(state, CataloguePass(np.arange(items), items, ())[0]))
    ids = parts.work.dataset.item_table.column("id").to_numpy()
    order = np.random.default_rng(0).permutation(items)
    vectors, known = model.lookup(np.append(ids[order], ids.max() + 5))
    assert vectors.dtype == np.float32 and known.tolist() == [True] * items + [False]
    np.testing.assert_allclose(vectors[:-1], embedded[order], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vectors[-1], embedded[3], rtol=1e-3, atol=1e-4, err_msg="item 3 has no content either")
    mask = np.asarray(store.open_current(tmp_path)["has_content"])
    assert not mask[3] and not mask[-1] and mask.sum() == items - 1


@pytest.mark.parametrize(("dtype", "off"), [("float16", 1e-3), ("int8", 0.1)])
def test_what_rounding_costs_is_that_of_the_scores_served(runs, tiny, tmp_path, dtype, off):
    done = export.export(runs("em3"), tmp_path, PLAIN._replace(dtype=dtype))
    version = store.open_current(tmp_path, verify=True)
    assert version["looked_up.content"].dtype == dtype and done.rounding is not None
    parts = Run.open(runs("em3")).experiment
    source = parts.work.evaluation("valid")
    label = np.asarray(tiny.dataset.label("click"))[np.asarray(source.rows)]
    state, _ = Checkpoints(runs("em3")).restore(parts.program.shapes)
    exact = parts.work.evaluate(parts.program.predict, state, "valid", False).arrays["logits"]
    assert 0 < done.rounding.largest < off
    assert done.rounding.auc + done.rounding.loss == pytest.approx(auc(label, exact))
    model = Model(version)
    ids = tiny.dataset.item_table.column("id").to_numpy()
    vectors, _ = model.lookup(ids)
    embedded = np.asarray(parts.program.embed(state, CataloguePass(np.arange(len(ids)), len(ids), ())[0]))
    most = np.abs(embedded).max(axis=1, keepdims=True)
    assert (np.abs(vectors - embedded) <= most * (0.501 / 127 if dtype == "int8" else 1e-3)).all()
    again = export.export(runs("em3"), tmp_path, PLAIN._replace(dtype=dtype, update=True))
    assert again.encoded == 0, "all are taken over"
    np.testing.assert_array_equal(Model(store.open_current(tmp_path)).lookup(ids)[0], vectors)


def test_unknown_users_items_and_long_histories(runs, tiny, tmp_path):
    export.export(runs("em3"), tmp_path, PLAIN)
    model = Model(store.open_current(tmp_path))
    ids = tiny.dataset.item_table.column("id").to_numpy()
    nobody = model.score(None, [], ids[:3])
    stranger = model.score(10**9, [10**9], ids[:3])
    assert not nobody.user_known and (nobody.probability == stranger.probability).all() and stranger.history_used == 0
    long = model.score(None, np.tile(ids, 5), ids[:3])
    last = model.score(None, np.tile(ids, 5)[-model.history_length :], ids[:3])
    assert (long.probability == last.probability).all() and long.history_used == model.history_length
    many = model.score(None, ids[:4], np.tile(ids, 2 * SIZES[-1] // len(ids)))
    np.testing.assert_allclose(many.probability[: len(ids)], many.probability[-len(ids) :], atol=1e-6)
    unknown = model.score(None, ids[:4], [10**9, ids[0]])
    assert unknown.known.tolist() == [False, True] and np.isfinite(unknown.probability).all()
    assert model.score(None, ids, []).probability.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"candidates": [None]}, "candidates: an id is missing (None); leave it out"),
        ({"history": [[1], 2]}, "history: an id is a number or a text, not list as '[1]'"),
        ({"user": {"id": 1}}, "user: an id is a number or a text, not dict as '{'id': 1}'"),
        ({"context": {"weather": 1}}, "context field 'weather': no such field; known: hour, slot"),
        ({"context": {"slot": [1, 2]}}, "context field 'slot': 2 values for 1 candidates"),
        ({"context": {"slot": 77}}, "context field 'slot': has no vocabulary; give its ids, integers from 0 to 4"),
        ({"history_fields": {"rating": [1]}}, "history field 'rating': 1 values for a history of 2"),
    ],
)
def test_mistakes_in_a_request(runs, tmp_path, arguments, words):
    export.export(runs("em3"), tmp_path, PLAIN)
    model = Model(store.open_current(tmp_path))
    asked = {"user": 1, "history": [1, 2], "candidates": [1]} | arguments
    assert words in user_error(lambda: model.score(**asked))


KILLED = """
import os, signal, sys
from em3_jax.export import command as export, items
from em3_jax.serving import store
items.SAVE_SECONDS = 0.0
calls, after = [], int(sys.argv[1])
owner, name = {"save": (items, "_save"), "publish": (store, "publish")}[sys.argv[2]]
whole = getattr(owner, name)
def killing(*arguments):
    calls.append(1)
    if len(calls) > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
setattr(owner, name, killing)
export.export(sys.argv[3], sys.argv[4], export.Settings(batch_size=4, platforms=("cpu",)))
"""


def files(version: store.Version) -> dict:
    return {name: facts["sha256"] for name, facts in version.manifest["files"].items() if "scorer" not in name}


def test_killed_and_run_again_it_goes_on_to_the_same_bytes(runs, tmp_path, monkeypatch):
    settings = PLAIN._replace(batch_size=4)
    export.export(runs("em3"), tmp_path / "whole", settings)
    for after, moment in ((3, "save"), (0, "publish")):
        command = [sys.executable, "-c", KILLED, str(after), moment, str(runs("em3")), str(tmp_path / "killed")]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert store.current_name(tmp_path / "killed") is None
    started = []
    monkeypatch.setattr(
        export, "encode_items", lambda *args, **kw: started.append(os.listdir(args[0])) or encode_items(*args, **kw)
    )
    export.export(runs("em3"), tmp_path / "killed", settings)
    assert "progress.json" in started[0]  # it did go on
    assert files(store.open_current(tmp_path / "killed", verify=True)) == files(store.open_current(tmp_path / "whole"))


def test_an_update_of_a_grown_catalogue_encodes_the_new_items_alone(data, trained, tmp_path):  # noqa: F811
    first = export.export(trained, tmp_path / "s", PLAIN)
    before = Model(store.open_current(tmp_path / "s"))
    grown = PLAIN._replace(data_root=str(data["later"].root))
    assert "belongs to another dataset" in user_error(export.export, trained, tmp_path / "s", grown)
    second = export.export(trained, tmp_path / "s", grown._replace(update=True))
    now = Model(store.open_current(tmp_path / "s"))
    items = data["first"].num_items, data["later"].num_items
    assert (first.encoded, first.reused) == (items[0], 0)
    assert (second.encoded, second.reused) == (items[1] - items[0], items[0])
    ids = data["first"].item_table.column("id").to_pylist()
    np.testing.assert_array_equal(before.lookup(ids).vectors, now.lookup(ids).vectors)
    asked = {"history": ids[:5], "history_fields": {"device": ["web"] * 5}, "context": {"device": "phone"}}
    for user in ("u1", "u39"):
        old, new = (model.score(user, candidates=ids, **asked) for model in (before, now))
        np.testing.assert_allclose(new.probability, old.probability, rtol=0, atol=1e-6)
    # New items have content of their own, an id that says nothing yet; new users are unknown to the model.
    rows, version = now.items.find(["i100", "i200"]), now.version
    assert (rows >= 0).all() and (version["item_rows"][rows, 0] == version["item_rows"][-1, 0]).all()
    vectors = now.lookup(["i100", "i200"]).vectors
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    one, other = (now.score(user, candidates=ids[:9], **asked) for user in ("u300", "nobody"))
    assert one.user_known and not other.user_known
    # Nothing has changed: nothing is encoded.
    assert export.export(trained, tmp_path / "s", grown._replace(update=True)).encoded == 0


def test_updates_of_other_checkpoints_and_of_changed_features(data, trained, tmp_path, capsys):  # noqa: F811
    run, root = tmp_path / "run", tmp_path / "data"
    shutil.copytree(trained, run)
    shutil.copytree(data["first"].root, root)
    here = PLAIN._replace(data_root=str(root), update=True)
    assert export.export(run, tmp_path / "s", here).encoded == data["first"].num_items
    assert "no earlier version" in capsys.readouterr().out
    assert export.export(run, tmp_path / "s", here._replace(checkpoint="newest", dtype="float16")).encoded > 0
    assert "is of another checkpoint or dtype" in capsys.readouterr().out
    folder = root / "features" / "image"
    tokens, mask = np.load(folder / "tokens.npy").copy(), np.load(folder / "mask.npy")
    tokens[7] += 1.0
    shutil.rmtree(folder)
    meta = data["first"].meta["item_hash"]
    facts = data["first"].features("image").manifest
    kept = {key: value for key, value in facts.items() if key not in ("hash", "shape", "dtype", "item_hash", "counts")}
    write_features(root, "image", tokens, mask, kept, meta)
    assert "are not those it was trained on" in user_error(
        export.export, run, tmp_path / "s", here._replace(update=False)
    )
    again = here._replace(checkpoint="newest", dtype="float16")
    assert export.export(run, tmp_path / "s", again).encoded == 1
    write_features(root, "image", tokens, mask, kept | {"encoder": "another"}, meta, overwrite=True)
    assert "the features 'image' were made otherwise" in user_error(export.export, run, tmp_path / "s", again)


def test_a_service_switches_without_a_pause_and_keeps_what_it_has_if_the_new_one_is_damaged(runs, tmp_path):
    export.export(runs("em3"), tmp_path, PLAIN)
    with Service(tmp_path, poll_seconds=60, sizes=()) as service:
        held = service.model
        export.export(runs("em3"), tmp_path, PLAIN._replace(checkpoint="newest", keep=1))
        service.refresh()
        assert service.model.name == "0000002" and held.name == "0000001"
        assert (held.score(1, [2], [3]).probability == service.model.score(1, [2], [3]).probability).all()
        scorer = file_name(SIZES[-1])
        for file, damage in (("table.npy", lambda whole: whole[:-4]), (scorer, lambda whole: bytes(len(whole)))):
            path = tmp_path / "versions" / export.export(runs("em3"), tmp_path, PLAIN).version / file
            path.write_bytes(damage(path.read_bytes()))
            service.refresh()
            assert service.model.name == "0000002" and file in service.problem
        export.export(runs("em3"), tmp_path, PLAIN)
        service.refresh()
        assert service.model.name == "0000005" and not service.problem


def test_a_reader_imports_no_training_code(runs, tmp_path):
    export.export(runs("em3"), tmp_path, PLAIN)
    program = """
import sys
from em3_jax.serving import Service
with Service(sys.argv[1], sizes=()) as service:
    print(len(service.model.score(1, [2], [3, 4]).probability), service.model.lookup([1]).vectors.shape)
    print(len(service.model.similar(int(service.model.items.ids([0])[0]), 5)))
    found = {name.split(".")[0] for name in sys.modules}
    print(found & {"flax", "optax", "orbax", "grain", "transformers", "torch", "ml_collections"})
    print(sorted(name for name in sys.modules if name.startswith("em3_jax.")))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "2 (1, 16)" and lines[1] == "5" and lines[2] == "set()"
    core = {"addresses", "amounts", "calibration", "errors", "event_features", "fields", "labels", "lock", "numbers"}
    core |= {"npy", "order_statistics", "paths", "public", "ranges", "segments", "strict_json", "values"}
    serving = {"deltas", "event_choice", "field_values", "id_index", "neighbours", "programs", "scores", "served_model"}
    serving |= {"service", "store", "user_cache", "vectors", "version"}
    allowed = {"core", "serving"} | {f"core.{name}" for name in core} | {f"serving.{name}" for name in serving}
    assert lines[3] == str(sorted(f"em3_jax.{name}" for name in allowed))


def test_every_so_often_it_exports_the_newest_checkpoint_until_it_is_stopped(data, trained, tmp_path):  # noqa: F811
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    command = [sys.executable, "-m", "em3_jax.export", "--workdir", str(run), "--out", str(tmp_path / "s")]
    with subprocess.Popen(
        [*command, "--every", "1s", "--platforms", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert "version 0000001 published" in process.stdout.readline()
        train.train(settings(data["first"], epochs=3.0), run)
        last = Checkpoints(run).steps("latest")[-1]
        while store.open_current(tmp_path / "s").manifest["checkpoint"]["step"] < last:
            assert "published" in process.stdout.readline()  # perhaps one of a checkpoint on the way
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read().endswith("stopped\n") and process.wait(timeout=20) == 0


def test_a_refresh_that_fails_is_tried_again_and_the_first_is_not(runs, tmp_path, monkeypatch, capsys):
    shown, outcomes = [], iter(["version 1", UserError("no space left"), "version 2"])

    def exported(*_):
        outcome = next(outcomes)
        if isinstance(outcome, UserError):
            raise outcome
        (run / "run.json").write_text(
            json.dumps(record | {"data_hash": outcome})
        )  # another thing to export the next time
        return outcome

    def show(outcome):
        shown.append(outcome)
        if len(shown) == 2:
            signal.raise_signal(signal.SIGTERM)

    run = Path(shutil.copytree(runs("em3"), tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    monkeypatch.setattr(export, "export", exported)
    export.keep_exporting(run, tmp_path / "s", PLAIN, 0.01, show)
    assert shown == ["version 1", "version 2"]
    assert capsys.readouterr().err.strip() == "no space left; the version before stays, trying again"
    outcomes = iter([UserError("no space left")])
    assert user_error(export.keep_exporting, run, tmp_path / "s", PLAIN, 0.01, show) == "no space left"


def test_mistakes_of_export(runs, tiny, tmp_path, monkeypatch):
    assert "run.json: file missing" in user_error(export.export, tmp_path / "nothing", tmp_path / "s", PLAIN)
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(runs("em3") / "run.json", empty)
    assert "no checkpoint; there are: none, train first" in user_error(export.export, empty, tmp_path / "s", PLAIN)
    bad = PLAIN._replace(checkpoint="last")
    assert "--checkpoint last: give best, newest" in user_error(export.export, runs("em3"), tmp_path / "s", bad)
    for text in ("1", "h", "-1h", "1w", "nanh"):
        assert f"--every {text}: give a number and one of s, m, h, d" in user_error(export.parse_interval, text)
    assert [export.parse_interval(text) for text in ("90s", "1.5m", "1h")] == [90, 90, 3600]
    assert store.current_name(tmp_path / "s") is None


def test_a_full_disk_while_publishing_leaves_the_old_version(runs, tmp_path):
    export.export(runs("em3"), tmp_path / "s", PLAIN)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    code = f"{limit}; from em3_jax import cli; from em3_jax.export import command; cli.run(command.main)"
    command = [
        sys.executable,
        "-c",
        code,
        "--workdir",
        str(runs("em3")),
        "--out",
        str(tmp_path / "s"),
        "--platforms",
        "cpu",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert "version 0000001 is served on; free space and run again" in errors[0]
    assert Model(store.open_current(tmp_path / "s", verify=True)).name == "0000001"
    export.export(runs("em3"), tmp_path / "s", PLAIN)
    assert store.current_name(tmp_path / "s") == "0000002"


def test_a_program_for_each_number_of_candidates_on_all_platforms_it_is_made_for(runs, tmp_path):
    export.export(runs("em3"), tmp_path, PLAIN._replace(platforms=("cpu", "cuda", "tpu")))
    version = store.open_current(tmp_path)
    for size in SIZES:
        program = jax.export.deserialize(bytearray(version.read_bytes(file_name(size))))
        assert program.platforms == ("cpu", "cuda", "tpu")
        assert program.out_avals[0].shape == (size,)
    manifest = version.manifest
    made = manifest["serving"]["programs"]
    assert made["jax"] == jax.__version__ and made["sizes"] == list(SIZES)
    version.manifest = manifest | {"serving": manifest["serving"] | {"platforms": ["tpu"]}}
    assert "its scorer is compiled for tpu, this machine runs cpu; export again with --platforms" in user_error(
        Model, version
    )
