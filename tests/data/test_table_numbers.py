"""What columns of the table reader say besides: numbers as fields of ranges, weights of rows, further labels."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax import train
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.ranges import MISSING, Ranges
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.buckets import Buckets
from em3_jax.data.format import NOT_PART
from em3_jax.data.readers.table import table
from em3_jax.serving.field_values import FieldValues
from tests.conftest import user_error
from tests.data.own_tables import made, parquet, refused
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
N, USERS, ITEMS = 600, 20, 30


def log(**more) -> dict:
    random = np.random.default_rng(0)
    rows = {
        "user": random.integers(0, USERS, N), "item": random.integers(0, ITEMS, N),
        "label": random.integers(0, 2, N), "time": 1_600_000_000 + np.arange(N),
    }  # fmt: skip
    return rows | more


def shop(root, **options):
    """A log with a price an item, an age a user, an hour of the impression and seconds of the event."""
    random = np.random.default_rng(1)
    root.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"item": np.arange(ITEMS), "price": [None, *random.lognormal(3, 1, ITEMS - 1)]}), root / "i.parquet"
    )
    pq.write_table(pa.table({"user": np.arange(USERS), "age": random.integers(18, 80, USERS)}), root / "u.parquet")
    hour = random.uniform(0, 24, N)
    rows = log(hour=np.where(np.arange(N) % 50 == 7, np.nan, hour), seconds=random.exponential(30, N))
    given = {
        "items": root / "i.parquet", "users": root / "u.parquet", "item_numbers": ("price",), "user_numbers": ("age",),
        "context_numbers": ("hour",), "event_numbers": ("seconds",), "number_bins": 8, "events": "all",
    }  # fmt: skip
    return table(root / "out", interactions=parquet(root, rows), **{**given, **options})


def test_ranges_hold_about_as_many_training_rows_each(tmp_path):
    dataset = shop(tmp_path)
    train_rows = np.asarray(dataset.split_rows("train"))
    ids = dataset.interactions["context_hour"][train_rows]
    count = np.bincount(ids)[FIRST_KNOWN:]
    assert len(count) == 9 and count[:-1].min() >= len(train_rows) / 8 - 12, "eight ranges, and what is missing"
    assert dataset.meta["vocabularies"]["context"]["hour"][-1] == MISSING
    edges = dataset.meta["numbers"]["context"]["hour"]["edges"]
    raw = pq.read_table(tmp_path / "clicks.parquet").column("hour").to_numpy()
    there = ~np.isnan(raw)
    np.testing.assert_array_equal(
        dataset.interactions["context_hour"][there], FIRST_KNOWN + np.searchsorted(edges, raw[there], side="right")
    )


def test_edges_are_of_training_rows_alone(tmp_path):
    """Numbers of valid and test rows may be anything: no edge moves."""
    first = shop(tmp_path / "a")
    raw = log(hour=np.r_[np.linspace(0, 1, 480), np.full(N - 480, 1e6)])
    edges = []
    for k, late in enumerate((1e6, -5.0)):
        raw["hour"][480:] = late
        root = tmp_path / f"late{k}"
        root.mkdir()
        made_ = made(root, parquet(root, raw), context_numbers=("hour",))
        edges.append(made_.meta["numbers"]["context"]["hour"]["edges"])
    assert edges[0] == edges[1] and max(edges[0]) <= 1
    assert len(first.meta["numbers"]) == 4


def test_numbers_of_items_and_users_are_fields_of_theirs(tmp_path):
    dataset = shop(tmp_path)
    price = pq.read_table(tmp_path / "i.parquet").column("price").to_pylist()
    ranges = Ranges.from_json(dataset.meta["numbers"]["item"]["price"])
    names = [field.name for field in dataset.fields.item]
    column = dataset.item_field_ids[:, names.index("price")]
    expected = ranges.ids([np.nan if one is None else one for one in price])
    np.testing.assert_array_equal(column, expected)
    assert "age" in [field.name for field in dataset.fields.user]
    assert [field.name for field in dataset.fields.event] == ["seconds"]
    events = dataset.events["field_seconds"]
    assert events.min() >= FIRST_KNOWN and len(np.unique(events)) == 8


@pytest.mark.parametrize("values, bins, edges", [
    ([1, 1, 2, 3], 8, (2.0, 3.0)), ([5, 5, 5], 4, ()), (list(range(100)), 4, (25.0, 50.0, 75.0)),
    ([0] * 90 + list(range(10)), 4, None), ([np.nan, 1.0, 2.0], 3, (2.0,)),
])  # fmt: skip
def test_where_numbers_are_cut(values, bins, edges):
    found = Ranges.fitted(np.asarray(values, np.float64), bins)
    assert edges is None or found.edges == edges
    assert found.missing == bool(np.isnan(values).any())
    ids = found.ids(values)
    assert ids.min() >= FIRST_KNOWN and ids.max() < FIRST_KNOWN + len(found.words())
    assert len(set(found.words())) == len(found.words()) <= bins + 1
    assert np.unique(ids[~np.isnan(values)]).size == len(found.edges) + 1, "no range is empty"
    assert Ranges.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_without_missing_numbers_in_training_a_missing_one_is_unknown():
    found = Ranges.fitted(np.arange(10.0), 4)
    assert found.ids([np.nan]).tolist() == [UNKNOWN] and MISSING not in found.words()
    values = FieldValues("field", found.words(), 2 + len(found.words()), found)
    ids, known = values.ids([0, "9.5", None, "x", 2.5, 1e300])
    assert ids.tolist() == [2, 5, UNKNOWN, UNKNOWN, 3, 5] and known.tolist() == [True, True, True, False, True, True]


def test_a_longer_log_is_cut_alike(tmp_path):
    first = shop(tmp_path / "a")
    again = shop(tmp_path / "b", numbers_like=str(tmp_path / "a" / "out"), number_bins=16, split="0.5,0.2,0.3")
    assert again.meta["numbers"] == first.meta["numbers"]
    fresh = shop(tmp_path / "c", split="0.5,0.2,0.3")
    assert fresh.meta["numbers"] != first.meta["numbers"]
    like = str(tmp_path / "a" / "out")
    assert "no numbers" in user_error(
        lambda: made(tmp_path, parquet(tmp_path, log(size=np.arange(N))), context_numbers=("size",), numbers_like=like)
    )


def test_weights_are_of_training_batches_alone(tmp_path):
    weight = np.random.default_rng(2).gamma(1.0, size=N).astype(np.float32)
    weight[5] = 0
    dataset = made(tmp_path, parquet(tmp_path, log(w=weight)), columns={"weight": "w"})
    np.testing.assert_array_equal(dataset.interactions["weight"], weight)
    rows, buckets = np.arange(40), Buckets(items=64, rows=128)
    options = {"history_length": 4, "unknown_alpha": 0.0, "unknown_floor": {}}
    builder = BatchBuilder(dataset, **options)
    np.testing.assert_array_equal(builder(rows, buckets=buckets, key=np.uint64(1))["weight"], weight[:40])
    padded = builder(rows, buckets=buckets, key=np.uint64(1), weight=(rows < 30).astype(np.float32))["weight"]
    np.testing.assert_array_equal(padded, weight[:40] * (rows < 30))
    np.testing.assert_array_equal(builder(rows, buckets=buckets)["weight"], np.ones(40))
    off = BatchBuilder(dataset, **options, row_weights=False)
    np.testing.assert_array_equal(off(rows, buckets=buckets, key=np.uint64(1))["weight"], np.ones(40))


def test_a_weight_of_two_is_a_row_twice(tmp_path):
    """Losses and gradients are weighted means: a run on doubled weights is the run on plain ones, to the bit."""
    found = []
    for k, weight in enumerate((np.ones(N), np.full(N, 2.0), np.where(np.arange(N) % 2, 3.0, 0.25))):
        root = tmp_path / str(k)
        root.mkdir()
        dataset = made(root, parquet(root, log(w=weight)), columns={"weight": "w"})
        config = small_config(dataset, model__content="none", data__features=(), data__batch_size=64)
        config.optim.multipliers, config.train.epochs, config.model.cic.id_fields = (), 1.0, ("item",)
        train.train(config, root / "run")
        lines = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
        found.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert found[0] == found[1] != found[2]


def test_further_labels(tmp_path):
    random = np.random.default_rng(3)
    bought = np.where(random.random(N) < 0.3, np.nan, random.integers(0, 2, N))
    rows = log(bought=bought, seconds=random.exponential(30, N))
    dataset = made(tmp_path, parquet(tmp_path, rows), labels={"buy": "bought", "long": "seconds>=30"})
    np.testing.assert_array_equal(dataset.label("buy"), np.where(np.isnan(bought), NOT_PART, bought))
    np.testing.assert_array_equal(dataset.label("long"), rows["seconds"] >= 30)
    assert len(dataset.split_rows("train", "buy")) == (~np.isnan(bought[:480])).sum()
    assert dataset.meta["labels"]["long"].startswith("seconds>=30")
    config = small_config(dataset, model__content="none", data__features=(), data__batch_size=64, data__label="buy")
    config.optim.multipliers, config.train.epochs, config.model.cic.id_fields = (), 1.0, ("item",)
    assert train.train(config, tmp_path / "run")["step"] > 0


def test_drawn_negatives_have_no_further_labels_and_their_clicks_weights(tmp_path):
    rows = log(label=np.ones(N, int), bought=np.arange(N) % 2, w=np.linspace(1, 2, N))
    dataset = made(
        tmp_path, parquet(tmp_path, rows), labels={"buy": "bought"}, columns={"weight": "w"}, negatives=2
    )  # fmt: skip
    drawn = np.asarray(dataset.interactions["label"]) == 0
    assert (np.asarray(dataset.label("buy"))[drawn] == NOT_PART).all() and drawn.sum() > N
    assert (np.asarray(dataset.label("buy"))[~drawn] != NOT_PART).all()
    time, weight = dataset.interactions["time"], dataset.interactions["weight"]
    np.testing.assert_allclose(weight, np.linspace(1, 2, N).astype(np.float32)[time - 1_600_000_000])


SIZE, WEIGHT, BUY = {"context_numbers": ("size",)}, {"columns": {"weight": "w"}}, {"labels": {"buy": "b"}}
ONES, NOTHING = np.ones(N), np.full(N, np.nan)
BAD = {
    "a text": (log(size=["12"] * 7 + ["big"] + ["3"] * (N - 8)), SIZE, "row 7", "'big'"),
    "an infinite number": (log(size=np.r_[np.inf, ONES[1:]]), SIZE, "row 0", "infinite"),
    "no number": (log(size=NOTHING), SIZE, "no number in any row", "size"),
    "none in training": (log(size=np.r_[NOTHING[:480], ONES[480:]]), SIZE, "no training row", "size"),
    "a negative weight": (log(w=np.r_[1.0, -1.0, ONES[2:]]), WEIGHT, "row 1", "-1"),
    "a weight that is none": (log(w=np.r_[ONES[1:], np.nan]), WEIGHT, "w", "599"),
    "weights of nothing": (log(w=np.zeros(N)), WEIGHT, "every weight", "w"),
    "a weight of texts": (log(w=["a"] * N), WEIGHT, "must be numbers", "w"),
    "a label never observed": (log(b=NOTHING), BUY, "never observed", "buy"),
    "a label of one class": (log(b=ONES), BUY, "both classes", "buy"),
    "a label that is neither": (log(b=np.r_[2.0, ONES[1:]]), BUY, "row 0", "2"),
    "the first label's name": (log(b=np.arange(N) % 2), {"labels": {"click": "b"}}, "--labels click", "first"),
    "a label that is no name": (log(b=np.arange(N) % 2), {"labels": {"a/b": "b"}}, "a/b", "letters"),
    "ranges and bins": (log(size=np.arange(N)), {**SIZE, "number_bins": 4, "numbers_like": "x"}, "--number-bins 4", "leave"),
    "twice a field": (log(size=np.arange(N)), {**SIZE, "context_fields": ("size",)}, "size", "once"),
    "few bins": (log(size=np.arange(N)), {**SIZE, "number_bins": 1}, "--number-bins 1", "2 to 1000"),
    "no such dataset": (log(size=np.arange(N)), {**SIZE, "numbers_like": "nowhere"}, "nowhere", "no dataset"),
    "events from elsewhere": (
        log(size=np.arange(N), past=[["1"]] * N), {"event_numbers": ("size",), "columns": {"history": "past"}},
        "--event-numbers", "leave",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_one_line(tmp_path, case):
    rows, options, *said = BAD[case]
    found = refused(tmp_path, parquet(tmp_path, rows), **options)
    assert all(one in found for one in said), found
