"""Streams whose rows are appended: the curve of full preparations, killed and resumed, late rows, and what is refused."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from em3_jax import evaluate, train
from em3_jax.core.errors import UserError
from em3_jax.data import follow
from em3_jax.data.format import open_dataset
from em3_jax.export import cached_items, publisher
from em3_jax.export import command as export
from em3_jax.predict import replay
from em3_jax.serving import store
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, score
from em3_jax.serving.service import Model
from em3_jax.training import checkpoint, online, seal
from em3_jax.training.curve import CURVE, read_curve
from em3_jax.training.run import Run
from tests.conftest import ROOT
from tests.training.test_online import HEADER, config, lines, log_lines

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(90)]

CHANGES = {
    "stream.window": "100 examples", "stream.poll_seconds": 0.01, "stream.idle_seconds": 0.05, "data.history_length": 4,
    "data.batch_size": 64, "data.unknown_floor": {}, "model.backbone_settings.hidden": (8,),
}  # fmt: skip


def mapping(folder, interactions) -> str:
    path = folder / "mapping.json"
    path.write_text(json.dumps({"interactions": str(interactions), "time_unit": "seconds"}))
    return str(path)


def made(root, follow_, **changes) -> dict:
    stream = {"stream.follow": follow_, "stream.append": True}
    return config(root, "id_only", **(CHANGES | stream | changes)).to_dict()


def state(directory) -> tuple[dict, dict]:
    found = checkpoint.Checkpoints(directory)
    step = found.steps("latest")[-1]
    saved = found._managers["latest"].restore(step)
    return saved["state"], saved["notes"]


def test_the_curve_is_that_of_full_preparations_bit_for_bit(tmp_path, monkeypatch):
    """Each window is there before the next comes, as full preparations would have more ids from the start."""
    log = tmp_path / "log.csv"
    windows = [log_lines(first, 100) for first in range(0, 500, 100)]
    log.write_text(HEADER + windows[0])
    own, count = mapping(tmp_path, log), [1]

    def wait(self, interrupts):
        if count[0] == len(windows):
            return "enough"
        with open(log, "a", encoding="utf-8") as file:
            file.write(windows[count[0]])
        count[0] += 1
        return ""

    monkeypatch.setattr(follow.Follower, "wait", wait)
    whole = made(tmp_path / "whole", own, **{"stream.append": False})
    train.train(whole, tmp_path / "run-whole")
    result = train.train(made(tmp_path / "data", own, **{"stream.spare": 0.0}), tmp_path / "run")
    assert result["windows"] == 5
    found, expected = lines(tmp_path / "run"), lines(tmp_path / "run-whole")
    assert [line.pop("late") for line in found] == [0] * 5
    assert json.dumps(found) == json.dumps(expected)
    (one, _), (other, _) = state(tmp_path / "run"), state(tmp_path / "run-whole")
    assert one.keys() == other.keys()
    for name in one:
        assert np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes(), name


@pytest.fixture(scope="module")
def late_log(tmp_path_factory):
    """A log some of whose rows come late, and the run over it."""
    folder = tmp_path_factory.mktemp("late")
    rows = log_lines(0, 700).splitlines(keepends=True)
    for k in range(60, 700, 50):  # each comes thirty rows late
        rows.insert(k, rows.pop(k - 30))
    (folder / "log.csv").write_text(HEADER + "".join(rows))
    own = mapping(folder, folder / "log.csv")
    result = train.train(made(folder / "data", own), folder / "run")
    assert result["windows"] == 7 and result["stopped_by"].startswith("no growth")
    return folder


def test_late_rows_are_counted_in_the_window_they_come_in(late_log):
    curve = read_curve(late_log / "run" / CURVE)
    assert [line["late"] for line in curve] == [1, *[2] * 6] and sum(line["all"]["n"] for line in curve) == 700
    last = curve[-1]
    assert last["time/lag_seconds"] == 0 and last["time/rows_behind"] == 0 and last["time/examples_per_second"] > 0


def test_killed_while_rows_come_the_curve_and_the_tables_are_the_same(late_log, tmp_path):
    rows = (late_log / "log.csv").read_text().splitlines(keepends=True)[1:]
    log = tmp_path / "log.csv"
    log.write_text(HEADER)
    own, recipe = mapping(tmp_path, log), tmp_path / "recipe.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\nfrom tests.training.test_appended import made\n\n"
        f"def get_config():\n    return ConfigDict(made({str(tmp_path / 'data')!r}, {own!r}, **{{'stream.idle_seconds': 60.0}}))"
    )
    command = [sys.executable, "train.py", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    fed, curve = 0, tmp_path / "run" / CURVE
    for after in (1, 4):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            until = time.monotonic() + 100
            while time.monotonic() < until and not (curve.exists() and len(curve.read_text().splitlines()) >= after):
                assert process.poll() is None
                end = min(fed + 7, after * 120)
                with open(log, "a", encoding="utf-8") as file:
                    file.write("".join(rows[fed:end]))
                fed = end
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    with open(log, "a", encoding="utf-8") as file:
        file.write("".join(rows[fed:]))
    train.train(made(tmp_path / "data", own), tmp_path / "run")
    assert json.dumps(lines(tmp_path / "run")) == json.dumps(lines(late_log / "run"))
    (one, notes), (other, same) = state(tmp_path / "run"), state(late_log / "run")
    assert notes["position"] == same["position"] and notes["source"]["offset"] == same["source"]["offset"]
    for name in one:
        assert np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes(), name


def test_a_bad_row_stops_the_run_which_goes_on_without_it(late_log, tmp_path):
    """Stopped at it, then told to leave such rows out, the run has the curve of the log without it."""
    rows = (late_log / "log.csv").read_text().splitlines(keepends=True)
    log = tmp_path / "log.csv"
    log.write_text("".join(rows[:350]))
    own = mapping(tmp_path, log)
    train.train(made(tmp_path / "data", own), tmp_path / "run")
    log.write_text("".join([*rows[:400], "u1,i1,,1\n", *rows[400:]]))
    with pytest.raises(UserError, match=r"log\.csv line 401: has no time .*config\.stream\.on_bad_row=skip"):
        train.train(made(tmp_path / "data", own), tmp_path / "run")
    result = train.train(made(tmp_path / "data", own, **{"stream.on_bad_row": "skip"}), tmp_path / "run")
    assert result["windows"] == 7
    assert json.dumps(lines(tmp_path / "run")) == json.dumps(lines(late_log / "run"))


class Killed(BaseException):
    pass


def same_stores(one, other) -> None:
    """The same versions, the same bytes of what they say and of what has changed in each."""
    names = store.version_names(one)
    assert store.version_names(other) == names and len(names) >= 6
    for name in names:
        found, expected = (store.open_version(folder, name, verify=True) for folder in (one, other))
        for array in expected.arrays:
            assert found[array].tobytes() == expected[array].tobytes(), (name, array)
        assert found.checksum == expected.checksum and found.manifest["counts"] == expected.manifest["counts"]
        assert found.manifest["rows"] == expected.manifest["rows"]


def scores_as_exported(directory, published, out) -> None:
    """A version scores as the whole export of its checkpoint does, of ids that the export's rows for training show."""
    settings = export.Settings(checkpoint="newest", batch_size=cached_items.BATCH, platforms=("cpu",))
    export.export(directory, out, settings)
    whole, version = Model(store.open_current(out)), Model(store.open_current(published))
    assert version.manifest["checkpoint"]["step"] == whole.manifest["checkpoint"]["step"]
    dataset = open_dataset(Run.open(directory).config.data.root)
    known = {
        kind: [one for one, n in zip(table.column("id").to_pylist(), dataset.counts[kind], strict=True) if n]
        for kind, table in (("user", dataset.user_table), ("item", dataset.item_table))
    }
    assert len(version.users.words) == dataset.num_users and len(version.items.words) == dataset.num_items
    for user in [*known["user"][:8], "nobody"]:
        asked = user, known["item"][:7], [*known["item"], "nothing"]
        said = {"context": {"place": "p3"}, "history_fields": {"how": ["h0", "h1", "h2", "h3", "h0", "none", "h2"]}}
        expected, found = (model.score(*asked, **said) for model in (whole, version))
        assert np.array_equal(found.known, expected.known) and found.known.sum() == len(known["item"])
        assert np.abs(found.logit - expected.logit).max() < 1e-6 and np.ptp(found.logit) > 1e-3
    vectors, of_whole = (model.lookup(known["item"]).vectors for model in (version, whole))
    assert np.abs(vectors - of_whole).max() < 1e-6


