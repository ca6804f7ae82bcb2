"""The table reader in bounded memory: the same bytes as in memory, whatever the log, its order, files and options."""

import subprocess
import sys
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import WriteOptions, write_csv

from em3_jax.core import mapped, ranges
from em3_jax.data import histories, placed_events
from em3_jax.data.readers import log_engine, quoting, table_made, table_streamed
from em3_jax.data.readers.table import table
from tests.conftest import user_error

ROWS = 700


def log(seed: int = 0, **changes) -> pa.Table:
    """A log in no order, with moments that several rows share."""
    random = np.random.default_rng(seed)
    click = random.random(ROWS) < 0.5
    columns = {
        "user": random.integers(0, 40, ROWS) * 3,
        "item": np.array([f"i{k}" if k % 5 else f"{k}.0" for k in random.integers(0, 60, ROWS)], object),
        "time": 1_600_000_000 + random.integers(0, 150, ROWS),
        "label": click.astype(np.int8),
        "stars": random.integers(1, 6, ROWS).astype(np.float32),
        "device": pa.array(random.choice(["phone", "True", "", "5.0", "5", "tv"], ROWS)).dictionary_encode(),
        "slot": pa.array(random.integers(0, 9, ROWS), mask=random.random(ROWS) < 0.2),
        "session": random.integers(0, 90, ROWS),
        "weigh": random.random(ROWS),
        "bought": pa.array((random.random(ROWS) < 0.4).astype(np.int8), mask=~click),
        "seconds": pa.array(np.where(click, random.gamma(2, 30, ROWS), np.nan)),
    }
    return pa.table(columns | changes)


def both(tmp_path, files, in_memory=False, **options):
    """The dataset in memory and by the engine; what `open_dataset` gives of each.

    Args:
      in_memory: whether the engine hands the log over to the other way.
    """
    made, real, streamed = [], table_streamed.streamed, []
    for engine in ("memory", "duckdb"):
        with mock.patch.object(table_made, "streamed", lambda *given: streamed.append(real(*given)) or streamed[-1]):
            made.append(table(tmp_path / engine, interactions=files, engine=engine, overwrite=True, **options))
    assert len(streamed) == (not in_memory)
    return made


def assert_same(one, other):
    files = [sorted(p.relative_to(made.root) for p in made.root.rglob("*") if p.is_file()) for made in (one, other)]
    assert files[0] == files[1], "nothing else lies there"
    for name in sorted(files[0], key=lambda name: name.suffix == ".json"):
        if name.suffix == ".npy":
            np.testing.assert_array_equal(np.load(one.root / name), np.load(other.root / name), err_msg=str(name))
        assert (one.root / name).read_bytes() == (other.root / name).read_bytes(), name


FULL = {
    "context_fields": ("device", "slot"), "event_fields": ("slot", "stars"), "label": "stars>=4",
    "labels": {"buy": "bought", "long": "seconds>=60"}, "amounts": {"dwell": "seconds"},
    "columns": {"group": "session", "weight": "weigh"}, "split": "0.6,0.2,0.2",
}  # fmt: skip


@pytest.mark.parametrize("events", ["clicks", "all", "none"])
def test_the_same_bytes_of_a_full_log(tmp_path, events, monkeypatch):
    """In small batches and buckets, so that moments lie across their borders."""
    monkeypatch.setattr(log_engine, "BATCH", 64)
    monkeypatch.setattr(placed_events, "BUCKET", 50)
    monkeypatch.setitem(mapped.parts.__kwdefaults__, "size", 61)
    pq.write_table(log(), tmp_path / "log.parquet", row_group_size=100)
    options = FULL | {"event_fields": ("slot",)} | ({"event_fields": ()} if events == "none" else {})
    assert_same(*both(tmp_path, tmp_path / "log.parquet", events=events, **options))


@pytest.mark.parametrize("seed", range(3))
def test_the_same_bytes_of_sorted_and_unsorted_parts_of_several_files(tmp_path, seed):
    read = log(seed)
    read = read.sort_by("time") if seed == 1 else read
    for k in range(3):
        (tmp_path / "parts" / f"day={k}").mkdir(parents=True)
        part = read.slice(k * 233, 233 + (k == 2))
        pq.write_table(part, tmp_path / "parts" / f"day={k}" / "part.parquet", row_group_size=20)
    made = both(tmp_path, tmp_path / "parts", context_fields=("day", "device"), event_fields=("day",))
    assert_same(*made)
    assert ("has been sorted" in " ".join(made[1].meta["notes"])) == (seed != 1)


