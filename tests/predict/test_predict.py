"""`em3 predict`: the scores of `em3 eval` for the same rows, what is new, histories, kills, and what it refuses."""

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table import table
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.predict.command import predict
from em3_jax.predict.past import Past
from em3_jax.predict.rows import Resolver, which
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled


def rows_of(dataset, split: str, first: int = 0, last: int | None = None) -> pa.Table:
    """The rows of a split as somebody would have them: original ids and values."""
    rows = np.asarray(dataset.split_rows(split))[first:last]
    columns = dataset.interactions
    users, items = (table.column("id").to_numpy() for table in (dataset.user_table, dataset.item_table))
    words = np.array([None, None, *dataset.meta["vocabularies"]["context"]["slot"]], object)
    return pa.table(
        {
            "note": [f"row {k}" for k in range(len(rows))],
            "user": users[columns["user"][rows]],
            "item": items[columns["item"][rows]],
            "time": columns["time"][rows],
            "slot": words[columns["context_slot"][rows]].tolist(),
        }
    )


@pytest.fixture(scope="module")
def rows_file(planted, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(rows_of(planted, "test"), path, row_group_size=37)
    return path


def test_the_scores_are_those_of_eval(scored, rows_file, tmp_path):
    evaluation.evaluate(scored, "test")  # here, where programs are compiled as those of `predict` are
    done = predict(scored, rows_file, tmp_path / "scores.parquet")
    found, expected = pq.read_table(tmp_path / "scores.parquet"), np.load(scored / "eval_test_logits.npy")
    np.testing.assert_array_equal(found.column("logit").to_numpy(), expected)
    assert done.rows == len(expected) and not done.unknown
    assert found.select(range(5)).equals(pq.read_table(rows_file)), "the rows are as they were, in their order"
    np.testing.assert_allclose(found.column("probability").to_numpy(), 1 / (1 + np.exp(-expected.astype(np.float64))))


def test_text_files_in_pieces_give_the_same(scored, rows_file, tmp_path):
    read = pq.read_table(rows_file)
    for k, part in enumerate((read.slice(0, 150), read.slice(150))):
        pa.csv.write_csv(part, tmp_path / f"part{k}.csv")
    predict(scored, str(tmp_path / "part*.csv"), tmp_path / "scores.csv", piece=128)
    found = pa.csv.read_csv(tmp_path / "scores.csv")
    np.testing.assert_allclose(found.column("logit").to_numpy(), np.load(scored / "eval_test_logits.npy"), atol=2e-6)
    assert found.column("note").to_pylist() == read.column("note").to_pylist()


def test_folders_say_values_and_text_is_read_as_prepare_reads_it(scored, planted, tmp_path):
    """A partition's name is a column; quotes that enclose nothing are part of values; a row is named by its file and line."""
    rows = rows_of(planted, "test", 0, 8)
    for slot in ("a", "b"):
        (tmp_path / "log" / f"slot={slot}").mkdir(parents=True)
        pq.write_table(rows.drop_columns(["slot"]), tmp_path / "log" / f"slot={slot}" / "part.parquet")
    done = predict(scored, tmp_path / "log", tmp_path / "scores.parquet")
    assert done.rows == 16 and done.unknown == {"new values of slot, rows": 16}
    many = rows_of(planted, "test", 0, 80).to_pylist()
    cells = [('"12" vinyl', str(r["user"]), str(r["item"]), str(r["time"]), str(r["slot"])) for r in many]
    head = ("note", "user", "item", "time", "slot")
    (tmp_path / "rows.tsv").write_text("".join("\t".join(line) + "\n" for line in (head, *cells)))
    predict(scored, tmp_path / "rows.tsv", tmp_path / "text.parquet")
    assert pq.read_table(tmp_path / "text.parquet").column("note").to_pylist() == ['"12" vinyl'] * 80
    cells[70] = (*cells[70][:2], "", *cells[70][3:])
    (tmp_path / "broken.tsv").write_text("".join("\t".join(line) + "\n" for line in (head, *cells)))
    said = user_error(lambda: predict(scored, tmp_path / "broken.tsv", tmp_path / "x.csv", piece=64))
    assert "broken.tsv line 72" in said, "in the second piece, and counted in the file"


def test_killed_it_goes_on(scored, rows_file, tmp_path, monkeypatch):
    out, calls = tmp_path / "scores.parquet", []
    whole = ranking_evaluation.predict

    def dies_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(ranking_evaluation, "predict", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        predict(scored, rows_file, out, piece=128)
    assert not out.exists()
    done = predict(scored, rows_file, out, piece=128)
    assert len(calls) == 1 + -(-done.rows // 128), "the first piece is not scored again"
    assert not (tmp_path / ".scores.parquet.parts").exists()
    np.testing.assert_allclose(
        pq.read_table(out).column("logit").to_numpy(), np.load(scored / "eval_test_logits.npy"), atol=2e-6
    )


def test_what_is_new_is_scored_as_unknown_and_counted(scored, planted, tmp_path):
    rows = rows_of(planted, "test", 0, 6)
    new = rows.set_column(1, "user", pa.array([10**9, *rows.column("user").to_pylist()[1:]]))
    new = new.set_column(2, "item", pa.array([*new.column("item").to_pylist()[:5], 10**9]))
    new = new.set_column(4, "slot", pa.array(["never", *map(str, rows.column("slot").to_pylist()[1:])]))
    pq.write_table(new, tmp_path / "new.parquet")
    done = predict(scored, tmp_path / "new.parquet", tmp_path / "scores.parquet")
    assert done.unknown == {"new users, rows": 1, "new items, rows": 1, "new values of slot, rows": 1}
    logits = pq.read_table(tmp_path / "scores.parquet").column("logit").to_numpy()
    np.testing.assert_allclose(logits[1:5], np.load(scored / "eval_test_logits.npy")[1:5], atol=2e-6)
    assert np.isfinite(logits).all() and abs(logits[0] - np.load(scored / "eval_test_logits.npy")[0]) > 1e-4


def test_without_times_the_whole_past_is_read_and_a_column_may_list_it(scored, planted, tmp_path):
    rows = rows_of(planted, "test")
    user = np.asarray(planted.interactions["user"])[np.asarray(planted.split_rows("test"))]
    late = rows.set_column(3, "time", pa.array(np.full(len(rows), np.iinfo(np.int32).max)))
    first, last = Past(planted).ranges(user, None)
    items = planted.item_table.column("id").to_numpy()
    past = [items[planted.events["item"][a:b]].tolist() for a, b in zip(first, last, strict=True)]
    listed = rows.drop_columns(["time"]).append_column("past", pa.array(past))
    found = {}
    for name, one, columns in (
        ("late", late, {}), ("untimed", rows.drop_columns(["time"]), {}), ("listed", listed, {"history": "past"}),
    ):  # fmt: skip
        pq.write_table(one, tmp_path / f"{name}.parquet")
        predict(scored, tmp_path / f"{name}.parquet", tmp_path / f"{name}-scores.parquet", columns=columns)
        found[name] = pq.read_table(tmp_path / f"{name}-scores.parquet").column("logit").to_numpy()
    np.testing.assert_array_equal(found["late"], found["untimed"])
    np.testing.assert_allclose(found["listed"], found["untimed"], atol=2e-6)
    assert (found["late"] != np.load(scored / "eval_test_logits.npy")).any()


def test_times_in_another_unit_are_converted_and_what_is_too_early_is_told(planted, tmp_path):
    """Of a log in milliseconds: dates, and seconds, are the same moments; before its first time there is no past."""
    random, n = np.random.default_rng(0), 300
    when = 1_600_000_000 + 60 * np.arange(n)
    log = {"user": random.integers(0, 12, n), "item": random.integers(0, 20, n), "label": random.integers(0, 2, n)}
    dates = pa.array(when * 1000, pa.timestamp("ms"))
    pq.write_table(pa.table(log | {"time": dates}), tmp_path / "log.parquet")
    dataset = table(tmp_path / "data", interactions=tmp_path / "log.parquet", events="all")
    read = which(["user", "item", "time"], {}, (), dataset)
    source, found = Source(tmp_path / "log.parquet"), {}
    texts = pa.array([f"{moment.as_py():%d.%m.%Y %H:%M:%S}" for moment in dates])
    numbers = pa.array((when * 1000).astype(str))
    forms = {"dates": dates, "seconds": pa.array(when), "texts": texts, "numbers": numbers}
    for name, column in forms.items():
        own = read._replace(time_format="%d.%m.%Y %H:%M:%S" if name == "texts" else "")
        rows = Resolver(dataset, 5, own)(source, pa.table(log | {"time": column}).slice(200))
        found[name] = rows.interactions["history_end"]
    assert all((one == found["dates"]).all() for one in found.values())
    resolver = Resolver(dataset, 5, read)
    early = np.r_[1000, when[200:] * 1000]
    resolver(source, pa.table({name: column[:101] for name, column in log.items()} | {"time": early}))
    assert resolver.unknown["times before the dataset's first, rows"] == 1
    late = pa.table(log | {"time": np.full(n, 5)})
    assert "milliseconds" in user_error(lambda: Resolver(dataset, 5, read)(source, late)) and planted.num_users


def test_histories_as_texts(planted, tmp_path):
    read = which(["user", "item", "slot", "past"], {"history": "past"}, (), planted)
    items = [str(one) for one in planted.item_table.column("id").to_pylist()[:4]]
    user = planted.user_table.column("id").to_pylist()[:2]
    log = pa.table({"user": user, "item": items[:2], "slot": ["0", "0"], "past": [" ".join(items), None]})
    (tmp_path / "rows.csv").write_text("user,item,past\n")
    found = Resolver(planted, 5, read._replace(separator=" "))(Source(tmp_path / "rows.csv"), log)
    assert (found.interactions["history_end"] - found.interactions["history_start"]).tolist() == [4, 0]


def test_the_past_of_each_row_is_its_range(planted):
    columns = planted.interactions
    for split in ("train", "valid", "test"):
        rows = np.asarray(planted.split_rows(split))
        start, end = Past(planted).ranges(columns["user"][rows].astype(np.int64), np.asarray(columns["time"][rows]))
        np.testing.assert_array_equal(start, columns["history_start"][rows])
        np.testing.assert_array_equal(end, columns["history_end"][rows])
    nobody = Past(planted).ranges(np.array([planted.num_users]), np.array([10**9]))
    assert nobody[0][0] == nobody[1][0]


def test_the_past_where_splits_interleave_and_where_it_came_with_the_rows(tmp_path):
    random = np.random.default_rng(0)
    n = 400
    log = pa.table(
        {
            "user": random.integers(0, 20, n), "item": random.integers(0, 30, n), "label": random.integers(0, 2, n),
            "time": np.arange(n), "part": np.array(["train", "valid", "test"])[random.integers(0, 3, n)],
        }
    )  # fmt: skip
    pq.write_table(log, tmp_path / "log.parquet")
    mixed = table(tmp_path / "mixed", interactions=tmp_path / "log.parquet", split="column:part", events="all")
    assert "original" in mixed.events
    rows, columns = np.asarray(mixed.split_rows("test")), mixed.interactions
    start, end = Past(mixed).ranges(columns["user"][rows].astype(np.int64), np.asarray(columns["time"][rows]))
    np.testing.assert_array_equal(end - start, columns["history_end"][rows] - columns["history_start"][rows])
    past = [[int(one) for one in random.integers(0, 30, random.integers(0, 5))] for _ in range(n)]
    pq.write_table(log.append_column("past", pa.array(past)), tmp_path / "given.parquet")
    given = table(tmp_path / "given", interactions=tmp_path / "given.parquet", columns={"history": "past"})
    assert "history=" in user_error(Past, given)


def test_what_it_refuses(scored, planted, rows_file, tmp_path):
    out = tmp_path / "scores.parquet"
    rows = rows_of(planted, "test", 0, 5)
    renamed = tmp_path / "renamed.parquet"
    pq.write_table(rows.rename_columns(["note", "uid", "item", "time", "slot"]), renamed)
    assert "--columns user=" in user_error(lambda: predict(scored, renamed, out))
    predict(scored, renamed, tmp_path / "ok.parquet", columns={"user": "uid"})
    bare = tmp_path / "bare.parquet"
    pq.write_table(rows.drop_columns(["slot"]), bare)
    assert "--without slot" in user_error(lambda: predict(scored, bare, out))
    assert predict(scored, bare, tmp_path / "bare-scores.parquet", without=["slot"]).rows == 5
    missing = tmp_path / "missing.csv"
    missing.write_text("user,item,time,slot\n1,,5,0\n")
    said = user_error(lambda: predict(scored, missing, out))
    assert "missing.csv line 2" in said and "no item" in said
    empty = tmp_path / "empty.parquet"
    pq.write_table(rows.slice(0, 0), empty)
    assert "no rows" in user_error(lambda: predict(scored, empty, out))
    assert ".parquet or .csv" in user_error(lambda: predict(scored, rows_file, tmp_path / "scores.xlsx"))
    assert "exists already" in user_error(lambda: predict(scored, rows_file, renamed))
    assert "no role" in user_error(lambda: predict(scored, rows_file, out, columns={"usr": "user"}))
    other = tmp_path / "two"
    other.mkdir()
    pq.write_table(rows, other / "a.parquet")
    pq.write_table(rows.drop_columns(["item"]), other / "b.parquet")
    assert "b.parquet" in user_error(lambda: predict(scored, other, out))
    assert not out.exists() and not list(tmp_path.glob(".*.parts")), "nothing is left of what was refused"


def test_ids_alone_and_codes_are_scored_too(planted, tmp_path, rows_file):
    config = small_config(planted, model__content="none", data__batch_size=128)
    config.optim.multipliers = ()
    train.train(config, tmp_path / "ids")
    predict(tmp_path / "ids", rows_file, tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet").column("logit").to_numpy()
    assert np.isfinite(found).all() and found.std() > 0
