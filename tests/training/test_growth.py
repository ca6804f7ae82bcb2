"""Datasets that grow: known ids keep their rows bit for bit wherever they move, and a run goes on, killed or not."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import base, retrieval
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import trees
from em3_jax.report import plot
from em3_jax.training import checkpoint, experiment, growth, rundir
from em3_jax.training.curve import NEW_ROWS
from tests.conftest import ROOT, user_error
from tests.grown_tables import grown
from tests.planted_pairs import planted_pairs
from tests.training.test_sharding import on_eight_devices

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(100)]

STEPS, MORE = 8, 20  # of the first dataset, and with those of the later one's new rows
FIRST_ROWS = 560  # that the first dataset has for training


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict:
    """The first dataset, the later one, and a later one that lacks an item of the first."""
    root = tmp_path_factory.mktemp("data")
    return {
        "first": grown(root / "first", later=False),
        "later": grown(root / "later", later=True),
        "lacking": grown(root / "lacking", later=True, without="i7"),
    }


def settings(dataset, **train_) -> dict:
    config = base.ranking()
    config.data.root, config.data.features = str(dataset.root), ("image",)
    config.data.history_length, config.data.batch_size = 4, 32
    config.model.backbone_settings.hidden = (8,)
    config.model.fusion_settings.width = config.model.fusion_settings.ffn_width = 8
    config.model.cic.negatives = 8
    config.tables.width, config.tables.optimizer = 4, "lazy_adam"
    new_rows = len(dataset.split_rows("train"))
    steps, new_rows = (STEPS, new_rows) if new_rows == FIRST_ROWS else (MORE - STEPS, new_rows - FIRST_ROWS)
    config.train.epochs = steps * 32 / new_rows
    config.train.log_every, config.train.eval_every, config.train.patience = 2, 4, 0
    for name, value in train_.items():
        config.train[name] = value
    return config.to_dict()


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A finished run on the first dataset."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    assert train.train(settings(data["first"]), directory)["step"] == STEPS
    return directory


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def went_on(data, trained, tmp_path_factory) -> Path:
    """The run, gone on with the later dataset to its end."""
    directory = Path(shutil.copytree(trained, tmp_path_factory.mktemp("runs") / "later"))
    assert train.train(settings(data["later"], grow=True), directory)["step"] == MORE
    return directory


def state_of(dataset, directory: Path, step: int) -> dict[str, np.ndarray]:
    parts = experiment.build(settings(dataset))
    state, _ = checkpoint.Checkpoints(directory, dataset.meta["data_hash"]).restore(parts.program.shapes, step)
    return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(state).items()}


def meanings(dataset) -> list[tuple[str, str | None]]:
    """(field, value) of each table row, in the plain words of the dataset, counted row by row."""
    result = [("padding", None)]
    for group, fields in dataset.fields.groups():
        for field in fields:
            words = dataset.meta["vocabularies"][group].get(field.name)
            if words is None:
                rows = dataset.user_table if group == "user" else dataset.item_table
                words = rows.column("id").to_pylist()
            result += [(f"{group}/{field.name}", word) for word in [None, *words]]
    return result


def restored_tables(dataset, directory: Path) -> tuple[object, dict, dict, dict]:
    """(state, notes, tables, fresh tables) as training takes them up."""
    parts = experiment.build(settings(dataset))
    fresh = jax.tree.map(np.asarray, parts.program.init().tables)
    growth.remember(directory, dataset)
    checkpoints = checkpoint.Checkpoints(directory, dataset.meta["data_hash"])
    state, notes = growth.restore_latest(checkpoints, directory, parts, parts.program.init(), {"best_step": 0})
    return state, notes, {k: np.asarray(v) for k, v in trees.named_leaves(state.tables).items()}, fresh


def test_rows_and_slots_of_known_ids_are_kept_bit_for_bit_and_new_ones_are_fresh(data, run):
    before = state_of(data["first"], run, STEPS)
    state, notes, tables, fresh = restored_tables(data["later"], run)
    old, new = meanings(data["first"]), meanings(data["later"])
    assert len(new) == data["later"].fields.num_rows and len(set(new)) == len(new)
    moved = {field for k, (field, _) in enumerate(old) if new.index(old[k]) != k}
    assert {"user/user", "item/item", "item/category", "item/tags", "context/device", "event/device"} <= moved
    fresh = trees.named_leaves(fresh)
    for name, after in tables.items():
        saved = before[f"tables/{name}"]
        assert after.dtype == saved.dtype and len(after) == len(fresh[name]) == 2048 and len(saved) == 1024
        for row, meaning in enumerate(new):
            expected = saved[old.index(meaning)] if meaning in old else fresh[name][row]
            assert after[row].tobytes() == expected.tobytes(), (name, meaning)
        assert not after[0].any() and not after[len(new) :].any()
    assert (tables["slots/mean"][: len(new)] != 0).any() and (fresh["embedding"][1 : len(new)] != 0).any()
    for name, leaf in trees.named_leaves(state).items():
        if not name.startswith("tables/"):
            assert np.asarray(leaf).tobytes() == before[name].tobytes(), name
    grown_from = {"from": data["first"].meta["data_hash"], "after": STEPS}
    assert notes == {"best_step": 0, "grown": grown_from}


def test_many_rows_in_blocks_and_every_bit_pattern_survive(monkeypatch):
    monkeypatch.setattr(growth, "ROWS_AT_ONCE", 7)
    random = np.random.default_rng(0)
    saved = random.integers(0, 2**32, (50, 3), dtype=np.uint32).view(np.float32)  # NaNs, infinities, -0 among them
    saved[0] = -0.0
    fresh, place = random.normal(size=(90, 3)).astype(np.float32), random.permutation(90)[:50]
    result = np.asarray(growth.carry(jax.numpy.asarray(fresh), jax.numpy.asarray(saved), place))
    fresh[place] = saved
    assert result.tobytes() == fresh.tobytes()


def test_the_vocabulary_kept_says_what_each_row_stands_for(data, run):
    kept = pq.read_table(run / "vocabulary" / f"{data['first'].meta['data_hash']}.parquet").to_pydict()
    expected = meanings(data["first"])
    assert kept["value"] == [value for _, value in expected]
    assert kept["field"][1:] == [field for field, _ in expected[1:]]


def test_a_grown_run_goes_on_evaluates_and_resumes_without_the_switch(data, went_on, run, capsys):
    steps = [
        json.loads(line)["step"] for line in (went_on / "metrics.jsonl").read_text().splitlines() if "valid/" in line
    ]
    assert steps == [4, 8, 12, 16, 20]
    record = rundir.read(went_on)
    assert record["data_hash"] == data["later"].meta["data_hash"]
    assert record["grown_from"] == [data["first"].meta["data_hash"]]
    result = evaluation.evaluate(went_on, "test")
    assert result["step"] in (12, 16, 20), "the best of another validation set was taken over"
    assert result["slices"]["all"]["n"] == len(data["later"].split_rows("test"))
    assert train.train(settings(data["later"]), went_on)["step"] == MORE
    capsys.readouterr()
    train.train(settings(data["later"], grow=True), run)
    printed = capsys.readouterr().out
    assert "the dataset has grown: user/user 40 -> 700, " in printed and f"resuming after step {STEPS}" in printed


def test_the_best_step_of_a_plot_is_that_of_the_checkpoint_kept(data, went_on, tmp_path):
    grown = plot.load(went_on, "grown")
    assert grown.grown_after == STEPS and rundir.read(went_on)["grown_from"]
    assert [grown.best_step] == checkpoint.Checkpoints(went_on).steps("best")
    assert grown.best_step == evaluation.evaluate(went_on, "valid")["step"]
    logged = (went_on / "metrics.jsonl").read_text()
    marks = [json.loads(line) for line in logged.splitlines() if NEW_ROWS in line]
    assert marks == [{"step": STEPS, NEW_ROWS: len(data["later"].split_rows("train")) - FIRST_ROWS}]
    # A better value of before is of another validation set. The same of a run whose growth was not logged.
    better = shutil.copytree(went_on, tmp_path / "better")
    for kept in (True, False):
        lines = [json.loads(line) for line in logged.splitlines() if kept or NEW_ROWS not in line]
        lines = [line | {"valid/auc": 0.99} if line["step"] == 4 and "valid/auc" in line else line for line in lines]
        (better / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert plot.load(better, "better").best_step == grown.best_step


KILLED = """
import json, os, sys, signal
from em3_jax import train
from em3_jax.training.checkpoint import Checkpoints
config, directory, when = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
loop = train._Loop._close_window
def close(self, step, state):
    if step >= when:
        self.checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    loop(self, step, state)
