"""Times: what units numbers have, what texts say, and what is wrong with them in a line that names the row."""

import datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from em3_jax.data import times
from em3_jax.data.readers.table import table
from em3_jax.data.readers.table_times import Times, read_times
from tests.conftest import user_error

NOON = 1_714_564_800  # 2024-05-01 12:00:00 UTC


def read(values, kind=None, **options):
    column = pa.chunked_array([pa.array(values, kind)])
    found, unit = read_times(Path("log.csv"), "ts", column, Times(**options))
    assert found.dtype == np.int64
    return found.tolist(), unit


@pytest.mark.parametrize(
    "unit,factor", [("seconds", 1), ("milliseconds", 1000), ("microseconds", 10**6), ("nanoseconds", 10**9)]
)
def test_numbers_of_our_days_say_their_unit(unit, factor):
    numbers = [NOON * factor, NOON * factor + 1]
    assert read(numbers) == (numbers, unit)
    assert read([str(number) for number in numbers]) == (numbers, unit)
    assert read(numbers, pa.uint64()) == (numbers, unit)
    assert read(numbers, unit="order") == (numbers, "order")


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, NOON], [20240501, 20240502], [-NOON]])
def test_other_numbers_say_none(numbers):
    assert read(numbers) == (numbers, "order")
    assert read(numbers, unit="days") == (numbers, "days")


ISO = [
    ("2024-05-01 12:00:00", 0),
    ("2024-05-01T12:00", 0),
    ("2024/05/01 12:00:00", 0),
    ("2024-05-01T12:00:00.123456789", 123),
    ("2024-05-01T12:00:00Z", 0),
    ("2024-05-01T14:00:00+02:00", 0),
    ("2024-05-01 14:00:00.5 +0200", 500),
]


@pytest.mark.parametrize("text,more", ISO)
def test_texts_that_are_iso_timestamps(text, more):
    assert read([text]) == ([NOON * 1000 + more], "milliseconds")
    as_category = pa.array([text, text]).dictionary_encode()
    assert read(as_category) == ([NOON * 1000 + more] * 2, "milliseconds")


def test_other_types_of_the_same_moment():
    moment = datetime.datetime(2024, 5, 1, 12)
    for unit in ("s", "ms", "us", "ns"):
        assert read([moment], pa.timestamp(unit)) == ([NOON * 1000], "milliseconds")
    assert read([moment.date()]) == ([(NOON - 12 * 3600) * 1000], "milliseconds")
    assert read([Decimal(NOON)]) == ([NOON], "seconds")
    assert read([float(NOON)]) == ([NOON], "seconds")


def test_texts_of_a_format_that_is_named():
    assert read(["01.05.2024 12:00"], format="%d.%m.%Y %H:%M") == ([NOON * 1000], "milliseconds")
    assert read(["01/May/2024:14:00:00 +0200"], format="%d/%b/%Y:%H:%M:%S %z") == ([NOON * 1000], "milliseconds")
    assert read([20240501], format="%Y%m%d") == ([(NOON - 12 * 3600) * 1000], "milliseconds")
    message = user_error(lambda: read(["01.05.2024", "x"], format="%d.%m.%Y"))
    assert message.startswith("log.csv line 3: time 'ts' is 'x', which is not of the format")


@pytest.mark.parametrize(
    "values,line,words",
    [
        (["2024-05-01", "2024-05-02", "unknown", "2024-05-03"], 4, "is 'unknown', where most rows have dates"),
        (["5", "6", "2024-05-03"], 4, "is '2024-05-03', where most rows have whole numbers"),
        (["2024-05-01T12:00:00Z"] * 2 + ["2024-05-01T12:00:00"], 4, "most rows have dates with a time zone"),
        (["2024-05-01", "2024-13-01"], 3, "is '2024-13-01', which is no date"),
        (["1.5.2024"], 2, "--time-format"),
        (["5", "99999999999999999999"], 3, "beyond 64 bits"),
        ([5.0, 5.5], 3, "is 5.5; give whole numbers"),
        ([5.0, float("nan")], 3, "is nan; give whole numbers"),
        ([float("inf")], 2, "is inf; give whole numbers"),
    ],
)
def test_a_bad_time_is_blamed_on_its_own_line(values, line, words):
    message = user_error(lambda: read(values))
    assert message.startswith(f"log.csv line {line}: time 'ts' ") and words in message


