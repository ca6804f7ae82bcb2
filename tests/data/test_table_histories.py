"""Own tables with histories of their own, groups, and clicks alone."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.format import Dataset
from em3_jax.data.readers.negatives import draw_negatives
from em3_jax.data.readers.table import table
from em3_jax.evaluation.ranking import Scored, evaluate
from em3_jax.metrics import gauc
from tests.conftest import user_error

ROWS, USERS, ITEMS = 60, 5, 12


def columns() -> dict[str, list]:
    """Interactions in the order of time, two of a time."""
    random = np.random.default_rng(0)
    return {
        "user": [f"u{k}" for k in random.integers(0, USERS, ROWS)],
        "item": [f"i{k}" for k in random.integers(0, ITEMS, ROWS)],
        "label": (random.random(ROWS) < 0.5).astype(int).tolist(),
        "time": (np.arange(ROWS) // 2).tolist(),
        "session": [f"s{k // 3}" for k in range(ROWS)],
        "part": random.choice(["train", "valid", "test"], ROWS, p=[0.5, 0.25, 0.25]).tolist(),
    }


def histories(random) -> tuple[list[list[str]], list[list[int]]]:
    """(items, ratings) of each row; some have none, some share theirs."""
    lengths = random.integers(0, 5, ROWS)
    items = [[f"i{k}" for k in random.integers(0, ITEMS + 3, length)] for length in lengths]
    ratings = [random.integers(1, 4, length).tolist() for length in lengths]
    items[1::4], ratings[1::4] = items[::4], ratings[::4]
    return items, ratings


def write(path: Path, log: dict[str, list]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.table(log), path)
    else:
        pa_csv.write_csv(pa.table(log), path)
    return path


def shown(dataset: Dataset) -> list[list[str]]:
    """The original items of each row's history."""
    item = np.array(dataset.item_table.column("id").to_pylist())[dataset.events["item"]]
    ranges = zip(dataset.interactions["history_start"], dataset.interactions["history_end"], strict=True)
    return [item[start:end].tolist() for start, end in ranges]


# A history that comes with each row.


@pytest.mark.parametrize(("suffix", "order"), [(".parquet", "newest_last"), (".csv", "newest_first")])
def test_histories_that_come_with_the_rows(tmp_path, suffix, order):
    log, (items, ratings) = columns(), histories(np.random.default_rng(1))
    step = -1 if order == "newest_first" else 1
    log["past"] = [row[::step] for row in items]
    log["stars"] = [row[::step] for row in ratings]
    if suffix == ".csv":
        log |= {name: [" ".join(map(str, row)) for row in log[name]] for name in ("past", "stars")}
    mixed = np.random.default_rng(2).permutation(ROWS)  # the rows are sorted by time, histories follow them
    mixed = mixed[np.argsort(np.array(log["time"])[mixed] % 7, kind="stable")]
    log = {name: [values[k] for k in mixed] for name, values in log.items()}
    dataset = table(
        tmp_path / "out",
        interactions=write(tmp_path / f"log{suffix}", log),
        columns={"history": "past"},
        history_fields={"rating": "stars"},
        history_separator=" ",
        history_order=order,
    )
    order = mixed[np.argsort(np.array(log["time"]), kind="stable")]
    assert shown(dataset) == [items[k] for k in order]
    values = np.array([0, 0, *map(int, dataset.meta["vocabularies"]["event"]["rating"])])
    rating = values[dataset.events["field_rating"]]
    start, end = (dataset.interactions[f"history_{name}"] for name in ("start", "end"))
    assert [rating[a:b].tolist() for a, b in zip(start, end, strict=True)] == [ratings[k] for k in order]
    assert len(rating) < sum(map(len, items))  # equal histories are stored once
    assert (dataset.events["time"] < dataset.interactions["time"][0]).all()
    assert dataset.num_items > len(set(log["item"]))  # items of histories alone are items


def earlier_clicks(log: dict[str, list], row: int) -> list[str]:
    """Items that the row's user clicked before, as a log has it that was split afterwards."""
    of_user = [j for j in range(row) if log["user"][j] == log["user"][row] and log["label"][j]]
    return [log["item"][j] for j in of_user if log["time"][j] < log["time"][row]]


