"""Streams whose ids come and go in a table of fixed size: their curves, killed, followed, and what reads them afterwards."""

import json

import jax
import numpy as np
import pytest

from em3_jax import train
from em3_jax.core.errors import UserError
from em3_jax.data import follow
from em3_jax.predict import replay
from em3_jax.serving import store
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, score
from em3_jax.serving.service import Model
from em3_jax.training import endless, online
from em3_jax.training.run import Run
from tests.training.test_online import HEADER, config, followed, lines, log_lines

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

FEW = {
    "stream.window": "400 examples",
    "stream.most_windows": 4,
    "data.batch_size": 64,
    "data.history_length": 4,
    "eval.batch_size": 64,
    "model.backbone_settings.hidden": (8,),
}
COME_AND_GO = {"tables.capacity": 200, "tables.admit_after": 2, "tables.evict": "lru", "tables.optimizer": "lazy_adam"}


def trained(root, directory, **changes):
    return train.train(config(root, "id_only", **(FEW | changes)).to_dict(), directory)


def without_ids(curve):
    return [{name: value for name, value in line.items() if not name.startswith("ids/")} for line in curve]


@pytest.fixture(scope="module")
def runs(planted, tmp_path_factory):
    """With a row for each id; with more rows than ids; and with fewer."""
    root = tmp_path_factory.mktemp("endless")
    trained(planted.root, root / "all")
    trained(planted.root, root / "enough", **{"tables.capacity": 1000})
    trained(planted.root, root / "few", **COME_AND_GO)
    return root


def test_with_rows_for_all_ids_the_curve_and_the_table_are_those_of_a_table_that_has_them(runs):
    curve = lines(runs / "enough")
    assert json.dumps(without_ids(curve)) == json.dumps(lines(runs / "all"))
    assert curve[-1]["ids/evicted"] == 0 < curve[-1]["ids/admitted"]
    states = {name: Run.open(runs / name).state() for name in ("all", "enough")}
    expected, found = (np.asarray(states[name].tables["embedding"]) for name in states)
    accumulated, same = (np.asarray(states[name].tables["slots"]["accumulator"]) for name in states)
    moved = accumulated > 0
    assert moved.sum() > 250 and expected[moved].tobytes() == found[moved].tobytes()
    assert accumulated[moved].tobytes() == same[moved].tobytes()


def test_where_rows_are_few_ids_leave_and_come_back_and_what_reads_the_run_has_all_of_them(runs, planted):
    last = lines(runs / "few")[-1]
    assert last["ids/evicted"] - last["ids/returned"] == last["ids/spilled"] > 0 < last["ids/returned"]
    assert last["ids/resident"] < 200 and last["ids/spill_bytes"] > 100 * last["ids/spilled"]
    run = Run.open(runs / "few")
    state, dataset = run.state(), run.experiment.work.dataset
    of_run = endless.Endless(run.config, run.folder, run.experiment.program.shapes, int(state.step))
    of_run.bind(dataset)
    part, count = of_run._ids, dataset.fields.num_rows
    keys, _ = part.names.keys(np.arange(1, count))
    row, place = part.residents.find(keys), part.spill.find(keys)
    assert (row >= 0).sum() == last["ids/resident"] and (place >= 0).sum() == last["ids/spilled"]
    stored = part.spill.read(place[place >= 0])
    names = ("count", "mean", "variance")
    found = [np.asarray(state.tables["slots"][name])[1:count] for name in names]
    found = [np.asarray(state.tables["embedding"])[1:count], *found]
    flat = np.concatenate([np.ascontiguousarray(x).reshape(count - 1, -1).view(np.uint8) for x in found], axis=1)
    assert flat[place >= 0].tobytes() == stored.tobytes()
    absent = np.flatnonzero((row < 0) & (place < 0)) + 1
    unknown = part.names.unknown_of()[absent]
    embedding = np.asarray(state.tables["embedding"])
    assert len(absent) and (embedding[absent] == embedding[unknown]).all()
    report = run.experiment.evaluate(state, "test", errors=False)
    assert 0 < report.slices["all"]["auc"] < 1


class KilledError(Exception):
    pass