def test_dates_in_two_units_are_no_order():
    seconds = [NOON, NOON + 60, NOON + 120]
    message = user_error(lambda: read([*seconds, (NOON + 180) * 1000]))
    assert message.startswith("log.csv line 5: time 'ts' is 1714564980000") and "--time-unit order" in message
    assert "a date in milliseconds, where most rows have seconds" in message
    assert read([*seconds, (NOON + 180) * 1000], unit="order")[1] == "order"
    assert read([*seconds, 7])[1] == "order"  # 7 is no date in any unit


@pytest.mark.parametrize("kind", [pa.time64("ns"), pa.duration("ns")])
def test_times_finer_than_python_has_them_are_named(kind):
    column = pa.chunked_array([pa.array([1001, 2002], pa.int64()).cast(kind)])
    assert "e.g. '1001'; give whole numbers" in user_error(lambda: read(column))


def test_a_format_that_times_do_not_have():
    finer = pa.chunked_array([pa.array([NOON * 10**9 + 1], pa.timestamp("ns"))])
    assert "which is not of the format '%Y'" in user_error(lambda: read(finer, format="%Y"))
    assert "names a part of the time twice" in user_error(lambda: read(["01/02"], format="%d/%d"))


def test_options_that_do_not_fit():
    assert "did you mean 'seconds'?" in user_error(lambda: read([5], unit="second"))
    assert "leave --time-unit seconds out" in user_error(lambda: read(["2024-05-01"], unit="seconds"))
    assert "holds bool" in user_error(lambda: read([True]))


def test_ticks_are_whole_or_none():
    assert times.ticks(6, "hours", "milliseconds") == 6 * 3600 * 1000
    assert times.ticks(48, "hours", "days") == 2 and times.ticks(6, "hours", "days") is None
    assert times.ticks(6, "hours", "order") is None


def test_seconds_and_words_are_the_same_whatever_the_unit():
    for unit, factor in (("seconds", 1), ("milliseconds", 1000), ("nanoseconds", 10**9)):
        assert times.seconds(NOON * factor, unit) == NOON and isinstance(times.seconds(NOON * factor, unit), int)
        assert times.shown(NOON * factor, unit) == "2024-05-01 12:00:00"
    assert times.seconds(1500, "milliseconds") == 1.5
    assert times.shown(7, "seconds") == "7" and times.shown(NOON, "order") == str(NOON)


def test_a_log_that_has_to_be_in_order_names_the_late_line(tmp_path):
    rows = [
        ("2024-05-01 10:00:00", 1),
        ("2024-05-01 11:00:00", 0),
        ("2024-05-01 11:00:00", 1),
        ("2024-05-01 09:00:00", 0),
    ]
    text = "user,item,time,label\n" + "".join(
        f"u{k},i{k},{time},{label}\n" for k, (time, label) in enumerate(rows * 10)
    )
    (tmp_path / "log.csv").write_text(text)
    message = user_error(lambda: table(tmp_path / "data", interactions=tmp_path / "log.csv", in_order=True))
    assert "log.csv line 5: time 2024-05-01 09:00:00 is before that of the line above, 2024-05-01 11:00:00" in message
    assert table(tmp_path / "data", interactions=tmp_path / "log.csv").meta["notes"], "sorted, and said so"


def test_a_dataset_says_its_unit_and_older_ones_are_guessed(planted, tmp_path):
    assert times.unit_of(planted) == planted.meta["time_unit"] == "seconds"
    older = {name: value for name, value in planted.meta.items() if name != "time_unit"}

    class Older:
        root, meta, interactions = planted.root, older, planted.interactions

    assert times.unit_of(Older) == "seconds"
    Older.interactions = {"time": np.array([NOON * 1000])}
    assert times.unit_of(Older) == "milliseconds"
    Older.meta = older | {"time_unit": "weeks"}
    assert "time_unit is 'weeks'" in user_error(lambda: times.unit_of(Older))