def test_a_given_history_may_not_show_a_click_of_a_later_split(tmp_path):
    log = columns()
    log["past"] = [earlier_clicks(log, row) for row in range(ROWS)]
    path, given = write(tmp_path / "log.parquet", log), {"columns": {"history": "past"}}
    message = user_error(lambda: table(tmp_path / "out", interactions=path, split="column:part", **given))
    assert "a click of a later split (" in message and "split by time, or leave the histories out" in message
    assert shown(table(tmp_path / "by_time", interactions=path, split="0.6,0.2,0.2", **given)) == log["past"]
    own = table(tmp_path / "own", interactions=path, split="0.6,0.2,0.2")
    assert shown(own) == log["past"]  # what the reader makes of the interactions is the same
    log["part"] = np.repeat(["train", "valid", "test"], [40, 10, 10]).tolist()
    write(path, log)
    dataset = table(tmp_path / "in_order", interactions=path, split="column:part", **given)
    assert shown(dataset) == log["past"]


def test_mistakes_in_histories_are_named(tmp_path):
    log = columns() | {"past": [["i1", "i2"]] * ROWS, "stars": [[1, 2]] * 7 + [[1]] + [[1, 2]] * (ROWS - 8)}
    path = write(tmp_path / "log.parquet", log)
    items = write(tmp_path / "items.csv", {"item": [f"i{k}" for k in range(ITEMS) if k != 2]})

    def message(**options) -> str:
        return user_error(lambda: table(tmp_path / "out", interactions=path, **options))

    given = {"columns": {"history": "past"}}
    assert "row 7 (counted from 0): 'stars' has 1 values and the history 'past' 2 items" in message(
        **given, history_fields={"rating": "stars"}
    )
    assert "name it with --columns history=..." in message(history_fields={"rating": "stars"})
    assert "--events all does not go with a column of histories" in message(**given, events="all")
    assert "--history-order 'old': choose newest_last or newest_first" in message(**given, history_order="old")
    assert "say which column has a field of theirs" in message(**given, event_fields=("session",))
    log["item"] = ["i1"] * ROWS
    write(path, log)
    assert f"a history names item 'i2', which is not in {items} ({ROWS} such events)" in message(**given, items=items)
    dataset = table(tmp_path / "out", interactions=path, items=items, drop_unknown=True, **given)
    assert shown(dataset) == [["i1"]] * ROWS
    assert f"{ROWS} events of histories dropped: their item is not in items.csv" in dataset.meta["notes"]


# A table of events.


