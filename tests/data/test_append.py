"""Rows that are appended: the dataset that a full preparation makes, late rows, kills, and what is wrong said in a line."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import arrivals
from em3_jax.data.append import STORE, Store
from em3_jax.data.checks import counts_of
from em3_jax.data.event_blocks import EventBlocks
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.table import table
from em3_jax.data.shown import Shown
from em3_jax.data.sources import open_source

HEADER = "user,item,time,label,hour,rating\n"
MAPPING = {"context_fields": ("hour",), "event_fields": ("rating",), "time_unit": "seconds"}


def log_rows(count: int, seed: int = 0, late: float = 0.0) -> list[tuple]:
    """Rows whose users and items come and go; several share a moment; hours and ratings first come in their order."""
    random = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        time = k // 3 - (int(random.integers(1, 40)) if random.random() < late else 0)
        hour, rating = random.integers(0, 1 + min(k // 20, 9)), random.integers(0, 1 + min(k // 50, 3))
        ids = random.integers(0, 6 + k // 15), random.integers(0, 9 + k // 9)
        rows.append((f"u{ids[0]}", f"i{ids[1]}", time, random.integers(0, 2), hour, rating))
    return rows


def text(rows: list[tuple]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def made(root, log, on_bad_row="stop", **mapping) -> Store:
    return Store(root, arrivals.options("mapping.toml", MAPPING | mapping), on_bad_row)


def view(store: Store):
    return store.view(store.rows, store.sizes(store.rows))


def histories(dataset) -> list[tuple]:
    """Of each row, what its history holds."""
    events, found = dataset.events, dataset.interactions
    columns = [events[name] for name in ("item", "time", "field_rating") if name in events]
    ranges = zip(found["history_start"], found["history_end"], strict=True)
    return [tuple(tuple(column[a:b].tolist()) for column in columns) for a, b in ranges]


@pytest.mark.parametrize("events", ["clicks", "all", "none"])
def test_in_pieces_it_is_what_a_full_preparation_makes(tmp_path, events):
    rows, log = log_rows(900), tmp_path / "log.csv"
    log.write_text(HEADER)
    store, source = made(tmp_path / "data", log, events=events), open_source("m", log)
    counters = Shown(), Shown(history_length=3)
    bounds = [0, 1, 2, 40, 41, 300, 650, 899, 900]
    for first, end in itertools.pairwise(bounds):
        with open(log, "a") as file:
            file.write(text(rows[first:end]))
        assert store.take(source) and not store.take(source) and store.rows == end
        now = view(store)
        for counter, length in zip(counters, (None, 3), strict=True):
            expected = counts_of(now, range(end), length)
            found = counter.until(now, end)
            assert set(found) == set(expected)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
    whole = table(tmp_path / "whole", interactions=log, in_order=True, events=events, **MAPPING)
    for name in ("user", "item", "label", "time", "context_hour"):
        assert np.array_equal(now.interactions[name], whole.interactions[name]), name
    assert now.fields == whole.fields
    assert now.meta["vocabularies"]["context"] == whole.meta["vocabularies"]["context"]
    assert histories(now) == histories(whole)
    assert [*store.words("user")] == whole.user_table.column("id").to_pylist()


def test_a_late_row_reads_what_was_before_its_time_and_earlier_rows_never_read_it(tmp_path):
    rows, log = log_rows(600, late=0.2), tmp_path / "log.csv"
    log.write_text(HEADER)
    store, source = made(tmp_path / "data", log), open_source("m", log)
    for first in range(0, 600, 75):
        with open(log, "a") as file:
            file.write(text(rows[first : first + 75]))
        store.take(source)
    expected = []
    for k, (user, _, time, *_) in enumerate(rows):
        past = [row for row in rows[:k] if row[0] == user and row[3] == 1 and row[2] < time]
        expected.append(sorted(row[2] for row in past))
    late = sum(row[2] < max((one[2] for one in rows[:k]), default=row[2]) for k, row in enumerate(rows))
    assert [list(times) for _, times, *_ in histories(view(store))] == expected
    assert store.late == late > 50
    now, counter = view(store), Shown(history_length=4)
    for row in (100, 333, 600):
        found, whole = counter.until(now, row), counts_of(now, range(row), 4)
        assert all(np.array_equal(found[name], whole[name]) for name in whole)


class KilledError(Exception):
    pass


def test_killed_at_any_moment_of_an_append_it_is_what_was_committed_and_goes_on(tmp_path, monkeypatch):
    """After each of the writes of an append in turn; the file is read again from what was committed."""
    rows, log = log_rows(400, late=0.1), tmp_path / "log.csv"
    log.write_text(HEADER + text(rows))
    whole = made(tmp_path / "whole", log)
    whole.take(open_source("m", log))
    log.write_text(HEADER + text(rows[:200]))
    made(tmp_path / "data", log).take(open_source("m", log))
    log.write_text(HEADER + text(rows))
    steps = 0
    for owner, name in ((EventBlocks, "_remember"), (EventBlocks, "add"), (Store, "_commit")):
        for after in (False, True):
            store, step = made(tmp_path / "data", log), getattr(owner, name)

            def dies(self, *args, step=step, after=after):
                if after:
                    step(self, *args)
                raise KilledError

            monkeypatch.setattr(owner, name, dies)
            with pytest.raises(KilledError):
                store.take(open_source("m", log))
            monkeypatch.setattr(owner, name, step)
            steps += 1
            store = made(tmp_path / "data", log)
            assert store.rows == (400 if (name, after) == ("_commit", True) else 200)
    assert steps == 6 and not store.take(open_source("m", log))
    assert histories(view(store)) == histories(view(whole)) and store.late == whole.late
    assert view(store).fields == view(whole).fields


def test_files_of_a_folder_are_read_once_and_half_written_ones_wait(tmp_path):
    rows, folder = log_rows(300), tmp_path / "in"
    folder.mkdir()
    names = HEADER.strip().split(",")
    write = lambda name, part: pq.write_table(  # noqa: E731
        pa.table({n: [row[k] for row in part] for k, n in enumerate(names)}), folder / name, row_group_size=30
    )
    write("b.parquet", rows[100:200])
    (folder / "a.csv").write_text(HEADER + text(rows[:100]))
    (folder / "c.csv").write_text(HEADER + text(rows[200:250]) + "u1,i1,")
    (folder / ".d.csv").write_text("half")
    (folder / "d.csv.tmp").write_text("half")
    (folder / "e.parquet").write_bytes((folder / "b.parquet").read_bytes()[:-4])
    store = made(tmp_path / "data", folder)
    while store.take(open_source("m", folder)):  # as after a restart each time
        store.close()
        store = made(tmp_path / "data", folder)
    assert store.rows == 200 and store["time"].tolist() == [int(row[2]) for row in rows[:200]]
    (folder / "c.csv").write_text(HEADER + text(rows[200:]))
    assert store.take(open_source("m", folder)) and not store.take(open_source("m", folder))
    assert store["time"].tolist() == [int(row[2]) for row in rows]
    (folder / "a.csv").write_text(HEADER + text(rows[:101]))
    with pytest.raises(UserError, match=r"a\.csv: has .* bytes, it had .* when it was read"):
        store.take(open_source("m", folder))


BAD = {
    "u1,i1,,1,0,0": "line 4: has no time",
    ",i1,9,1,0,0": "line 4: has no user",
    "u1,i1,9,2,0,0": "line 4: its label 'label' is '2'; give 0 or 1",
    "u1,i1,soon,1,0,0": "line 4: its time is 'soon', where the rows before have whole numbers",
    'u1,"i1,9,1,0,0': "line 4: has a quote that is not closed",
    "u1,i1": "line 4: has 2 cells, the header names 6",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_stops_the_stream_or_is_left_out_and_kept(tmp_path, line):
    log = tmp_path / "log.csv"
    log.write_text(HEADER + "u1,i1,7,1,0,0\nu2,i2,8,0,0,0\n")
    store = made(tmp_path / "data", log)
    store.take(open_source("m", log))
    log.write_text(log.read_text() + line + "\nu3,i3,9,1,0,0\n")
    with pytest.raises(UserError, match=BAD[line]) as error:
        store.take(open_source("m", log))
    assert "config.stream.on_bad_row=skip" in str(error.value) and "\n" not in str(error.value)
    store = made(tmp_path / "data", log, "skip")
    assert store.rows == 2
    store.take(open_source("m", log))
    assert store.rows == 3 and store.skipped == 1
    kept = [json.loads(one) for one in (tmp_path / "data" / "rejected.jsonl").read_text().splitlines()]
    assert len(kept) == 1 and BAD[line].split(": ", 1)[1].split(";")[0] in kept[0]["why"]


def test_a_schema_that_changes_is_named_with_both_versions(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    columns = {"user": ["u1"], "item": [5], "time": [7], "label": [1], "hour": [0], "rating": [1]}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    store = made(tmp_path / "data", folder)
    store.take(open_source("m", folder))
    pq.write_table(pa.table(columns | {"item": ["x"]}), folder / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet: column 'item' holds texts, in .*a\.parquet it held numbers"):
        store.take(open_source("m", folder))
    (folder / "b.parquet").unlink()
    pq.write_table(pa.table({n: c for n, c in columns.items() if n != "time"}), folder / "c.parquet")
    with pytest.raises(UserError, match=r"c\.parquet: no column 'time' .*a\.parquet had it, of type numbers"):
        store.take(open_source("m", folder))
    log = tmp_path / "log.csv"
    log.write_text(HEADER + "u1,i1,7,1,0,0\n")
    store = made(tmp_path / "other", log)
    store.take(open_source("m", log))
    log.write_text(HEADER.replace("hour", "day") + "u1,i1,7,1,0,0\nu1,i1,8,1,0,0\n")
    with pytest.raises(UserError, match=r"log\.csv: its columns have become .*day.*; they were .*hour"):
        store.take(open_source("m", log))
    log.write_text(HEADER)
    with pytest.raises(UserError, match="has become shorter"):
        store.take(open_source("m", log))


def test_a_mapping_that_names_no_column_stops_at_once_even_where_bad_rows_are_left_out(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(HEADER.replace("item", "itm") + text(log_rows(5)))
    store = made(tmp_path / "data", log, "skip")
    with pytest.raises(UserError, match=r"log\.csv: no column 'item'; did you mean 'itm'\?") as error:
        store.take(open_source("m", log))
    assert "skip" not in str(error.value) and not (tmp_path / "data" / STORE).exists()
    log.write_text(HEADER.replace("hour", "item") + text(log_rows(5)))
    with pytest.raises(UserError, match=r"log\.csv: 2 columns are named 'item'"):
        made(tmp_path / "two", log, "skip").take(open_source("m", log))


def test_lines_that_were_read_and_are_others_now_and_another_source_are_refused(tmp_path):
    rows, log = log_rows(300), tmp_path / "log.csv"
    log.write_text(HEADER + text(rows[:200]))
    store = made(tmp_path / "data", log)
    store.take(open_source("m", log))
    log.write_text(HEADER + text([*rows[:150], *rows[151:]]))  # longer than before, and a line is gone
    with pytest.raises(UserError, match=r"log\.csv before line 202: other lines stand there than were read"):
        store.take(open_source("m", log))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"in: the rows so far came from .*log\.csv; name that one in the map"):
        store.take(open_source("m", tmp_path / "in"))
    for named in ("other.csv", "short.csv"):
        (tmp_path / named).write_text(HEADER + text(rows[50 : 290 if named == "other.csv" else 60]))
        with pytest.raises(
            UserError, match=rf"{named}: the rows so far came from .*log\.csv; name that one in the map"
        ):
            store.take(open_source("m", tmp_path / named))
    log.write_text(HEADER + text(rows[:200]))
    moved = log.rename(tmp_path / "moved.csv")
    open_source("m", moved).check(store.position)
    moved.write_text(HEADER + text(rows))
    assert store.take(open_source("m", moved)) and store.rows == 300


def test_another_folder_is_refused_and_one_that_was_moved_is_not(tmp_path):
    folder, other = tmp_path / "in", tmp_path / "other"
    for one, first in ((folder, 0), (other, 500)):
        one.mkdir()
        for k in range(2):
            (one / f"{k + first}.csv").write_text(HEADER + text(log_rows(first + 20 * k + 20)[-20:]))
    store = made(tmp_path / "data", folder)
    for _ in range(2):
        assert store.take(open_source("m", folder))
    with pytest.raises(UserError, match=r"other: the rows so far came from .*/in; name that one in the mapping again"):
        store.take(open_source("m", other))
    (folder / "0.csv").unlink()
    moved = folder.rename(tmp_path / "moved")
    (moved / "2.csv").write_text(HEADER + text(log_rows(60)[-20:]))
    assert store.take(open_source("m", moved)) and store.rows == 60


def test_a_folder_of_something_else_and_other_options_are_refused(tmp_path):
    log = tmp_path / "log.csv"
    log.write_text(HEADER + text(log_rows(50)))
    table(tmp_path / "whole", interactions=log, in_order=True, **MAPPING)
    with pytest.raises(UserError, match="is a dataset that was prepared"):
        made(tmp_path / "whole", log)
    with pytest.raises(UserError, match=r"log\.csv: is a file; name a folder"):
        made(log, log)
    made(tmp_path / "data", log).take(open_source("m", log))
    with pytest.raises(UserError, match=r"data: a stream appends rows to it; .* `em3 seal`"):
        open_dataset(tmp_path / "data")
    with pytest.raises(UserError, match="was made by other options"):
        made(tmp_path / "data", log, events="all")
    with pytest.raises(UserError, match=r"m\.toml: item_numbers is of whole logs"):
        arrivals.options("m.toml", {"item_numbers": ("price",)})
    with pytest.raises(UserError, match=r"m\.toml: item_fields: 'tags:multi' has several values"):
        arrivals.options("m.toml", {"items": "items.csv", "item_fields": ("tags:multi",)})


def test_new_items_bring_fields_and_content_and_one_without_a_line_is_a_bad_row(tmp_path):
    rows, log, items = log_rows(400), tmp_path / "log.csv", tmp_path / "items.csv"
    vectors = np.random.default_rng(0).normal(size=(60, 2, 3)).astype(np.float16)
    vectors[7, 1] = 0
    lines = [f"i{k},{'abcde'[k * k % 5]}\n" for k in range(60)]
    mapping = {"items": str(items), "item_fields": ("kind",), "features": {"image": str(tmp_path / "image.npy")}}
    mapping |= {"columns": {"item_key": "sku"}}
    log.write_text(HEADER)
    items.write_text("sku,kind\n")
    store, source = made(tmp_path / "data", log, **mapping), open_source("m", log)
    known = {"sizes": None, "rows": 0}
    for end in (50, 200, 400):
        there = 1 + max(int(row[1][1:]) for row in rows[:end])
        items.write_text("sku,kind\n" + "".join(lines[:there]))
        np.save(tmp_path / "image.npy", vectors[:there])
        with open(log, "a") as file:
            file.write(text(rows[store.rows : end]))
        store.take(source)
        store.close()
        store = made(tmp_path / "data", log, **mapping)  # as after a restart
        known = {"sizes": store.sizes(end, known["sizes"], known["rows"]), "rows": end}
        assert known["sizes"] == store.sizes(end)
        early = store.view(50, store.sizes(50))
        assert (early.item_table.column("kind").to_numpy() < early.fields.item[1].size).all()
    places = {name: 3 * size for name, size in store.sizes(store.rows).items()}
    now, number = store.view(store.rows, places), [int(name[1:]) for name in store.words("item")]
    found, words = now.features("image"), now.meta["vocabularies"]["item"]["kind"]
    assert found.tokens.shape == (3 * len(number), 2, 3) and not found.mask[len(number) :].any()
    assert np.array_equal(found.tokens[: len(number)], vectors[number])
    assert np.array_equal(found.mask[: len(number)], (vectors[number] != 0).any(axis=2))
    kinds = now.item_table.column("kind").to_pylist()[: len(number)]
    assert [words[kind - 2] for kind in kinds] == ["abcde"[k * k % 5] for k in number]
    with open(log, "a") as file:
        file.write("u1,i999,150,1,0,0\n")
    with pytest.raises(UserError, match=r"line 402: its item 'i999' is in no line of .*items\.csv; .*on_bad_row=skip"):
        store.take(source)
    assert store.rows == 400
    items.write_text(items.read_text().replace("sku", "id"))
    store.close()
    with pytest.raises(UserError, match=r"items\.csv: no column 'sku'"):  # not a row's fault
        made(tmp_path / "data", log, "skip", **mapping).take(source)