COME_AND_GO = {
    "tables.capacity": 104, "tables.bank_capacity": 26, "tables.evict": "lru", "eval.batch_size": 10, "data.batch_size": 10,
    "data.history_length": 3,
}  # fmt: skip


def replays(directory, published, path) -> None:
    """Requests at every other version are those of the training code, which knew as few ids then; a broken feature is named."""
    recorder, names = Recorder(path), store.version_names(published)
    for name in names[::2]:
        model = Model(store.open_version(published, name), ())
        for k, user in enumerate(["u1", "u9", "nobody", None]):
            history = ["i1", "i38", f"i{2 + k}", "nothing", "i7"]
            one = ScoreRequest(
                user=user, history=history, candidates=["i3", "i39", f"i{10 + k}", "nothing"],
                context={"place": f"p{3 * k}"}, history_fields={"how": ["h0", "h3", "h1", "none", "h2"]},
            )  # fmt: skip
            seen: list = []
            recorder(model, one, score(model, one, seen).logit, seen)
    recorder.close()
    found = replay.replay(directory, published, path)
    assert (found.requests, found.versions) == (4 * len(names[::2]), len(names[::2])) and len(names) >= 6
    assert found.inputs == {} and found.logits == 0 and found.largest < 1e-6
    drilled = replay.replay(directory, published, path, drill="context.place")
    assert list(drilled.inputs) == ["context.place"] and drilled.inputs["context.place"].line == 1
    other = shutil.copytree(directory, path.with_name("other"))
    (other / publisher.NAME).write_text('{"id": "another"}')
    with pytest.raises(UserError, match=r"was not published by the run in .*other; give the run whose store this is"):
        replay.replay(other, published, path)