def outside() -> dict[str, list]:
    random = np.random.default_rng(3)
    return {
        "user": [f"u{k}" for k in random.integers(0, USERS + 2, 80)],
        "item": [f"i{k}" for k in random.integers(0, ITEMS + 2, 80)],
        "time": random.integers(-5, ROWS // 2, 80).tolist(),
        "stars": random.integers(1, 6, 80).tolist(),
    }


def test_a_table_of_events_beside_a_log_in_any_order(tmp_path):
    """The log's own events have no part in it, neither has their number."""
    log, events = columns(), write(tmp_path / "events.csv", {n: v[:20] for n, v in outside().items()})
    backwards = {name: values[::-1] for name, values in log.items()}
    made = [
        table(tmp_path / name, interactions=write(tmp_path / f"{name}.csv", one), events_table=events,
              event_fields=("stars",), split="column:part")
        for name, one in (("sorted", log), ("backwards", backwards))
    ]  # fmt: skip
    of_rows = [sorted(zip(one.interactions["time"], map(tuple, shown(one)), strict=True)) for one in made]
    assert of_rows[0] == of_rows[1] and any(history for _, history in of_rows[0])
    assert made[0].meta["counts"]["events"] == made[1].meta["counts"]["events"] == 20


@pytest.mark.parametrize("events", [None, "clicks"])
@pytest.mark.parametrize("split", ["0.6,0.2,0.2", "column:part"])
def test_a_table_of_events_is_history_and_never_a_row(tmp_path, events, split):
    log, other = columns() | {"stars": [9] * ROWS}, outside()
    for name in ("user", "item", "time"):  # the table repeats some interactions, with a label that this must not tell
        other[name] += log[name][10:30]
    other["stars"] += [5] * 20
    paths = {"interactions": write(tmp_path / "log.csv", log), "events_table": write(tmp_path / "events.csv", other)}
    dataset = table(tmp_path / "out", **paths, event_fields=("stars",), events=events, split=split)
    assert dataset.meta["counts"]["interactions"] == ROWS and dataset.num_users > USERS
    code, part = {"train": 0, "valid": 1, "test": 2}, dataset.interactions["split"]
    of_row, seen = {}, {}
    for k in sorted(range(ROWS), key=lambda k: code[log["part"][k]]):
        of_row.setdefault((log["user"][k], log["item"][k], log["time"][k]), []).append(code[log["part"][k]])
    of_event = []
    for key in zip(other["user"], other["item"], other["time"], strict=True):
        rank = seen[key] = seen.get(key, -1) + 1
        of_event.append(of_row[key][min(rank, len(of_row[key]) - 1)] if key in of_row else 0)
    for k, history in enumerate(shown(dataset)):
        expected = []
        for j in range(len(other["user"])):
            key = (other["user"][j], other["item"][j], other["time"][j])
            later = split == "column:part" and of_event[j] > part[k]
            if key[0] == log["user"][k] and key[2] < log["time"][k] and not later:
                expected.append((key[2], key[1]))
        if events:
            expected += [
                (log["time"][j], log["item"][j])
                for j in range(ROWS)
                if log["label"][j]
                and log["user"][j] == log["user"][k]
                and log["time"][j] < log["time"][k]
                and part[j] <= part[k]
            ]
        expected.sort(key=lambda pair: pair[0])
        assert history == [item for _, item in expected]
    assert sorted(dataset.meta["vocabularies"]["event"]["stars"]) == ["1", "2", "3", "4", "5"] + ["9"] * bool(events)


def test_mistakes_in_a_table_of_events_are_named(tmp_path):
    path, events = write(tmp_path / "log.csv", columns()), tmp_path / "events.csv"

    def message(changed: dict, **options) -> str:
        write(events, outside() | changed)
        return user_error(lambda: table(tmp_path / "out", interactions=path, events_table=events, **options))

    users = write(tmp_path / "users.csv", {"user": [f"u{k}" for k in range(USERS)]})
    assert "events.csv line " in message({}, users=users) and "--drop-unknown" in message({}, users=users)
    days = ["2024-05-01"] * 80
    assert "times are in milliseconds, those of the interactions in order" in message({"time": days})
    assert "events.csv: there are no rows" in message({name: [] for name in outside()})
    assert "--events-table does not go with a column of histories" in message({}, columns={"history": "session"})


# Groups.


def test_a_group_is_what_is_ranked_and_the_model_does_not_read_it(tmp_path):
    log = columns()
    plain = table(tmp_path / "plain", interactions=write(tmp_path / "log.csv", log))
    grouped = table(tmp_path / "out", interactions=tmp_path / "log.csv", columns={"group": "session"})
    assert (plain.group == plain.interactions["user"]).all()
    rows, logits = np.arange(ROWS), np.random.default_rng(0).normal(size=ROWS).astype(np.float32)
    found = evaluate(Scored(grouped, rows, logits, [], 0.1))["all"]
    expected = gauc(np.array(log["label"]), logits, np.array([int(name[1:]) for name in log["session"]]))
    assert found["gauc"] == expected.value and found["gauc_users"] == expected.groups_used
    assert found["gauc"] != evaluate(Scored(plain, rows, logits, [], 0.1))["all"]["gauc"]
    options = {"history_length": 3, "unknown_alpha": 0.0, "unknown_floor": {}, "encode": "candidates"}
    batches = [BatchBuilder(one, **options)(rows, buckets=Buckets(64, 64)) for one in (plain, grouped)]
    differing = [name for name in batches[0] if not np.array_equal(*(batch[name] for batch in batches))]
    assert differing == ["group"]  # which the loss alone reads, as its mask
    session = batches[1]["group"]
    assert all((session[j] == session[k]) == (j // 3 == k // 3) for j in range(ROWS) for k in range(ROWS))


# Clicks alone.


def clicks() -> dict[str, list]:
    return {name: values for name, values in columns().items() if name != "label"}


@pytest.mark.parametrize("split", ["0.6,0.2,0.2", "column:part"])
@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_for_clicks_alone(tmp_path, split, by):
    log, path = clicks(), write(tmp_path / "log.csv", clicks())
    options = {"split": split, "context_fields": ("session",), "negatives": 2, "negatives_by": by, "seed": 4}
    dataset = table(tmp_path / "out", interactions=path, **options, events="all")
    written = dataset.interactions
    positive = np.flatnonzero(written["label"])
    assert len(positive) == ROWS
    users = {name: k for k, name in enumerate(dataset.user_table.column("id").to_pylist())}
    items = {name: k for k, name in enumerate(dataset.item_table.column("id").to_pylist())}
    user, item = np.array([users[name] for name in log["user"]]), np.array([items[name] for name in log["item"]])
    np.testing.assert_array_equal(written["item"][positive], item)
    drawn = draw_negatives(user, item, np.array(log["time"]), written["split"][positive], count=2, by=by, seed=4)
    ends = np.append(positive[1:], len(written["label"]))
    for k, (first, end) in enumerate(zip(positive, ends, strict=True)):
        assert written["item"][first + 1 : end].tolist() == [one for one in drawn[k] if one >= 0]
        for name in ("user", "time", "split", "context_session", "history_start", "history_end"):
            assert (written[name][first:end] == written[name][first]).all()
    assert len(dataset.events["item"][:ROWS]) == ROWS and 0 < (drawn < 0).sum() < ROWS
    assert "every row is 1, against 2 items drawn" in dataset.meta["label_rule"]
    assert any("have fewer negatives" in note for note in dataset.meta["notes"])
    assert dataset.meta["rows"]["log.csv"]["kept"] == ROWS
    assert set(np.unique(dataset.events["item"])) <= set(item)


@pytest.mark.parametrize("split", ["0.6,0.2,0.2", "column:part"])
@pytest.mark.parametrize("kind", ["column", "table"])
def test_no_negative_is_in_a_history_that_comes_with_the_log(tmp_path, kind, split):
    rng = np.random.default_rng(3)
    log, options = clicks(), {"negatives": 3, "split": split}
    if kind == "column":  # names that nobody clicks among them; no item of a later click of the user
        shown = [
            [one for one in rng.choice([f"i{n}" for n in range(ITEMS)] + ["x"], 3) if not _clicked(log, k, one)]
            for k in range(ROWS)
        ]
        log |= {"past": [" ".join(one) or "x" for one in shown]}
        options |= {"columns": {"history": "past"}, "history_separator": " "}
    else:
        options |= {
            "events_table": write(tmp_path / "events.csv", {n: v for n, v in outside().items() if n != "stars"})
        }
    dataset = table(tmp_path / "out", interactions=write(tmp_path / "log.csv", log), **options)
    written, item = dataset.interactions, dataset.events["item"]
    histories = [set(item[a:b].tolist()) for a, b in zip(written["history_start"], written["history_end"], strict=True)]
    negatives = np.flatnonzero(written["label"] == 0)
    assert len(negatives) > ROWS / 2 and sum(map(len, histories)) > ROWS / 2
    assert not any(int(written["item"][k]) in histories[k] for k in negatives)


def _clicked(log: dict, row: int, item: str) -> bool:
    """Whether the user of a row clicks on the item in any other row."""
    return any(log["user"][k] == log["user"][row] and log["item"][k] == item for k in range(ROWS) if k != row)


def test_clicks_alone_as_pairs_for_retrieval(tmp_path):
    log = columns()
    path = write(tmp_path / "log.csv", log)
    dataset = table(tmp_path / "out", interactions=path, split="column:part", as_retrieval=True)
    assert dataset.meta["only_clicks"] and dataset.interactions["label"].all()
    code, best = {"train": 0, "valid": 1, "test": 2}, {}
    for k in range(ROWS):
        if log["label"][k]:
            key = (log["user"][k], log["item"][k])
            best[key] = min(best.get(key, (9, 0, 0)), (code[log["part"][k]], log["time"][k], k))
    names = [np.array(t.column("id").to_pylist()) for t in (dataset.user_table, dataset.item_table)]
    found = zip(names[0][dataset.interactions["user"]], names[1][dataset.interactions["item"]], strict=True)
    order = sorted(best, key=lambda key: (best[key][1], best[key][2]))
    assert list(found) == order
    np.testing.assert_array_equal(dataset.interactions["split"], [best[key][0] for key in order])
    dropped = dataset.meta["rows"]["log.csv"]["dropped"]
    assert dropped["no click, and retrieval wants clicks alone"] == log["label"].count(0)
    assert sum(dropped.values()) == ROWS - len(best)
    once = "each pair of user and item once"
    assert dataset.meta["label_rule"] == f"column label, rows that are 1 alone, {once}"
    del log["label"]
    path = write(tmp_path / "clicks.csv", log)
    dataset = table(tmp_path / "clicks", interactions=path, split="column:part", as_retrieval=True)
    assert dataset.meta["label_rule"] == f"every row is 1, {once}"


def test_what_is_said_of_clicks_alone(tmp_path):
    path = write(tmp_path / "log.csv", clicks())
    labelled = write(tmp_path / "labelled.csv", columns())

    def message(**options) -> str:
        return user_error(lambda: table(tmp_path / "out", **({"interactions": path} | options)))

    assert "where every row is a click, --negatives 3 or --as-retrieval" in message()
    assert (
        "every row is a click, and there is nothing to rank it against; draw negatives with --negatives 3, or "
        in message(label="time>=0")
    )
    first = columns()["label"].index(0) + 2
    assert f"labelled.csv line {first}: no click, so the log has negatives of its own" in message(
        interactions=labelled, negatives=2
    )
    assert "--negatives -1: must be at least 0" in message(negatives=-1)
    assert "--negatives-by 'hard': choose uniform or popularity" in message(negatives=1, negatives_by="hard")
    assert "--seed -1" in message(negatives=1, seed=-1)
    assert "does not go with --as-retrieval" in message(negatives=1, as_retrieval=True)