train._Loop._close_window = close
train.train(config, directory)
"""


def kill_at(step: int, config: dict, directory: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(config), str(directory), str(step)], cwd=ROOT)
    assert done.returncode == -9


def test_killed_before_and_after_its_first_checkpoint_it_ends_bit_identical(data, went_on, run, tmp_path):
    config = settings(data["later"])
    kill_at(10, config | {"train": config["train"] | {"grow": True}}, run)
    assert checkpoint.Checkpoints(run).steps("latest")[-1] == STEPS, "killed too late to mean anything"
    assert rundir.read(run)["data_hash"] == data["later"].meta["data_hash"]
    message = user_error(lambda: evaluation.evaluate(run, "valid"))
    assert "was trained before the dataset grew" in message and "best" in message
    kill_at(14, config, run)
    assert checkpoint.Checkpoints(run).steps("latest") == [STEPS, 12]
    damaged = Path(shutil.copytree(run, tmp_path / "damaged"))
    shutil.rmtree(damaged / "checkpoints" / "latest" / "12" / "state")
    train.train(config, run)
    with pytest.warns(UserWarning, match="latest/12 is unreadable"):
        train.train(config, damaged)  # from the checkpoint of before the growth, once more
    expected = state_of(data["later"], went_on, MORE)
    for directory in (run, damaged):
        got = state_of(data["later"], directory, MORE)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            assert value.tobytes() == got[name].tobytes(), (directory, name)
        scored, wanted = (evaluation.evaluate(one, "valid") for one in (directory, went_on))
        assert (scored["step"], json.dumps(scored["slices"])) == (wanted["step"], json.dumps(wanted["slices"]))


def test_a_run_from_before_vocabularies_were_kept_grows_once_it_has_one(data, run):
    record = rundir.read(run)
    del record["grown_from"]
    (run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(run / "vocabulary")
    for path in run.glob("checkpoints/*/*/notes/metadata"):
        notes = json.loads(path.read_text())
        del notes["data_hash"]
        path.write_text(json.dumps(notes))
    message = user_error(lambda: train.train(settings(data["later"], grow=True), run))
    assert "nothing says which id a table row belongs to; run once more with the dataset of hash" in message
    train.train(settings(data["first"]), run)
    before = state_of(data["first"], run, STEPS)
    _, _, tables, _ = restored_tables(data["later"], run)
    row = {meaning: k for k, meaning in enumerate(meanings(data["later"]))}
    for k, meaning in enumerate(meanings(data["first"])):
        assert tables["embedding"][row[meaning]].tobytes() == before["tables/embedding"][k].tobytes()


def test_without_the_switch_the_error_names_it_only_where_it_would_help(data, run):
    before = (run / "run.json").read_text()
    message = user_error(lambda: train.train(settings(data["later"]), run))
    assert "belongs to another dataset" in message and "--config.train.grow=True goes on with it" in message
    message = user_error(lambda: train.train(settings(data["lacking"]), run))
    assert "belongs to another dataset" in message and "grow" not in message
    assert (run / "run.json").read_text() == before
    assert train.train(settings(data["first"]), run)["step"] == STEPS


def test_tables_smaller_than_the_saved_ones_are_refused_in_a_line(data, went_on, run, tmp_path):
    """An item less among more items; and a run that has grown, back on the smaller dataset."""
    message = user_error(lambda: train.train(settings(data["lacking"], grow=True), run))
    assert "1 of the 50 ids of field 'item/item' that the run knows are not among its 419, e.g. 'i7'" in message
    message = user_error(lambda: train.train(settings(data["first"], grow=True), went_on))
    assert "660 of the 700 ids of field 'user/user' that the run knows are not among its 40, e.g. 'u" in message
    assert str(data["first"].root) in message and "tables never shrink" in message
    code = "import sys, json; from em3_jax import cli, train; cli.run(lambda: train.train(json.loads(sys.argv[1]), sys.argv[2]))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings(data["lacking"], grow=True)), str(run)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    assert train.train(settings(data["first"]), run)["step"] == STEPS, "a refused attempt has left something behind"


def test_other_refusals_leave_the_run_as_it_was(data, run):
    before = (run / "run.json").read_text()
    changed = settings(data["later"], grow=True)
    changed["tables"]["learning_rate"] = 0.5
    assert "belongs to another config (config.tables.learning_rate" in user_error(lambda: train.train(changed, run))
    shutil.rmtree(run / "rows")
    message = user_error(lambda: train.train(settings(data["later"], grow=True), run))
    assert "nothing says which rows the run was trained on; run once more with the dataset of hash" in message
    assert (run / "run.json").read_text() == before


def test_retrieval_has_no_tables_to_grow(tmp_path):
    config = retrieval.get_config("bpr")
    config.data.root, config.data.batch_size = str(planted_pairs(tmp_path / "pairs").root), 64
    config.model.retrieval_settings.width, config.train.epochs = 4, 1.0
    train.train(config.to_dict(), tmp_path / "run")
    record = rundir.read(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"data_hash": "0" * 64}))
    config.train.grow = True
    assert "keeps no ID tables" in user_error(lambda: train.train(config.to_dict(), tmp_path / "run"))


def test_init_from_refuses_a_best_of_before_the_growth(data, run, tmp_path):
    kill_at(10, settings(data["later"], grow=True), run)
    message = user_error(lambda: train.train(settings(data["later"], init_from=str(run)), tmp_path / "new"))
    assert "was trained before the dataset grew" in message


def test_a_value_is_the_same_in_whatever_form_a_run_keeps_it():
    def words(*values):
        table = pa.table({"field": ["item/size"] * (len(values) + 2), "value": pa.array([None, None, *values])})
        return table.replace_schema_metadata({"blocks": json.dumps([["item/size", len(values) + 1]])})

    assert growth.row_map(words("5.0", "True"), words("4", "true", "5")).tolist() == [0, 1, 4, 3]
    assert "e.g. '007'" in user_error(lambda: growth.row_map(words("007"), words("7")))


def test_fields_and_vocabularies_that_cannot_be_matched(data, tiny):
    first, later = (growth.vocabulary(data[name]) for name in ("first", "later"))
    assert "its fields are user/user, " in user_error(lambda: growth.row_map(first, growth.vocabulary(tiny.dataset)))
    blank = growth.vocabulary(tiny.dataset)  # its vocabularies are not told
    assert "the vocabulary of field 'user/age' is not known" in user_error(lambda: growth.row_map(blank, blank))
    values = first.column("value").to_pylist()
    values[2] = values[3]
    twice = first.set_column(1, "value", pa.array(values, growth.TEXT))
    assert "a value occurs twice" in user_error(lambda: growth.row_map(twice, later))


CARRIED = """
import json, sys
import jax, numpy as np
from em3_jax.core import trees
from em3_jax.tables import packing
from em3_jax.training import experiment, growth
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.plan.program import read
config = json.loads(sys.argv[1])
growth.ROWS_AT_ONCE = 64
parts = experiment.build(config)
growth.remember(sys.argv[2], parts.work.dataset)
checkpoints = Checkpoints(sys.argv[2], parts.work.dataset.meta["data_hash"])
state, _ = growth.restore_latest(checkpoints, sys.argv[2], parts, parts.program.init(), {})
tables = packing.unpacked(state.tables)
for name, leaf in trees.named_leaves(tables).items():
    assert not leaf.sharding.is_fully_replicated, name
    np.save(f"{sys.argv[2]}/{name.replace('/', '.')}.npy", np.asarray(leaf))