@pytest.mark.parametrize("tables", [{}, COME_AND_GO], ids=["all-ids", "few-rows"])
def test_content_of_new_items_is_there_with_them_however_rows_come(tables, tmp_path, monkeypatch):
    """LEMUR, with its memory bank: the log at once, and in pieces, whose items' lines and vectors come with them; published.

    With rows for all ids, and in tables of fixed size.
    """
    header = HEADER.replace("\n", ",place,how\n")
    rows = [f"{row},p{k // 30},h{k // 50 % 4}\n" for k, row in enumerate(log_lines(0, 300).splitlines())]
    vectors = np.random.default_rng(0).normal(size=(40, 1, 6)).astype(np.float16)
    number = [int(row.split(",")[1][1:]) for row in rows]
    changes = {"stream.window": "100 examples", "stream.poll_seconds": 0.01, "stream.idle_seconds": 0.05}
    changes |= {"data.features": ("image",), "data.placement": "host", "data.unknown_floor": {}, "stream.append": True}
    changes |= {"data.batch_size": 40, "stream.publish_every": 1, "stream.publish_platforms": ("cpu",)}
    changes |= {"stream.hot_share": 1.0, "stream.refresh_cold": 1, "stream.publish_keep": 100} | tables
    stopped, save = {}, online.Stream._save

    def killed(self, state, notes):
        """Once what a window has learnt is published, and is in no checkpoint yet."""
        if notes["position"]["window"] == 2:
            raise Killed
        save(self, state, notes)

    for name, ends in (("whole", (300,)), ("pieces", (110, 150, 220, 300))):
        folder = tmp_path / name
        folder.mkdir()
        log = folder / "log.csv"
        log.write_text(header)
        said = {"interactions": str(log), "time_unit": "seconds", "items": str(folder / "items.csv")}
        said |= {"features": {"image": str(folder / "image.npy")}, "item_fields": ["kind"]}
        said |= {"context_fields": ["place"], "event_fields": ["how"]}
        (folder / "m.json").write_text(json.dumps(said))
        for end in ends:
            there = 1 + max(number[:end])
            np.save(folder / "image.npy", vectors[:there])
            lines_ = [f"i{k},{k % 3}\n" for k in range(there)]
            (folder / "items.csv").write_text("item,kind\n" + "".join(lines_))
            log.write_text(header + "".join(rows[:end]))
            own = {
                "stream.follow": str(folder / "m.json"),
                "stream.spare": 0.1,
                "stream.publish": str(folder / "store"),
            }
            if end == 220:
                with monkeypatch.context() as patched, pytest.raises(Killed):
                    patched.setattr(online.Stream, "_save", killed)
                    train.train(config(folder / "data", **(changes | own)).to_dict(), folder / "run")
                continue
            result = train.train(config(folder / "data", **(changes | own)).to_dict(), folder / "run")
        stopped[name] = result["windows"]
    assert stopped == {"whole": 3, "pieces": 3}
    assert json.dumps(lines(tmp_path / "whole" / "run")) == json.dumps(lines(tmp_path / "pieces" / "run"))
    assert not tables or 0 < lines(tmp_path / "whole" / "run")[-1]["ids/returned"]
    (one, _), (other, _) = state(tmp_path / "whole" / "run"), state(tmp_path / "pieces" / "run")
    assert any(name.startswith("memory.") for name in one)
    for name in one:
        assert np.asarray(one[name]).tobytes() == np.asarray(other[name]).tobytes(), name
    same_stores(tmp_path / "pieces" / "store", tmp_path / "whole" / "store")
    sealed = seal.seal(tmp_path / "pieces" / "run", tmp_path / "data", tmp_path / "run")
    scores_as_exported(tmp_path / "run", tmp_path / "pieces" / "store", tmp_path / "exported")
    replays(tmp_path / "pieces" / "run", tmp_path / "pieces" / "store", tmp_path / "requests.jsonl")
    image = sealed.features("image")
    ids = [int(one[1:]) for one in sealed.item_table.column("id").to_pylist()]
    assert np.array_equal(image.tokens, vectors[ids])
    with pytest.raises(UserError, match=r"config\.data\.placement=auto: content of items to come"):
        train.train(config(tmp_path / "x", **(changes | own | {"data.placement": "auto"})).to_dict(), tmp_path / "y")


