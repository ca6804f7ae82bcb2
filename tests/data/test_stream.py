"""data.stream: windows cover the log in its order, and a window knows what the rows before it show."""

import dataclasses
import itertools

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import stream
from em3_jax.data.batches import BatchBuilder, Buckets


def test_windows_cover_the_log_in_order(planted):
    for every in ("500 examples", "333 examples", "2 minutes", "1 hours"):
        found = stream.windows(planted, every)
        assert found[0].first == 0 and found[-1].end == len(planted.interactions["time"])
        assert all(a.end == b.first for a, b in itertools.pairwise(found))
    assert [w.complete for w in stream.windows(planted, "500 examples")] == [True] * 8
    assert not stream.windows(planted, "333 examples")[-1].complete
    seconds = planted.interactions["time"]
    for window in stream.windows(planted, "2 minutes"):
        assert seconds[window.end - 1] - seconds[window.first] < 120


@pytest.mark.parametrize("every", ["", "days", "0 days", "3 weeks", "x"])
def test_a_window_that_is_none(planted, every):
    with pytest.raises(UserError, match=r"config\.stream\.window='.*': write a number and a unit"):
        stream.windows(planted, every)


def test_a_log_out_of_order_names_the_row(planted):
    time_ = np.array(planted.interactions["time"])
    time_[700] = 0
    turned = dataclasses.replace(planted, interactions=planted.interactions | {"time": time_})
    with pytest.raises(UserError, match="row 700 of the interactions has time 0"):
        stream.windows(turned, "1 hours")


def test_what_the_rows_before_do_not_show_is_unknown(planted):
    """At row 0 nothing is known; later just what earlier rows show, as candidate, user or in their histories."""
    settings = {"history_length": 5, "unknown_alpha": 0.0, "unknown_floor": {}}
    rows = np.arange(3700, 3800)
    nothing = BatchBuilder(stream.as_of(planted, 0), **settings)(rows, buckets=Buckets(64, 64))
    assert not nothing["item_is_known"].any()
    batch = BatchBuilder(stream.as_of(planted, 3500), **settings)(rows, buckets=Buckets(64, 64))
    columns, seen = planted.interactions, set()
    for row in range(3500):
        seen.add(int(columns["item"][row]))
        seen |= set(planted.events["item"][columns["history_start"][row] : columns["history_end"][row]].tolist())
    expected = [int(item) in seen for item in batch["item_id"]]
    np.testing.assert_array_equal(batch["item_is_known"], expected)
    assert not all(expected)


@pytest.mark.parametrize("every", ["70 examples", "2 minutes", "10 seconds"])
def test_windows_of_rows_that_arrive_are_those_of_the_whole_log_however_they_come(planted, tmp_path, every):
    """But the last, which a row to come may belong to; out of order, a row is of the window in which it arrives."""
    time = np.array(planted.interactions["time"][:1200])
    whole = [w for w in stream.windows(planted, every) if w.complete and w.end <= len(time)]
    late = time.copy()
    late[::17] -= 45
    for times_, expected in ((time, whole), (late, None)):
        found = []
        for ends in ((1200,), (1, 2, 500, 501, 1199, 1200), range(1, 1201, 13)):
            arriving = stream.Arriving(every, tmp_path)
            for end in (*ends, 1200):
                arriving.extend(times_[:end], "seconds")
            count = 0
            while arriving.has(count):
                count += 1
            found.append([arriving[k] for k in range(count)])
            counted = sum(arriving.late(window, times_) for window in found[-1])
            newest = np.maximum.accumulate(times_)
            assert counted == (times_[1:] < newest[:-1])[: found[-1][-1].end - 1].sum()
            assert all(arriving.newest(w) == newest[w.end - 1] for w in found[-1] if w.end)
        assert found[0] == found[1] == found[2]
        if expected is not None and "examples" not in every:
            assert found[0] == expected[: len(found[0])] and len(found[0]) >= len(expected) - 1
        elif expected is not None:
            assert found[0] == expected