def test_killed_while_it_trains_or_scores_the_curve_and_who_has_which_row_are_the_same(
    runs, planted, tmp_path, monkeypatch
):
    moved, calls = endless.Endless.moved, []  # batches that follow have been named by then

    def until(number):
        def counted(self, *args, **options):
            calls.append(1)
            if len(calls) == number:
                raise KilledError
            return moved(self, *args, **options)

        return counted

    for number in (11, 24):  # in the first window, and in a later one
        calls.clear()
        monkeypatch.setattr(endless.Endless, "moved", until(number))
        with pytest.raises(KilledError):
            trained(planted.root, tmp_path / "run", **COME_AND_GO)
    monkeypatch.setattr(endless.Endless, "moved", moved)
    trained(planted.root, tmp_path / "run", **COME_AND_GO)
    assert json.dumps(lines(tmp_path / "run")) == json.dumps(lines(runs / "few"))
    step = lines(runs / "few")[-1]["step"]
    expected, found = (endless.read(folder, step)["tables"] for folder in (runs / "few", tmp_path / "run"))
    for name in set(expected) - {"spill"}:  # whose places may be others
        assert expected[name].tobytes() == found[name].tobytes(), name
    states = [Run.open(folder).state() for folder in (runs / "few", tmp_path / "run")]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_a_log_that_grows_keeps_program_and_table_and_compiles_nothing_again(tmp_path, monkeypatch):
    log, mapping = followed(tmp_path, HEADER + log_lines(0, 200), time_unit="seconds")
    changes = {
        "stream.window": "100 examples", "stream.follow": str(mapping), "data.history_length": 2, "data.batch_size": 8,
        "data.unknown_floor": {}, "model.backbone_settings.hidden": (8,), "tables.capacity": 50, "eval.batch_size": 8,
    }  # fmt: skip
    steps, programs = [], []

    def wait(self, interrupts):
        programs.append(len(jax.devices()[0].client.live_executables()))
        with open(log, "a", encoding="utf-8") as file:
            file.write(log_lines(100 + 100 * len(programs), 100))
        return "enough" if len(programs) == 4 else ""

    def watched(self, window, *args, train=online.Stream._train):
        steps.append(self.parts.program.train_step.jitted)
        return train(self, window, *args)

    monkeypatch.setattr(follow.Follower, "wait", wait)
    monkeypatch.setattr(online.Stream, "_train", watched)
    made = config(tmp_path / "data", "id_only", **changes).to_dict()
    result = train.train(made, tmp_path / "run")
    assert result["windows"] == 5 and len(set(map(id, steps))) == 1 and steps[0]._cache_size() == 1
    assert programs[3] == programs[1], "something was compiled again"
    curve = lines(tmp_path / "run")
    assert curve[-1]["ids/spilled"] > 0 and curve[-1]["ids/resident"] < 50
    assert len(list((tmp_path / "run" / endless.FOLDER).glob("*.npz"))) == 2, "of two checkpoints"
    # And in another process, which restores: the same ids, of whatever the dataset has become.
    made["stream"]["idle_seconds"] = 0.01
    monkeypatch.undo()
    more = train.train(made, tmp_path / "run")
    assert more["windows"] == 6 and lines(tmp_path / "run")[:5] == curve