def test_another_log_is_refused_by_the_checkpoint_even_where_the_dataset_is_gone(late_log, tmp_path):
    directory, rows = shutil.copytree(late_log / "run", tmp_path / "run"), log_lines(0, 800)
    (tmp_path / "log.csv").write_text(HEADER + rows)
    with pytest.raises(
        UserError, match=r"log\.csv: the rows so far came from .*late.*/log\.csv; name that one in the map"
    ):
        train.train(made(tmp_path / "data", mapping(tmp_path, tmp_path / "log.csv")), directory)
    assert not (tmp_path / "data" / "appended.json").exists(), "nothing of it was appended"


def test_a_stream_with_nothing_to_do_says_what_is_wanted(late_log, tmp_path, capsys):
    """Appended to and prepared again: before the first window is complete, when all that there are were done, and at its last."""
    log = tmp_path / "log.csv"
    log.write_text(HEADER + log_lines(0, 50))
    own = mapping(tmp_path, log)
    for append in (True, False):
        run = made(tmp_path / f"data-{append}", own, **{"stream.append": append, "stream.idle_seconds": 0.01})
        assert train.train(run, tmp_path / f"run-{append}")["windows"] == 0
        said = capsys.readouterr().out.splitlines()[-1]
        assert said.startswith("no growth of") and said.endswith(
            f": no window of '100 examples' is complete, 50 rows wait; add rows to the log that {own} names, or choose a shorter "
            "config.stream.window"
        )
    log.write_text(HEADER + log_lines(0, 150))
    run["stream"] |= {"most_windows": 1, "idle_seconds": 60.0}  # it does not wait for more
    assert train.train(run, tmp_path / "run-False")["stopped_by"] == "end"
    directory = shutil.copytree(late_log / "run", tmp_path / "run")
    again = made(late_log / "data", str(late_log / "mapping.json"))
    for most, wanted in (
        (
            0,
            f"no further window of '100 examples' is complete, 0 rows wait; add rows to the log that {late_log}/mapping",
        ),
        (7, "config.stream.most_windows=7 asks for no more; give a larger one, or draw them with"),
    ):
        again["stream"]["most_windows"] = most
        train.train(again, directory)
        said = capsys.readouterr().out.splitlines()[-1]
        assert f": nothing to do, 7 windows in {directory} done before; {wanted}" in said