@pytest.mark.parametrize("kind", ["s", "us", "ns", "date", "zone", "order"])
def test_the_same_bytes_of_every_kind_of_time(tmp_path, kind):
    random = np.random.default_rng(1)
    time = 1_600_000_000 + random.integers(0, 10**7, ROWS)
    finer = time * 10**9 + random.integers(0, 10**9, ROWS)  # what is finer than a millisecond is cut off, not rounded
    made = {"order": pa.array(time % 1000), "zone": pa.array(finer // 1000, pa.timestamp("us", "Europe/Berlin"))}
    made["date"] = pa.array(time // 86400, pa.int32()).cast(pa.date32())
    column = made[kind] if kind in made else pa.array(finer, pa.timestamp("ns")).cast(pa.timestamp(kind), safe=False)
    pq.write_table(log(time=column), tmp_path / "log.parquet")
    assert_same(*both(tmp_path, tmp_path / "log.parquet"))


@pytest.mark.parametrize("form", ["%d.%m.%Y %H:%M", "%Y%m%d", ""], ids=["text", "number", "iso"])
@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_same_bytes_of_times_that_are_texts(tmp_path, form, ending):
    """Each different text is read once; also where a split is of the moments that they say."""
    random = np.random.default_rng(1)
    moments = (1_600_000_000 + random.integers(0, 40, ROWS) * 86_400 * 3).astype("datetime64[s]").astype(object)
    texts = [one.strftime(form or "%Y-%m-%dT%H:%M:%S") for one in moments]
    column = pa.array([int(one) for one in texts] if form == "%Y%m%d" else texts)
    read, path = log(time=column), tmp_path / f"log.{ending}"
    if ending == "csv":
        write_csv(read.select(["user", "item", "time", "label"]), path)
    else:
        pq.write_table(read, path)
    assert_same(*both(tmp_path, path, time_format=form))


def test_a_text_that_is_no_time_is_told_as_in_memory(tmp_path):
    texts = ["01.02.2024 10:00"] * (ROWS - 1) + ["yesterday"]
    pq.write_table(log(time=pa.array(texts)), tmp_path / "log.parquet")
    said = [user_error(lambda e=e: both_of(tmp_path, e, time_format="%d.%m.%Y %H:%M")) for e in ("memory", "duckdb")]
    assert said[0] == said[1] and "'yesterday'" in said[0]


def test_the_same_bytes_with_files_of_items_and_users(tmp_path):
    pq.write_table(log(), tmp_path / "log.parquet")
    items = pa.table({"item": [f"i{k}" for k in range(1, 50)], "brand": [f"b{k % 7}" for k in range(1, 50)]})
    users = pa.table({"user": [3 * k for k in range(2, 40)], "age": list(range(2, 40))})
    pq.write_table(items, tmp_path / "items.parquet")
    pq.write_table(users, tmp_path / "users.parquet")
    files = {"items": tmp_path / "items.parquet", "users": tmp_path / "users.parquet"}
    fields = {"item_fields": ("brand",), "user_fields": ("age",)}
    made = both(tmp_path, tmp_path / "log.parquet", drop_unknown=True, **files, **fields)
    assert_same(*made)
    assert len(made[1].meta["rows"]["log.parquet"]["dropped"]) == 2
    said = [user_error(lambda e=e: both_of(tmp_path, e, **files, **fields)) for e in ("memory", "duckdb")]
    assert said[0] == said[1] and "such rows" in said[0]


def both_of(tmp_path, engine, **options):
    return table(tmp_path / "x", interactions=tmp_path / "log.parquet", engine=engine, **options)


def test_running_histories_are_those_of_the_whole_log():
    random = np.random.default_rng(0)
    for users, moments in ((5, 20), (50, 400), (1, 3)):
        user, time = random.integers(0, users, ROWS), np.sort(random.integers(0, moments, ROWS))
        is_event = random.random(ROWS) < 0.6
        events, no_split = np.flatnonzero(is_event), np.zeros(ROWS, np.uint8)
        whole = histories.histories(user[events], time[events], no_split[events], user, time, no_split)
        count = np.bincount(user[events], minlength=users)
        running = histories.Running(np.cumsum(count) - count)
        first, found = 0, []
        while first < ROWS:
            part = slice(first, first + int(random.integers(1, 60)))
            found.append(running(user[part], time[part], is_event[part]))
            first = part.stop
        start, end, place = (np.concatenate(column) for column in zip(*found, strict=True))
        some = end > start
        np.testing.assert_array_equal(end - start, whole.end - whole.start)
        np.testing.assert_array_equal(start[some], whole.start[some])
        np.testing.assert_array_equal(np.argsort(place), whole.order)


@pytest.mark.parametrize(
    "changes",
    [
        {"label": pa.array([2.0] + [0.0, 1.0] * 349 + [1.0])},
        {"user": pa.array([None, *range(699)])},
        {"time": pa.array([None] * 2 + [5] * 698)},
        {"label": pa.array([1] * ROWS)},
        {"weigh": pa.array([-1.0] + [1.0] * 699)},
        {"weigh": pa.array([0.0] * ROWS)},
        {"bought": pa.array([0] * ROWS)},
        {"seconds": pa.array([3.0] * ROWS)},
        {"session": pa.array([None] + [1] * 699)},
        {"seconds": pa.array([1e39] + [1.0] * 699)},
        {"seconds": pa.array([True] + [False] * 699)},
        {"weigh": pa.array([True] + [False] * 699)},
        {"weigh": pa.array([1e39] + [1.0] * 699)},
    ],
)
def test_what_is_wrong_is_said_as_in_memory(tmp_path, changes):
    pq.write_table(log(**changes), tmp_path / "log.parquet")
    options = {"labels": {"buy": "bought"}, "amounts": {"dwell": "seconds"}, "columns": FULL["columns"]}
    said = [user_error(lambda e=e: both_of(tmp_path, e, **options)) for e in ("memory", "duckdb")]
    assert said[0] == said[1]


def test_whole_numbers_beyond_floats_are_judged_by_a_rule(tmp_path):
    stars = pa.array([2**53 + 1, 2**62] * (ROWS // 2))
    pq.write_table(log(stars=stars), tmp_path / "log.parquet")
    assert_same(*both(tmp_path, tmp_path / "log.parquet", label="stars>=4611686018427387904"))


def test_a_log_too_long_for_memory_says_itself_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(table_made, "MOST_IN_MEMORY", 10)
    pq.write_table(log(label=pa.array([0, 1, 2] + [0] * 697)), tmp_path / "log.parquet")
    said = user_error(lambda: both_of(tmp_path, "duckdb"))
    assert "log.parquet row 2" in said and "'label' is bad" in said
    assert not (tmp_path / "x").exists()
    (tmp_path / "none.csv").write_text("user,item,label,time\n")
    assert "there are no rows" in user_error(
        lambda: table(tmp_path / "x", interactions=tmp_path / "none.csv", engine="duckdb")
    )


OTHERS = np.arange(ROWS) % 7


@pytest.mark.parametrize(
    "changes",
    [
        {"user": pa.array(OTHERS.astype(np.float64))},
        {"USER": pa.array(OTHERS)},
        {"Label": pa.array(OTHERS)},
        {"FILE_ROW_NUMBER": pa.array(OTHERS)},
        {"time": pa.array(np.append(np.arange(ROWS - 1), 10**17), pa.timestamp("ms"))},
    ],
)
def test_what_sql_reads_otherwise_is_read_in_memory(tmp_path, changes, capsys):
    read = log(**changes)
    pq.write_table(read.select(sorted(read.column_names)), tmp_path / "log.parquet")  # capitals first
    assert_same(*both(tmp_path, tmp_path / "log.parquet", in_memory=True))
    assert "read as a whole" in capsys.readouterr().out


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    for name, seed in (("a[1]", 0), ("a1", 1), ("a?", 2)):
        pq.write_table(log(seed), tmp_path / f"{name}.parquet")
    assert_same(*both(tmp_path, [tmp_path / "a[1].parquet", tmp_path / "a?.parquet"]))


def test_a_field_that_is_named_twice_is_one(tmp_path):
    pq.write_table(log(), tmp_path / "log.parquet")
    assert_same(*both(tmp_path, tmp_path / "log.parquet", context_fields=("slot", "slot")))


def test_engines(tmp_path, monkeypatch):
    pq.write_table(log(), tmp_path / "log.parquet")
    assert "--engine 'duck'" in user_error(lambda: both_of(tmp_path, "duck"))
    assert "--engine duckdb: takes logs with times" in user_error(lambda: both_of(tmp_path, "duckdb", in_order=True))
    called = []
    real = table_streamed.streamed
    monkeypatch.setattr(table_made, "streamed", lambda *given: called.append(1) or real(*given))
    table(tmp_path / "a", interactions=tmp_path / "log.parquet")
    assert not called, "a short log"
    monkeypatch.setattr(table_made, "LEAST_ROWS", 500)
    table(tmp_path / "b", interactions=tmp_path / "log.parquet")
    assert called == [1]


def test_killed_it_leaves_nothing_and_starts_again(tmp_path):
    pq.write_table(log(), tmp_path / "log.parquet")
    code = (
        "import os, signal, sys\n"
        "from em3_jax.data import placed_events\n"
        "placed_events.PlacedEvents.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from em3_jax.data.readers.table import table\n"
        "table(sys.argv[2], interactions=sys.argv[1], engine='duckdb')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log.parquet"), str(tmp_path / "x")])
    assert done.returncode == -9 and not (tmp_path / "x" / "dataset.json").exists()
    both_of(tmp_path, "duckdb")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["log.parquet", "x"]


@pytest.mark.parametrize("engine", ["memory", "auto"])
def test_a_part_of_another_type_is_named(tmp_path, engine):
    for k, stars in enumerate((pa.array([1, 2] * 350), pa.array([[1]] * 700))):
        pq.write_table(log(slot=stars), tmp_path / f"part-{k}.parquet")
    files = f"{tmp_path / 'part-0.parquet'},{tmp_path / 'part-1.parquet'}"
    said = user_error(lambda: table(tmp_path / "x", interactions=files, context_fields=("slot",), engine=engine))
    assert "part-1.parquet: column 'slot' holds list" in said and "int64 in the files before" in said


def numbered(tmp_path, **options):
    """A log whose prices, ages and hours are cut into ranges, some of them missing."""
    random = np.random.default_rng(3)
    hour = pa.array(np.where(random.random(ROWS) < 0.1, np.nan, np.round(random.uniform(-12, 12, ROWS), 1)))
    late = pa.array([None if k % 9 == 0 else int(k) for k in random.integers(-(2**60), 2**60, ROWS)])
    pq.write_table(log(hour=hour, late=late), tmp_path / "log.parquet", row_group_size=100)
    price = pa.array([None, -0.0, *random.lognormal(3, 1, 48)])
    pq.write_table(pa.table({"item": [f"i{k}" for k in range(50)], "price": price}), tmp_path / "i.parquet")
    pq.write_table(pa.table({"user": [3 * k for k in range(2, 40)], "age": list(range(2, 40))}), tmp_path / "u.parquet")
    given = {
        "items": tmp_path / "i.parquet", "users": tmp_path / "u.parquet", "drop_unknown": True, "events": "all",
        "item_numbers": ("price",), "user_numbers": ("age",), "context_numbers": ("hour", "late"), "number_bins": 7,
        "event_numbers": ("hour", "seconds"), "context_fields": ("device",), "event_fields": ("slot",),
    }  # fmt: skip
    return both(tmp_path, tmp_path / "log.parquet", **given, **options)


@pytest.mark.parametrize("split", ["0.6,0.2,0.2", "items:0.6,0.2,0.2"])
def test_the_same_bytes_with_numbers(tmp_path, split, monkeypatch):
    """Also where quantiles are found digit by digit, as those of many rows."""
    monkeypatch.setattr(ranges, "_AT_ONCE", 10)
    monkeypatch.setattr(log_engine, "BATCH", 64)
    monkeypatch.setitem(mapped.parts.__kwdefaults__, "size", 61)
    made = numbered(tmp_path, split=split)
    assert_same(*made)
    assert list(made[1].meta["numbers"]) == ["context", "event", "item", "user"]


def test_quantiles_of_numbers_that_come_in_parts_are_those_of_all(monkeypatch):
    monkeypatch.setattr(ranges, "_AT_ONCE", 0)
    random = np.random.default_rng(0)
    for values in (
        random.normal(size=999), random.integers(0, 3, 500) * 1.0, np.array([-0.0, 0.0, np.nan, 5e-324, -np.pi] * 40),
        np.repeat([1.5, 2.0, np.nan], [900, 50, 50]), random.lognormal(0, 300, 2000), np.array([7.0]),
    ):  # fmt: skip
        for bins in (2, 7, 1000):
            found = ranges.Ranges.fitted_in_parts(lambda v=values: iter(np.array_split(v, 7)), bins)
            assert found == ranges.Ranges.fitted(values, bins)
            once, counts = np.unique(values, return_counts=True)
            assert found == ranges.Ranges.fitted(once, bins, counts)
    with pytest.raises(ValueError, match="no number"):
        ranges.Ranges.fitted_in_parts(lambda: iter([np.array([np.nan])]), 4)


@pytest.mark.parametrize("events", ["clicks", "all"])
@pytest.mark.parametrize(
    "split", ["items:0.6,0.2,0.2", "users:0.6,0.2,0.2", "folds:5:1", "column:part", "files", "two files"]
)
def test_the_same_bytes_of_every_split(tmp_path, split, events, monkeypatch):
    monkeypatch.setattr(log_engine, "BATCH", 64)
    read = log().sort_by("time")
    border = np.searchsorted(read.column("time").to_numpy(), [1_600_000_080, 1_600_000_120])
    part = np.repeat(["train", "Valid", "2"], np.diff([0, *border, ROWS]))
    order = np.random.default_rng(0).permutation(ROWS)
    if split in ("files", "two files"):  # of two, the last tenth of the first is valid
        ends = [0, *border[split != "files" :], ROWS]
        files = [tmp_path / f"part-{k}.parquet" for k in range(len(ends) - 1)]
        for path, first, end in zip(files, ends[:-1], ends[1:], strict=True):
            pq.write_table(read.slice(first, end - first), path)
        split = "files"
    else:
        files = tmp_path / "log.parquet"
        pq.write_table(read.append_column("part", pa.array(part)).take(order), files)
    assert_same(*both(tmp_path, files, split=split, events=events))


def test_splits_that_interleave_in_time_are_read_in_memory(tmp_path, monkeypatch):
    part = pa.array(np.random.default_rng(0).choice(["train", "valid", "test"], ROWS))
    pq.write_table(log(part=part), tmp_path / "log.parquet")
    assert_same(*both(tmp_path, tmp_path / "log.parquet", split="column:part", in_memory=True))
    monkeypatch.setattr(table_made, "MOST_IN_MEMORY", 10)
    assert "follow no order of time" in user_error(lambda: both_of(tmp_path, "duckdb", split="column:part"))


TEXTS = {
    "plain": {}, "tsv": {"delimiter": "\t"}, "quoted": {"quoting_style": "all_valid"}, "gz": {}, "zst": {},
    "utf-16": {}, "lines": {"quoting_style": "all_valid"},
}  # fmt: skip


@pytest.mark.parametrize("kind", TEXTS)
def test_the_same_bytes_of_texts(tmp_path, kind, monkeypatch):
    """A piece at a time, in which whole numbers become floats and empty cells anything."""
    monkeypatch.setattr(quoting, "PIECE", 2000)
    seconds = [None] * 100 + [str(k) for k in range(100)] + [f"{k}.5" for k in range(500)]
    device = pa.array(
        np.random.default_rng(0).choice(["phone", "True", "x\ny" if kind == "lines" else "x y", "5.0"], ROWS)
    )
    read = log(seconds=seconds, device=device, bought=pa.array([None] * 300 + [0, 1] * 200))
    suffix = {"tsv": "tsv", "gz": "csv.gz", "zst": "csv.zst"}.get(kind, "csv")
    path = tmp_path / f"log.{suffix}"
    with pa.output_stream(path, compression={"gz": "gzip", "zst": "zstd"}.get(kind)) as file:
        write_csv(read, file, WriteOptions(**({"quoting_style": "none"} | TEXTS[kind])))
    if kind == "utf-16":
        path.write_text(path.read_text("utf-8"), encoding="utf-16")
    options = FULL | {"context_fields": ("device",), "event_fields": ("slot",), "label": None}
    assert_same(*both(tmp_path, path, context_numbers=("seconds", "stars"), **options))


def test_what_is_wrong_in_a_text_is_said_as_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(quoting, "PIECE", 1000)
    lines = ["user,item,label,time", *(f"{k % 7},{k % 5},{k % 2},{k}" for k in range(600))]
    said = []
    for wrong in ("3,4,1", "3,4,2,7", "3,,1,7"):
        (tmp_path / "log.csv").write_text("\n".join([*lines[:400], wrong, *lines[400:]]))
        options = {"interactions": tmp_path / "log.csv"}
        said.append(
            [user_error(lambda e=e, o=options: table(tmp_path / "x", engine=e, **o)) for e in ("memory", "duckdb")]
        )
    assert all(one == other and "line 401" in one for one, other in said)