@pytest.mark.parametrize(
    "changes,said",
    [
        ({"tables.admit_after": 2}, "config.tables.admit_after=2: has no effect without config.tables.capacity"),
        ({"tables.capacity": 99, "tables.optimizer": "adam"}, "adam moves every row at each step"),
        ({"tables.capacity": 99, "data.placement": "device"}, "placement=device holds the content of all items"),
        ({"tables.capacity": 5}, "config.tables.capacity=5: .* rows are in each batch; give more"),
        ({"tables.capacity": 60}, "config.tables.capacity=60: a batch names more ids than there are rows for"),
        (
            {"tables.capacity": 99, "tables.bank_capacity": 9},
            "bank_capacity=9: has no effect on a model without a memory",
        ),
        ({"tables.capacity": 99, "mesh.data": 2}, "is on one device; set config.mesh.data=1"),
    ],
)
def test_what_a_table_of_fixed_size_cannot_do_is_a_line(planted, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        trained(planted.root, tmp_path / "run", **changes)


def test_files_that_are_missing_or_were_cut_are_a_line(runs, planted):
    step = lines(runs / "few")[-1]["step"]
    for path in (runs / "few" / "spill" / f"{step}.npz", runs / "few" / "spill" / "tables" / "rows"):
        whole = path.read_bytes()
        path.write_bytes(whole[:50])
        with pytest.raises(UserError, match=rf"{path.name}: .*restore the file, or choose another --workdir"):
            trained(planted.root, runs / "few", **COME_AND_GO | {"stream.most_windows": 5})
        with pytest.raises(UserError, match=f"{path.name}: .*restore the file"):
            Run.open(runs / "few").state()
        path.write_bytes(whole)
    started = {"train.init_from": str(runs / "few")}
    with pytest.raises(UserError, match="the ids of that run come and go in a table of fixed size"):
        trained(planted.root, runs / "new", **started)


def test_what_is_served_of_a_table_of_fixed_size_is_what_is_trained(planted, tmp_path):
    """Requests that a version answers, of ids in the table and in the spill, and some that nobody has seen."""
    changes = FEW | COME_AND_GO | {"tables.admit_after": 1, "stream.most_windows": 1}
    changes |= {"stream.publish": str(tmp_path / "store"), "stream.publish_platforms": ("cpu",)}
    trained(planted.root, tmp_path / "run", **changes)
    assert lines(tmp_path / "run")[-1]["ids/spilled"] > 0
    path, model = tmp_path / "requests.jsonl", Model(store.open_current(tmp_path / "store"))
    recorder = Recorder(path)
    users, items = (table.column("id").to_pylist() for table in (planted.user_table, planted.item_table))
    for k in range(12):
        request = ScoreRequest(user=users[3 * k], history=items[k : k + 3], candidates=items[k::11])
        seen = []
        recorder(model, request, score(model, request, seen).logit, seen)
    recorder.close()
    found = replay.replay(tmp_path / "run", tmp_path / "store", path)
    assert found.requests == 12 and not found.inputs and not found.logits
    run_json = tmp_path / "run" / "run.json"
    run_json.write_text(run_json.read_text().replace('"admit_after": 1', '"admit_after": 2'))
    with pytest.raises(UserError, match=r"cannot be replayed: which ids .* where config\.tables\.admit_after is 2"):
        replay.replay(tmp_path / "run", tmp_path / "store", path)


def test_versions_are_of_the_steps_done_not_of_the_batches_that_were_named_ahead(planted, tmp_path, monkeypatch):
    """Published in the midst of windows, with batches ahead and with none: the same versions; ids are where they are."""
    changes = COME_AND_GO | {"stream.most_windows": 2, "stream.publish_every": 2, "stream.publish_platforms": ("cpu",)}
    trained(planted.root, tmp_path / "run", **changes | {"stream.publish": str(tmp_path / "store")})

    def one_by_one(source, place):
        for k in range(len(source)):
            yield place(source[k])

    monkeypatch.setattr(online, "batches", one_by_one)
    trained(planted.root, tmp_path / "other", **changes | {"stream.publish": str(tmp_path / "store-of-other")})
    names = store.version_names(tmp_path / "store")
    assert len(names) == 8 and store.version_names(tmp_path / "store-of-other") == names
    rows_of_items = set()
    for name in names:
        one, other = (store.open_version(tmp_path / folder, name) for folder in ("store", "store-of-other"))
        assert one.checksum == other.checksum, name
        assert len(one["item_rows"]) == planted.num_items + 1
        rows_of_items.add(len(np.unique(one["item_rows"][:, 0])))
    assert len(rows_of_items) > 1, "ids were admitted from version to version"
    last = lines(tmp_path / "run")[-1]
    assert last["ids/spilled"] > 0
    expected = np.asarray(Run.open(tmp_path / "run").state().tables["embedding"])
    learnt = one["table"].any(axis=1)  # ids that were never admitted stand for `unknown`, and have no row of their own
    assert learnt.sum() > 200 + last["ids/spilled"] / 2 and one["table"][learnt].tobytes() == expected[learnt].tobytes()