def test_what_has_no_effect_or_cannot_be_is_one_line(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(HEADER + log_lines(0, 50))
    own = mapping(tmp_path, log)
    with pytest.raises(UserError, match=r"config\.stream\.spare=0\.1: has no effect where rows are not appended"):
        train.train(made(tmp_path / "data", own, **{"stream.append": False, "stream.spare": 0.1}), tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.data\.similar_by: is of a dataset that is whole"):
        changes = {"data.similar_by": "item", "data.similar_length": 2}
        train.train(made(tmp_path / "data", own, **changes), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"interactions is .*log that is appended to is a \.csv or \.tsv file, a folder"
    ):
        train.train(made(tmp_path / "data", mapping(tmp_path, tmp_path / "log.json")), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_field_of_events_with_more_values_than_rows_set_apart_is_one_line(tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"{row},h{k % 3 if k < 100 else k}\n" for k, row in enumerate(log_lines(0, 200).splitlines())]
    log.write_text(HEADER.replace("\n", ",how\n") + "".join(rows))
    own = tmp_path / "m.json"
    said = {"interactions": str(log), "time_unit": "seconds", "event_fields": ["how"]}
    own.write_text(json.dumps(said))
    with pytest.raises(UserError, match=r"data: event field 'how' has 103 values now, .* has set 64 rows apart"):
        train.train(made(tmp_path / "data", str(own), **{"tables.capacity": 300}), tmp_path / "run")
    assert len(lines(tmp_path / "run")) == 1


def test_sealed_it_is_a_dataset_and_a_run_that_other_commands_read(late_log, tmp_path):
    """The rows in the order of time, and the same scores as tables with places for more ids give."""
    dataset = seal.seal(late_log / "run", tmp_path / "data", tmp_path / "run")
    with pytest.raises(UserError, match=r"data: exists already and is not an empty folder; choose another --data"):
        seal.seal(late_log / "run", tmp_path / "data", tmp_path / "other")
    whole = [line.split(",") for line in (late_log / "log.csv").read_text().splitlines()[1:]]
    whole = sorted(whole, key=lambda row: int(row[2]))
    ids = [dataset.user_table.column("id"), dataset.item_table.column("id")]
    found = dataset.interactions
    assert [ids[0][int(k)].as_py() for k in found["user"]] == [row[0] for row in whole]
    assert [ids[1][int(k)].as_py() for k in found["item"]] == [row[1] for row in whole]
    report = evaluate.evaluate(tmp_path / "run", "test")
    assert report["slices"]["all"]["n"] == 70 and np.isfinite(report["slices"]["all"]["auc"])
    (sealed, _), (open_, _) = state(tmp_path / "run"), state(late_log / "run")
    users = dataset.num_users + 1
    for name in sealed:
        if name.startswith("tables."):
            assert np.array_equal(sealed[name][: 1 + users], open_[name][: 1 + users]), name
        else:
            assert np.asarray(sealed[name]).tobytes() == np.asarray(open_[name]).tobytes(), name
    with pytest.raises(UserError, match="is no run whose rows are appended"):
        seal.seal(tmp_path / "run", tmp_path / "again", tmp_path / "again-run")
