"""Time since an event, and its place from the newest, as fields of events: by plain formulas, and in batches by plain loops."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core import event_features
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.buckets import Buckets
from em3_jax.data.event_features import with_event_features
from em3_jax.data.readers.table import table
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
ROWS, T = 1500, 9
BOTH = ("recency", "position")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Rows over some years, in seconds."""
    folder, random = tmp_path_factory.mktemp("recency"), np.random.default_rng(0)
    time = 1_500_000_000 + np.cumsum((2 ** random.uniform(0, 20, ROWS)).astype(np.int64) - 1)
    given = {"user": random.integers(0, 15, ROWS), "item": random.integers(0, 40, ROWS), "time": time}
    given |= {"label": random.integers(0, 2, ROWS), "stars": random.integers(1, 6, ROWS)}
    pq.write_table(pa.table(given), folder / "log.parquet")
    return table(folder / "data", interactions=folder / "log.parquet", events="all", event_fields=("stars",))


def test_ranges_double_and_positions_are_exact_where_they_are_few():
    seconds = np.array([-5, 0, 0.5, 1, 1.9, 2, 3, 4, 3600, 86400, 365 * 86400, 2**30, 2**40])
    expected = [0 if one < 1 else min(int(np.floor(np.log2(one))) + 1, 31) for one in seconds]
    assert (event_features.recency(seconds) - FIRST_KNOWN).tolist() == expected
    assert len(event_features.ranges("recency")) == 32 and expected[-3] >= 16, "years have a range of their own"
    starts = [int(text.split()[0]) for text in event_features.ranges("position")]
    place = np.arange(1, 20_000)
    found = event_features.position(place) - FIRST_KNOWN
    assert (found == np.searchsorted(starts, place, side="right") - 1).all() and found[-1] == len(starts) - 1
    assert starts[:20] == [*range(1, 17), 20, 24, 28, 32]


def test_a_batch_has_what_its_rows_make_of_their_events(log):
    made = with_event_features(log, BOTH)
    options = {"history_length": T, "unknown_alpha": 0.0, "unknown_floor": {}}
    rows = np.concatenate([np.arange(40, 72), np.arange(700, 732)])
    plain, batch = (BatchBuilder(one, **options)(rows, buckets=Buckets(64, 256)) for one in (log, made))
    for name in set(plain) - {"row_id", "history_row"}:
        np.testing.assert_array_equal(plain[name], batch[name])
    fields, offsets = made.fields.event, made.fields.offsets()["event"]
    assert [field.name for field in fields] == ["stars", "recency", "position"]
    table_row = batch["row_id"][batch["history_row"]]
    columns, mask = made.interactions, batch["history_mask"]
    np.testing.assert_array_equal(table_row[..., :1], plain["row_id"][plain["history_row"]])
    for k, row in enumerate(rows):
        for slot in range(T):
            place = int(columns["history_end"][row]) - T + slot
            if not mask[k, slot]:
                assert (table_row[k, slot] == 0).all()
                continue
            age = int(columns["time"][row] - made.events["time"][place])
            expected = [0 if age < 1 else int(np.floor(np.log2(age))) + 1, T - slot - 1]
            assert (table_row[k, slot, 1:] - [offsets[name] for name in BOTH] - 1).tolist() == expected
    assert len(np.unique(table_row[mask][:, 1])) > 8 and not mask.all()


def test_what_cannot_be_is_said_in_a_line(log, tiny, planted):
    assert "'stars'" in user_error(with_event_features, log, ("stars",)), "is a field of the dataset"
    assert "take position alone" in user_error(with_event_features, tiny.dataset, BOTH)
    given = {"model__content": "none", "data__features": (), "data__event_features": ("position",)}
    config = small_config(planted, data__history_length=0, model__content_parts=("item",), **given)
    assert "reads no events" in user_error(experiment.build, config)
