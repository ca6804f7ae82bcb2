"""Streams: scored before trained on, by what was known then; killed and resumed, followed, and what is wrong said in a line."""

import dataclasses
import gc
import json
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import online as online_config
from em3_jax import train
from em3_jax.core.errors import UserError
from em3_jax.data import follow, stream
from em3_jax.data.readers.table import table
from em3_jax.report import streams
from em3_jax.tables import memory_bank
from em3_jax.training import checkpoint, experiment, growth, online, stream_settings
from em3_jax.training.curve import CURVE, read_curve
from em3_jax.training.run import Run
from tests.conftest import ROOT
from tests.grown_tables import grown

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

SMALL = {
    "data.batch_size": 128,
    "data.history_length": 12,
    "data.features": ("image", "text"),
    "model.encoder": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6, "means": True},
    "model.short_history": 5,
    "model.backbone_settings.hidden": (8,),
    "model.decoder_hidden": 8,
    "stream.window": "500 examples",
    "eval.batch_size": 256,
}


def config(root, model="lemur", **changes):
    made = online_config.get_config(model)
    values = {name: value for name, value in SMALL.items() if model == "lemur" or not name.startswith("model.")}
    if model == "id_only":
        values.pop("data.features")
    for name, value in (values | {"data.root": str(root)} | changes).items():
        *path, last = name.split(".")
        section = made
        for part in path:
            section = section[part]
        section[last] = value
    return made