fresh, row = tables["embedding"], jax.ShapeDtypeStruct((64,), np.int32)
moving = jax.jit(growth._move, out_shardings=fresh.sharding).lower(fresh, fresh, row, row).compile()
arrays = [array for one in read(moving.as_text()).collectives() for array in one.results]
print(json.dumps(max(array.elements for array in arrays)))
"""


def test_tables_cut_over_devices_grow_like_those_on_one(data, run, tmp_path):
    config = settings(data["later"])
    other = Path(shutil.copytree(run, tmp_path / "mesh"))
    _, _, tables, _ = restored_tables(data["later"], run)
    config["mesh"] |= {"data": 4, "model": 2}
    largest = on_eight_devices("-c", CARRIED, json.dumps(config), str(other))
    assert 0 < largest <= 64 * config["tables"]["width"], "more than a block of rows travels at once"
    old, new = (set(meanings(data[name])) for name in ("first", "later"))
    known = np.flatnonzero([meaning in old for meaning in meanings(data["later"])])
    assert old < new and len(known) == len(old)
    for name, expected in tables.items():
        got = np.load(other / f"{name.replace('/', '.')}.npy")
        assert got[known].tobytes() == expected[known].tobytes(), name
        np.testing.assert_allclose(got, expected, rtol=1e-5)  # devices may round what is drawn in their own way
