"""Growing trains the rows that are new, each as often as epochs say, and no row that was there for training before."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs import base
from em3_jax import train
from em3_jax.core import rng
from em3_jax.core.types import WHOLE
from em3_jax.data import passes, pipeline
from em3_jax.data.readers.table import table
from em3_jax.training import rundir, trained_rows
from tests.conftest import user_error

BATCH = 32


def log_rows(first: int, end: int) -> list[tuple]:
    """(user, item, time, label) of rows `first` to `end` - 1 of a log with ever more users and items."""
    random = np.random.default_rng(7)
    drawn = random.integers(0, 2**31, (end, 3))
    return [
        (f"u{a % (9 + k // 30)}", f"i{b % (12 + k // 25)}", 1_700_000_000 + 60 * k, c % 2)
        for k, (a, b, c) in enumerate(drawn.tolist())
    ][first:]


def write(folder: Path, rows: list[tuple], **options):
    """The dataset in `folder`, of such rows."""
    folder.mkdir(parents=True)
    text = "".join(f"{user},{item},{time},{label}\n" for user, item, time, label in rows)
    (folder / "log.csv").write_text("user,item,time,label\n" + text)
    return table(folder / "data", interactions=folder / "log.csv", **options)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> list:
    """Three datasets, each with the rows of the one before; the last with some that came late, and one row twice."""
    root = tmp_path_factory.mktemp("stages")
    late = [("u1", f"i{k}", 1_700_000_000 + 60 * k + 7, 1) for k in range(6)]
    repeated = log_rows(40, 41)
    return [
        write(root / "1", log_rows(0, 200)),
        write(root / "2", log_rows(0, 300)),
        write(root / "3", log_rows(0, 450) + late + repeated),
    ]


def settings(dataset, **train_) -> dict:
    config = base.id_only(base.ranking())
    config.data.root, config.data.history_length, config.data.batch_size = str(dataset.root), 4, BATCH
    config.data.unknown_floor = {}
    config.model.backbone_settings.hidden = (8,)
    config.tables.width = 4
    config.train.patience, config.train.eval_every, config.train.log_every = 0, 0, 1000
    config.eval.batch_size = 64
    for name, value in train_.items():
        section = config.data if name in config.data else config.tables if name in config.tables else config.train
        section[name] = value
    if "learning_rate" in train_:
        config.optim.learning_rate = train_["learning_rate"]
    return config.to_dict()


def name_of(dataset, row: int) -> tuple:
    columns = dataset.interactions
    user, item = (
        table.column("id")[int(columns[kind][row])].as_py()
        for kind, table in (("user", dataset.user_table), ("item", dataset.item_table))
    )
    return user, item, int(columns["time"][row])


@pytest.fixture
def trained(monkeypatch):
    """(config, dataset, workdir) -> (how often each row was trained, by its name; result of `train.train`)."""
    built, build = {}, pipeline.build

    def watched(builder, shards, rows, *, key=None, weight=None, **others):
        if key is not None:
            built[int(key)] = rows[slice(None) if weight is None else weight > 0]
        return build(builder, shards, rows, key=key, weight=weight, **others)

    for module in (pipeline, passes):
        monkeypatch.setattr(module, "build", watched)

    def run(config: dict, dataset, directory: Path, start: int) -> tuple[Counter, dict]:
        built.clear()
        result = train.train(config, directory)
        keys = [int(rng.numpy_key(config["seed"], "unknown", step)) for step in range(start, result["step"])]
        return Counter(name_of(dataset, row) for key in keys for row in built[key]), result

    return run


def split_names(dataset, split: str = "train") -> Counter:
    return Counter(name_of(dataset, row) for row in dataset.split_rows(split))


@pytest.mark.parametrize("order", ["shuffled", "chronological"])
def test_growing_twice_trains_new_rows_as_often_as_epochs_say_and_old_ones_not_at_all(
    stages, trained, tmp_path, order, capsys
):
    first, second, third = stages
    got, result = trained(settings(first, epochs=5.0, order=order), first, tmp_path / "run", 0)
    assert set(got) == set(split_names(first)) and result["step"] == 25
    before = split_names(first)
    for dataset, epochs in ((second, 3.0), (third, 2.0)):
        start = result["step"]
        capsys.readouterr()
        config = settings(dataset, epochs=epochs, order=order, grow=True)
        got, result = trained(config, dataset, tmp_path / "run", start)
        new = split_names(dataset) - before
        assert got == Counter({name: int(epochs) * count for name, count in new.items()})
        per_pass = -(-new.total() // BATCH)
        assert result["step"] == start + epochs * per_pass
        assert f"{new.total():,} rows are new; {before.total():,} that were there" in capsys.readouterr().out
        before = split_names(dataset)
    late = [name for name in new if name[2] < 1_700_000_000 + 60 * 100]
    assert len(late) == 7, "rows that came late, and the second of two equal ones, are new"
    assert rundir.read(tmp_path / "run")["grown_from"] == [d.meta["data_hash"] for d in (first, second)]
    got, again = trained(settings(third, epochs=2.0, order=order), third, tmp_path / "run", result["step"])
    assert not got and again["step"] == result["step"], "nothing is left to do"


def test_a_run_that_stopped_early_trains_no_old_row_either(stages, trained, tmp_path):
    first, second, _ = stages
    config = settings(first, epochs=10.0, patience=1, learning_rate=0.0)  # which never gets better
    _, result = trained(config, first, tmp_path / "run", 0)
    assert result["stopped_by"] == "patience" and result["step"] == 10
    config = settings(second, epochs=2.0, grow=True, learning_rate=0.0)
    got, _ = trained(config, second, tmp_path / "run", result["step"])
    assert got == Counter({name: 2 * n for name, n in (split_names(second) - split_names(first)).items()})


def test_the_most_rows_of_a_user_are_of_the_new_ones(stages, trained, tmp_path):
    first, second, _ = stages
    _, result = trained(settings(first, epochs=1.0, most_rows_per_user=2), first, tmp_path / "run", 0)
    config = settings(second, epochs=2.0, most_rows_per_user=2, grow=True)
    got, _ = trained(config, second, tmp_path / "run", result["step"])
    new = split_names(second) - split_names(first)
    assert set(got) <= set(new) and set(got.values()) == {2}
    of_user, expected = (Counter(name[0] for name in names) for names in (got, new.elements()))
    assert of_user == Counter({user: min(count, 2) for user, count in expected.items()})


def test_passes_name_each_row_once_in_steps_of_one_size(stages):
    rows = np.arange(100, 171)
    source = pipeline.GrownSource(
        builder=None, seed=0, first_step=40, buckets=None, shards=WHOLE, rows=rows, batch_size=BATCH, order="shuffled"
    )
    assert source.steps(2.0) == 46
    for number in range(2):
        steps = [source.rows_of_step(40 + 3 * number + k) for k in range(3)]
        assert [int(weight.sum()) for _, weight in steps] == [23, 24, 24]
        named = np.concatenate([rows[weight > 0] for rows, weight in steps])
        assert sorted(named) == rows.tolist() and named.tolist() != rows.tolist()
        assert all(len(rows) == BATCH for rows, _ in steps)
    assert not np.array_equal(source.rows_of_step(40)[0], source.rows_of_step(43)[0])


def test_what_cannot_be_grown_is_refused_in_a_line(stages, tmp_path):
    first, second, _ = stages
    seen = trained_rows.fingerprints(first, first.split_rows("train"))
    message = user_error(lambda: trained_rows.new_rows(first, "click", seen))
    assert "all its 160 training rows are rows that the run was trained on; there is nothing to train" in message
    seen = trained_rows.fingerprints(second, second.split_rows("train"))
    held_out = write(tmp_path / "moved", log_rows(0, 330), split="0.5,0.25,0.25")
    message = user_error(lambda: trained_rows.new_rows(held_out, "click", seen))
    assert "75 rows that the run was trained on are now of the valid split" in message
    other = write(tmp_path / "other", [(u, i, t + 1, y) for u, i, t, y in log_rows(0, 330)])
    assert "none of the 240 rows" in user_error(lambda: trained_rows.new_rows(other, "click", seen))
    fewer = write(tmp_path / "fewer", log_rows(10, 450))
    assert trained_rows.new_rows(fewer, "click", seen)[1:] == (230, 10)


def test_rows_are_the_same_whatever_the_unit_of_their_times(stages, tmp_path):
    rows = [(user, item, time * 1000, label) for user, item, time, label in log_rows(0, 200)]
    other = write(tmp_path / "other", rows)
    assert other.meta["time_unit"] == "milliseconds"
    one, two = (trained_rows.fingerprints(dataset, range(200)) for dataset in (stages[0], other))
    assert one.tolist() == two.tolist() and len(set(one.tolist())) == 200