def lines(directory) -> list[dict]:
    """The curve without timings."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_curve(directory / CURVE)
    ]


@pytest.fixture(scope="module")
def finished(planted, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stream") / "run"
    result = train.train(config(planted.root).to_dict(), directory)
    assert result["stopped_by"] == "end" and result["windows"] == 8
    return directory


def test_no_row_is_scored_after_it_was_trained_on_and_each_is_scored_once(planted, tmp_path, monkeypatch):
    trained, scored = set(), []
    score, train_on = online.Stream._score, online.Stream._train

    def watched_score(self, state, window):
        rows = set(range(window.first, window.end))
        assert not rows & trained
        scored.extend(sorted(rows))
        for row in rows:  # and no history reaches into the present
            assert (
                planted.events["time"][
                    planted.interactions["history_start"][row] : planted.interactions["history_end"][row]
                ]
                < planted.interactions["time"][row]
            ).all()
        return score(self, state, window)

    def watched_train(self, state, window, interrupts):
        trained.update(range(window.first, window.end))
        return train_on(self, state, window, interrupts)

    monkeypatch.setattr(online.Stream, "_score", watched_score)
    monkeypatch.setattr(online.Stream, "_train", watched_train)
    train.train(config(planted.root, "id_only", **{"stream.most_windows": 3}).to_dict(), tmp_path / "run")
    assert scored == list(range(1500)) and trained == set(scored)


def test_the_curve_has_the_slices_the_bank_and_an_undefined_auc(finished):
    first, *_, last = lines(finished)
    assert first["all"]["n"] == 500 and first["warm items"]["n"] == 0 and np.isnan(first["warm items"]["auc"])
    assert last["all"]["n"] == last["warm items"]["n"] + last["cold items"]["n"]
    assert 0 < first["train/coverage_long"] < last["train/coverage_long"] <= 1
    assert "train/staleness_cosine" in last and "gauc_users_left_out" in last["all"]
    events = b"".join(path.read_bytes() for path in (finished / "tensorboard").iterdir())
    assert b"all/auc" in events and b"train/coverage_long" in events


def test_draws_the_curve(finished, tmp_path, capsys):
    streams.draw([streams.load(f"a={finished}")], tmp_path / "curves.png", smooth=2)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    text = streams.table([streams.load(str(finished))])
    assert "run" in text and "8" in text
    with pytest.raises(UserError, match=r"file missing; is .* the --workdir of a stream"):
        streams.load(str(tmp_path))


def leaves(planted, directory):
    parts = experiment.build(config(planted.root).to_dict())
    state, notes = checkpoint.Checkpoints(directory).restore_latest(parts.program.init())
    return checkpoint._flat(state), notes


def test_killed_and_resumed_the_curve_and_the_bank_are_the_same(planted, finished, tmp_path):
    options = [f"--config.{name}={value}" for name, value in SMALL.items() if not isinstance(value, dict)]
    options += [f"--config.model.encoder.{name}={value}" for name, value in SMALL["model.encoder"].items()]
    command = [sys.executable, "train.py", "--config=configs/online.py:lemur", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data.root={planted.root}", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        curve = tmp_path / "run" / CURVE
        while process.poll() is None and not (curve.exists() and len(curve.read_text().splitlines()) >= 3):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert 3 <= len(lines(tmp_path / "run")) < 8
    train.train(config(planted.root).to_dict(), tmp_path / "run")
    assert json.dumps(lines(tmp_path / "run")) == json.dumps(lines(finished))
    (expected, notes), (found, same_notes) = leaves(planted, finished), leaves(planted, tmp_path / "run")
    assert notes["position"] == same_notes["position"] and any(name.startswith("memory") for name in found)
    for name, leaf in expected.items():
        assert np.asarray(leaf).tobytes() == np.asarray(found[name]).tobytes(), name


HEADER = "user,item,time,label\n"


def log_lines(first: int, count: int) -> str:
    random = np.random.default_rng(first)
    return "".join(
        f"u{random.integers(0, 8 + row // 40)},i{random.integers(0, 12 + row // 20)},{row * 60},{random.integers(0, 2)}\n"
        for row in range(first, first + count)
    )


def followed(folder, text: str, **mapping) -> tuple[Path, Path]:
    """A log in a folder, and the mapping of a stream that follows it."""
    log, file = folder / "log.csv", folder / "mapping.json"
    log.write_text(text)
    file.write_text(json.dumps({"interactions": str(log)} | mapping))
    return log, file


def test_follows_a_file_that_grows_and_waits_for_the_end_of_a_half_line(tmp_path):
    log, mapping = followed(
        tmp_path, HEADER + log_lines(0, 260) + "u1,i1,", columns="user=user,item=item,time=time,label=label"
    )
    changes = {
        "stream.window": "100 examples", "stream.follow": str(mapping), "stream.poll_seconds": 0.05,
        "stream.idle_seconds": 60.0, "data.history_length": 4, "data.batch_size": 64, "data.unknown_floor": {},
        "model.backbone_settings.hidden": (8,),
    }  # fmt: skip
    made = config(tmp_path / "data", "id_only", **changes).to_dict()

    def append() -> None:
        curve = tmp_path / "run" / CURVE
        while not (curve.exists() and len(curve.read_text().splitlines()) == 2):
            time.sleep(0.05)
        with open(log, "a", encoding="utf-8") as file:
            file.write("15600,1\n" + log_lines(261, 160))

    thread = threading.Thread(target=append, daemon=True)
    thread.start()
    made["stream"]["idle_seconds"] = 10.0
    result = train.train(made, tmp_path / "run")
    thread.join()
    assert result["windows"] == 4 and result["stopped_by"].startswith("no growth")
    assert [(line["first"], line["end"]) for line in lines(tmp_path / "run")] == [
        (k, k + 100) for k in (0, 100, 200, 300)
    ]

    log.write_text(log.read_text() + "u1,i1,25260,1\nu1,i1,5,1\n")  # equal times are in order
    with pytest.raises(UserError, match=r"log\.csv line 424: time 5 is before that of the line above"):
        train.train(made, tmp_path / "run")


def test_what_a_growth_replaces_is_let_go(tmp_path, monkeypatch):
    """Of dataset, batches and compiled programs before a growth nothing is left after it."""
    log, mapping = followed(tmp_path, HEADER + log_lines(0, 200), time_unit="seconds")
    changes = {
        "stream.window": "100 examples", "stream.follow": str(mapping), "data.history_length": 4, "data.batch_size": 64,
        "data.unknown_floor": {}, "model.backbone_settings.hidden": (8,),
    }  # fmt: skip
    made, programs, before = [], [], online.Stream.__init__

    def watched(self, *args):
        gc.collect()
        assert not any(one() for refs in made for one in refs), "still there when the next is made"
        before(self, *args)
        parts = self.parts
        made.append(
            [
                weakref.ref(one)
                for one in (self, parts.work.dataset, parts.work.source.builder, parts.program.train_step.jitted)
            ]
        )

    def wait(self, interrupts):
        programs.append(len(jax.devices()[0].client.live_executables()))
        with open(log, "a", encoding="utf-8") as file:
            file.write(log_lines(100 + 100 * len(programs), 100))
        return "enough" if len(programs) == 3 else ""

    monkeypatch.setattr(online.Stream, "__init__", watched)
    monkeypatch.setattr(follow.Follower, "wait", wait)
    result = train.train(config(tmp_path / "data", "id_only", **changes).to_dict(), tmp_path / "run")
    assert result["windows"] == 4 and len(made) == 3
    assert programs[2] <= programs[1], "programs pile up"


class NotInterrupted:
    received = ""


def test_a_followed_log_that_becomes_shorter_is_an_error_and_a_half_line_alone_is_no_growth(tmp_path):
    log, mapping = followed(tmp_path, HEADER + log_lines(0, 200), columns="user=user,item=item,time=time,label=label")
    follower = follow.Follower(str(mapping), tmp_path / "data", poll_seconds=0.01, idle_seconds=0.05)
    follower.prepare()
    with open(log, "a", encoding="utf-8") as file:
        file.write("u1,i1,")
    assert follower.wait(NotInterrupted).startswith("no growth")
    log.write_text(HEADER + log_lines(0, 100))
    with pytest.raises(UserError, match="has become shorter"):
        follower.wait(NotInterrupted)


def test_a_window_without_rows_or_with_one_class_has_no_auc_and_its_n(tmp_path):
    """Rows in the first, second and fifth hour; those of the second are all clicks."""
    log = [(row, row * 30 if row < 240 else 4 * 3600 + row) for row in range(300)]
    text = "".join(f"u{row % 9},i{row % 13},{time_},{int(row % 3 == 0 or 120 <= row < 240)}\n" for row, time_ in log)
    (tmp_path / "log.csv").write_text(HEADER + text)
    table(tmp_path / "data", interactions=tmp_path / "log.csv", time_unit="seconds")
    changes = {"stream.window": "1 hours", "data.history_length": 4, "data.batch_size": 64, "data.unknown_floor": {}}
    train.train(config(tmp_path / "data", "id_only", **changes).to_dict(), tmp_path / "run")
    found = [(line["all"]["n"], np.isnan(line["all"]["auc"])) for line in lines(tmp_path / "run")]
    assert found == [(120, False), (120, True), (0, True), (0, True), (60, False)]


STARTS = 1_714_564_800  # 2024-05-01 12:00:00


@pytest.fixture(scope="module")
def clocks(tmp_path_factory) -> dict:
    """The same log with times in seconds, in milliseconds, and as ISO dates."""
    root = tmp_path_factory.mktemp("clocks")
    seconds = STARTS + np.sort(np.random.default_rng(3).integers(0, 9 * 3600, 400))
    write = {
        "seconds": str,
        "milliseconds": lambda time_: str(time_ * 1000),
        "dates": lambda time_: str(np.datetime64(int(time_), "s")),
    }
    result = {}
    for name, text in write.items():
        rows = [f"u{k % 9},i{k * k % 13},{text(time_)},{int(k % 3 == 0)}\n" for k, time_ in enumerate(seconds)]
        (root / f"{name}.csv").write_text(HEADER + "".join(rows))
        result[name] = table(root / name, interactions=root / f"{name}.csv")
    return result


def test_a_window_is_as_long_whatever_the_unit_of_time(clocks, tmp_path):
    """Six hours are six hours: the same windows, and the same curve bit for bit."""
    assert [dataset.meta["time_unit"] for dataset in clocks.values()] == ["seconds", "milliseconds", "milliseconds"]
    found = [stream.windows(dataset, "6 hours") for dataset in clocks.values()]
    assert found[0] == found[1] == found[2] and len(found[0]) == 2
    changes = {"stream.window": "2 hours", "data.history_length": 4, "data.batch_size": 64, "data.unknown_floor": {}}
    drawn = []
    for name, dataset in clocks.items():
        train.train(config(dataset.root, "id_only", **changes).to_dict(), tmp_path / name)
        drawn.append(json.dumps(lines(tmp_path / name)))
    assert drawn[0] == drawn[1] == drawn[2]
    assert STARTS <= json.loads(drawn[0])[0]["from"] < STARTS + 7200


def test_a_window_in_hours_of_times_without_a_unit_is_refused(clocks):
    made = dataclasses.replace(clocks["seconds"], meta=clocks["seconds"].meta | {"time_unit": "order"})
    with pytest.raises(UserError, match=r"the times of .* have no unit.*'5000 examples'"):
        stream.windows(made, "6 hours")
    assert len(stream.windows(made, "100 examples")) == 4
    made.meta["time_unit"] = "days"
    with pytest.raises(UserError, match="'6 hours': is no whole number of days"):
        stream.windows(made, "6 hours")


@pytest.mark.parametrize("clock", ["milliseconds", "dates"])
def test_a_late_line_of_a_followed_log_is_named_whatever_its_times_look_like(clocks, tmp_path, clock):
    log, mapping = tmp_path / "log.csv", tmp_path / "mapping.json"
    text = (clocks[clock].root.parent / f"{clock}.csv").read_text().splitlines()
    mapping.write_text(json.dumps({"interactions": str(log)}))
    follower = follow.Follower(str(mapping), tmp_path / "data", poll_seconds=0.01, idle_seconds=0.05)
    log.write_text("\n".join(text) + "\n")
    follower.prepare()
    log.write_text("\n".join([*text, text[-1], text[7]]) + "\n")
    with pytest.raises(UserError, match=rf"{log} line 403: time 2024-05-01 12:.* is before that of the line above"):
        follower.prepare()


def test_a_stream_goes_on_with_more_items_and_the_bank_moves_with_them(tmp_path):
    """By original id: the later dataset numbers its items the other way round."""
    data = {name: grown(tmp_path / name, later=name == "later") for name in ("first", "later")}
    changes = {"data.features": ("image",), "data.unknown_floor": {}, "stream.window": "200 examples"}
    made = {name: config(data[name].root, **changes).to_dict() for name in data}
    made["first"]["stream"]["most_windows"] = 3
    train.train(made["first"], tmp_path / "run")
    parts = {name: experiment.build(made[name]) for name in data}
    before = checkpoint.Checkpoints(tmp_path / "run").restore_latest(parts["first"].program.init())[0].memory
    growth.remember(tmp_path / "run", data["later"])
    checkpoints = checkpoint.Checkpoints(tmp_path / "run", data["later"].meta["data_hash"])
    state, notes = growth.restore_latest(
        checkpoints, tmp_path / "run", parts["later"], parts["later"].program.init(), {}, keep_notes=True
    )
    assert notes["position"]["row"] == 600
    ids = {name: data[name].item_table.column("id").to_pylist() for name in data}
    assert ids["first"][0] != ids["later"][0] and (np.asarray(before["written"])[: len(ids["first"])] >= 0).all()
    for row, item in enumerate(ids["later"]):
        for name, array in state.memory.items():
            found = np.asarray(array)[row]
            if item in ids["first"]:
                assert found.tobytes() == np.asarray(before[name])[ids["first"].index(item)].tobytes()
            elif name == "written":
                assert found == memory_bank.NEVER
    result = train.train(made["later"], tmp_path / "run")
    curve = lines(tmp_path / "run")
    assert result["windows"] == len(curve) and [line["first"] for line in curve] == list(
        range(0, curve[-1]["end"], 200)
    )


@pytest.mark.parametrize("name", [*stream_settings.ONE_WAY, "stream.idle_seconds", "stream.publish_every"])
def test_a_setting_without_effect_is_refused(planted, tmp_path, name):
    now = config(planted.root).to_dict()
    section, key = name.split(".")
    other = {str: "shuffled", bool: False, int: 7, float: 7.0}[type(now[section][key])]
    other = 0.5 if key in ("rows_share", "plateau_factor") else other
    with pytest.raises(UserError, match=rf"config\.{name}={other}: has no effect"):
        train.train(config(planted.root, **{name: other}).to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_all_settings_of_training_take_effect_in_streams_or_are_refused(planted):
    """A new setting has to be thought of here."""
    effective = {"log_every", "init_from", "init_parts", "deterministic", "compilation_cache"}
    known = effective | {name.removeprefix("train.") for name in stream_settings.ONE_WAY if name.startswith("train.")}
    assert set(config(planted.root).train) == known


def test_mistakes_are_one_line(planted, tmp_path, finished):
    with pytest.raises(UserError, match="a stream is trained by one process"):
        train.train(config(planted.root, **{"mesh.processes": 2}).to_dict(), tmp_path / "run")
    with pytest.raises(UserError, match=r"^encoder/.*: frozen at fresh, random values.*set config\.train\.init_from"):
        multipliers = online_config.get_config("frozen").optim.multipliers
        train.train(config(planted.root, **{"optim.multipliers": multipliers}).to_dict(), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    with pytest.raises(UserError, match=r"a log that is followed is a \.csv or \.tsv file"):
        (tmp_path / "m.json").write_text(json.dumps({"interactions": "log.parquet"}))
        train.train(config(planted.root, **{"stream.follow": str(tmp_path / "m.json")}).to_dict(), tmp_path / "run")
    other = SMALL["model.encoder"] | {"output": 7}
    with pytest.raises(UserError, match=r"belongs to another config \(config.model.encoder.output: 6 -> 7"):
        train.train(config(planted.root, **{"model.encoder": other}).to_dict(), finished)


def test_with_a_row_for_each_item_a_bank_of_fixed_size_has_the_curve_of_one_for_all(planted, finished, tmp_path):
    """And tables beside it; see test_endless."""
    few = {"stream.most_windows": 2, "tables.capacity": 1000, "tables.bank_capacity": 151}
    train.train(config(planted.root, **few).to_dict(), tmp_path / "run")
    kept = [
        {name: value for name, value in line.items() if not name.startswith("ids/")} for line in lines(tmp_path / "run")
    ]
    for ours, theirs in zip(kept, lines(finished)[:2], strict=True):  # of programs of other shapes
        values, others = (dict(jax.tree_util.tree_leaves_with_path(one)) for one in (ours, theirs))
        assert values == pytest.approx(others, rel=1e-5, nan_ok=True)
    state, expected = (Run.open(folder).state() for folder in (tmp_path / "run", finished))
    written = np.asarray(state.memory["written"])
    assert (written >= 0).sum() > 100 and written.shape == expected.memory["written"].shape
    assert (written[:150] <= np.asarray(expected.memory["written"])[:150]).all()
