"""A log that is followed is known again by its lines."""

import json

import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import follow
from em3_jax.data.format import open_dataset


def test_another_log_is_refused_before_the_dataset_is_made_again_and_a_line_may_be_mended(tmp_path):
    log, mapping = tmp_path / "log.csv", tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"interactions": str(log)}))
    rows = [f"u{k % 9},i{k * k % 13},{1_714_564_800 + k * 60},{int(k % 3 == 0)}\n" for k in range(90)]

    def prepared(lines: list[str]) -> int:
        """Rows of the dataset, in a new process."""
        log.write_text("user,item,time,label\n" + "".join(lines))
        follow.Follower(str(mapping), tmp_path / "data", poll_seconds=0.01, idle_seconds=0.05).prepare()
        return len(open_dataset(tmp_path / "data").interactions["time"])

    assert prepared(rows[:60]) == 60
    with pytest.raises(UserError, match=r"log\.csv line 62: time .* is before that of the line above"):
        prepared([*rows[:60], rows[0]])
    assert prepared(rows[:80]) == 80
    for other in (rows[1:], rows[:70]):
        with pytest.raises(
            UserError, match=r"log\.csv: does not begin with the lines that .*data was made of"
        ) as error:
            prepared(other)
        assert "\n" not in str(error.value) and "config.data.root" in str(error.value)
    assert len(open_dataset(tmp_path / "data").interactions["time"]) == 80
