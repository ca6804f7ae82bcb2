"""The table reader by Spark, on this machine: the same bytes as by DuckDB."""

import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from em3_jax.data.readers import log_engine, log_spark, table_made
from em3_jax.data.readers.table import table
from tests.conftest import user_error
from tests.data.test_table_streamed import FULL, ROWS, assert_same, log

pytestmark = pytest.mark.seconds(60)
WITH_SPARK = pytest.mark.skipif(
    not log_spark._has_java(), reason="Spark needs Java: apt-get install default-jre-headless"
)


@pytest.fixture(scope="module")
def spark():
    """A session that the reader finds running, and leaves so."""
    sql = pytest.importorskip("pyspark.sql", reason="pip install pyspark")
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = builder.config("spark.sql.shuffle.partitions", "3").getOrCreate()
    yield session
    session.stop()


def by_both(tmp_path, files, **options):
    return [table(tmp_path / engine, interactions=files, engine=engine, **options) for engine in ("duckdb", "spark")]


@WITH_SPARK
def test_the_same_bytes_of_a_full_log(tmp_path, spark, monkeypatch, capsys):
    """Hive partitions, names that are patterns, numbers, ids that are in no file; in an order of their own."""
    monkeypatch.setattr(log_engine, "BATCH", 64)
    random = np.random.default_rng(3)
    hour = pa.array(np.where(random.random(ROWS) < 0.1, np.nan, np.round(random.uniform(-12, 12, ROWS), 1)))
    finer = (1_600_000_000 + random.integers(0, 150, ROWS)) * 10**9 + random.integers(0, 3, ROWS) * 999_600
    read = log(hour=hour, user=pa.array(random.integers(0, 40, ROWS) * 3, pa.uint64()))
    read = read.append_column("odd name's", read.column("slot"))
    for k in range(3):
        (tmp_path / "log" / f"day=it's {k}").mkdir(parents=True)
        times = pa.array(finer, pa.timestamp("ns"))
        part = read.set_column(2, "time", times).slice(k * 233, 233 + (k == 2))
        pq.write_table(part, tmp_path / "log" / f"day=it's {k}" / "part[1] {a}.parquet")
    pq.write_table(pa.table({"user": [3 * k for k in range(2, 40)], "age": list(range(2, 40))}), tmp_path / "u.parquet")
    options = FULL | {
        "context_fields": ("device", "day", "odd name's"),
        "event_fields": ("slot", "day"),
        "events": "all",
    }
    numbers = {"context_numbers": ("hour",), "event_numbers": ("hour",), "user_numbers": ("age",)}
    before = {name: spark.conf.get(name, None) for name in log_spark._SETTINGS}
    made = by_both(tmp_path, tmp_path / "log", users=tmp_path / "u.parquet", drop_unknown=True, **numbers, **options)
    assert_same(*made)
    assert "read as a whole" not in capsys.readouterr().out
    assert before == {name: spark.conf.get(name, None) for name in log_spark._SETTINGS}


@WITH_SPARK
@pytest.mark.parametrize("kind", ["us", "date", "zone", "text"])
def test_the_same_bytes_of_other_times_and_splits(tmp_path, spark, kind, capsys):
    random = np.random.default_rng(1)
    time = 1_600_000_000 + random.integers(0, 10**7, ROWS)
    finer = pa.array(time * 10**6 + random.integers(0, 10**6, ROWS), pa.timestamp("us"))
    times = {"us": finer, "zone": finer.cast(pa.timestamp("us", "Europe/Berlin")), "text": finer}
    times["date"] = pa.array(time // 86400, pa.int32()).cast(pa.date32())
    read, split = (
        log(time=times[kind]),
        {"us": "items:0.6,0.2,0.2", "zone": "users:0.6,0.2,0.2"}.get(kind, "0.8,0.1,0.1"),
    )
    if kind == "text":
        pa.csv.write_csv(read.select(["user", "item", "label", "time", "device"]), tmp_path / "log.csv")
    else:
        pq.write_table(read, tmp_path / "log.parquet")
    path = tmp_path / ("log.csv" if kind == "text" else "log.parquet")
    assert_same(*by_both(tmp_path, path, split=split, context_fields=("device",)))
    assert "read as a whole" not in capsys.readouterr().out


@WITH_SPARK
def test_what_is_wrong_is_said_as_in_memory(tmp_path, spark, monkeypatch):
    pq.write_table(log(label=pa.array([0, 1, 2] + [0] * (ROWS - 3))), tmp_path / "log.parquet")
    made = {"interactions": tmp_path / "log.parquet", "out": tmp_path / "x"}
    assert user_error(lambda: table(engine="spark", **made)) == user_error(lambda: table(engine="memory", **made))
    monkeypatch.setattr(table_made, "MOST_IN_MEMORY", 10)
    assert "log.parquet row 2" in user_error(lambda: table(engine="spark", **made))


def test_without_spark_or_java_one_line_says_what_is_missing(tmp_path, monkeypatch):
    pq.write_table(log(), tmp_path / "log.parquet")

    def said(**options):
        return user_error(lambda: table(tmp_path / "x", interactions=tmp_path / "log.parquet", **options))

    assert "add --engine spark" in said(spark="local[2]")
    assert "--engine spark: takes logs with times" in said(engine="spark", in_order=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyspark", None)
        patch.setitem(sys.modules, "pyspark.sql", None)
        assert "this needs pyspark" in said(engine="spark") and "em3_jax[spark]" in said(engine="spark")
    pytest.importorskip("pyspark", reason="pip install pyspark")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert "there is no Java" in said(engine="spark", spark="local[2]")
