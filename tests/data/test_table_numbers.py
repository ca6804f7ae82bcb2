"""What columns of the table reader say besides: numbers as fields of ranges, weights of rows, further labels."""

import dataclasses
import importlib.util
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import lemur
from em3_jax import evaluate, train
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.ranges import MISSING, Ranges
from em3_jax.core.types import Shards
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.blocks import build
from em3_jax.data.buckets import Buckets
from em3_jax.data.features import write_features
from em3_jax.data.format import NOT_PART
from em3_jax.data.number_columns import with_numbers
from em3_jax.data.readers.table import table
from em3_jax.evaluation import groups
from em3_jax.export import command as export
from em3_jax.export import onnx_model, scorer
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from em3_jax.protocols import importance
from em3_jax.serving import programs
from em3_jax.serving.field_values import FieldValues
from em3_jax.serving.service import Service
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.data.own_tables import made, parquet, refused
from tests.test_train import small_config
from tests.training.test_sharding import check_equal, on_meshes

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


KINDS = {"price": "piecewise", "age": "log", "hour": "periodic", "seconds": "standardised"}


def run_config(dataset, **changes):
    config = small_config(dataset, model__content="none", data__features=(), data__batch_size=64, **changes)
    config.optim.multipliers, config.model.cic.id_fields, config.train.epochs = (), ("item",), 1.0
    return config


@pytest.mark.parametrize("kinds", [{}, KINDS], ids=["as ranges", "as values"])
def test_a_run_is_scored_and_served_by_the_numbers_themselves(tmp_path, kinds):
    dataset = shop(tmp_path)
    config = run_config(dataset)
    with config.unlocked():
        config.model.numbers = kinds
    train.train(config, tmp_path / "run")
    rows = pq.read_table(tmp_path / "clicks.parquet").slice(552, 8)  # one of which has no hour
    pq.write_table(rows, tmp_path / "rows.parquet")
    done = predict(tmp_path / "run", tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    assert not done.unknown
    export.export(tmp_path / "run", tmp_path / "store", export.Settings(platforms=("cpu",)))
    found, columns = pq.read_table(tmp_path / "scores.parquet"), dataset.interactions
    with Service(tmp_path / "store") as service:
        for k in range(8):
            start, end = columns["history_start"][552 + k], columns["history_end"][552 + k]
            items = dataset.item_table.column("id").to_numpy()[dataset.events["item"][start:end]]
            words = dataset.meta["vocabularies"]["event"]["seconds"]
            cut = Ranges.from_json(dataset.meta["numbers"]["event"]["seconds"])
            middle = [*(np.array(cut.edges) - 1e-6), cut.edges[-1] + 1]  # a number of each range
            seconds = [middle[one - FIRST_KNOWN] for one in dataset.events["field_seconds"][start:end]]
            if kinds:
                seconds = dataset.events["number_seconds"][start:end].tolist()
            row = rows.slice(k, 1).to_pylist()[0]
            scores = service.model.score(
                row["user"],
                items.tolist(),
                [row["item"]],
                context={"hour": row["hour"]},
                history_fields={"seconds": seconds},
            )
            assert scores.logit[0] == pytest.approx(found.column("logit")[k].as_py(), abs=1e-5) and not scores.unknown
    assert len(words) == 8
    if kinds:
        told_of_a_run_on_values(tmp_path, dataset)


def told_of_a_run_on_values(root, dataset):
    """What else `em3 predict`, `importance`, the service and a grown dataset say of a run that reads numbers as values."""
    rows = pa.table({"user": [1, 99], "item": [2, 98], "time": [1_700_000_000] * 2, "hour": ["noon", None]})
    pq.write_table(rows, root / "new.parquet")
    done = predict(root / "run", root / "new.parquet", root / "new_scores.parquet")
    assert done.unknown["values of hour that are no numbers, rows"] == 1 and done.unknown["new items, rows"] == 1
    assert np.isfinite(pq.read_table(root / "new_scores.parquet").column("logit").to_numpy()).all()
    found = importance.importance(root / "run", repeats=1)
    named = {(one["kind"], one["name"]) for one in found["inputs"]}
    assert {("item", "price"), ("user", "age"), ("context", "hour"), ("event", "seconds")} <= named
    with Service(root / "store") as service:
        scores = service.model.score(
            1, [2, 3], [4], context={"hour": "noon"}, history_fields={"seconds": [1e300, None]}
        )
        assert scores.unknown == {"context.hour": 1} and np.isfinite(scores.logit).all()
        assert "did you mean 'hour'" in user_error(lambda: service.model.score(1, [], [4], context={"houre": 1}))
    recommend(root / "run", root / "top.parquet", count=2, context={"hour": "13.5"})
    assert pq.read_table(root / "top.parquet").num_rows == 2 * USERS
    said = user_error(lambda: recommend(root / "run", root / "no.parquet", context={"hour": "noon"}))
    assert "--context hour=noon: is no number" in said


def test_lemur_reads_numbers_and_is_served_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "SIZES", (16,))
    dataset = shop(tmp_path)
    tokens = np.random.default_rng(1).standard_normal((ITEMS, 2, 8)).astype(np.float32)
    write_features(dataset.root, "poster", tokens, np.ones((ITEMS, 2), bool), {}, dataset.meta["item_hash"])
    config = lemur.get_config()
    config.data.root, config.data.features, config.model.cic.id_fields = (
        str(dataset.root),
        ("poster",),
        ("item", "price"),
    )
    config.data.batch_size, config.data.history_length, config.train.epochs = 64, 8, 1.0
    config.model.short_history, config.model.all_numbers, config.model.cic.weight = 3, "periodic", 0.1
    train.train(config, tmp_path / "run")
    evaluate.evaluate(tmp_path / "run", "test")
    logits = np.load(tmp_path / "run" / "eval_test_logits.npy")
    export.export(tmp_path / "run", tmp_path / "store", export.Settings(platforms=("cpu",)))
    hours, columns = pq.read_table(tmp_path / "clicks.parquet").column("hour").to_pylist(), dataset.interactions
    user_ids, item_ids = (table.column("id").to_numpy() for table in (dataset.user_table, dataset.item_table))
    with Service(tmp_path / "store") as service:
        for logit, row in list(zip(logits, dataset.split_rows("test"), strict=True))[::15]:
            events = slice(columns["history_start"][row], columns["history_end"][row])
            scores = service.model.score(
                user_ids[columns["user"][row]], item_ids[dataset.events["item"][events]], [item_ids[columns["item"][row]]],
                context={"hour": hours[row]}, history_fields={"seconds": dataset.events["number_seconds"][events].tolist()},
            )  # fmt: skip
            assert scores.logit[0] == pytest.approx(logit, abs=1e-5) and not scores.unknown


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="jax2onnx is not installed")
def test_the_onnx_file_takes_numbers(tmp_path):
    dataset = shop(tmp_path)
    parts = experiment.build(run_config(dataset, model__all_numbers="periodic"))
    view, state = parts.work.dataset, parts.program.init()
    request = scorer.request_shapes(view.fields, 8, {}, onnx_model.CANDIDATES, numbers=view.numbers)
    table_ = np.random.default_rng(0).standard_normal(state.tables["embedding"].shape).astype(np.float32)
    facts = onnx_model.write_onnx(tmp_path / "ranker.onnx", parts.work.task, state.params, table_, request)
    assert facts["largest_difference"] < 1e-5 and facts["inputs"]["event_number"] == [[8, 1], "float32"]


@pytest.mark.parametrize("backbone", ["deepctr", "dcnv2", "deepfm", "wide_deep"])
def test_every_backbone_reads_them(tmp_path, backbone):
    """Each group's numbers move the logits; DIN's are above."""
    parts = experiment.build(run_config(shop(tmp_path), model__all_numbers="log", model__backbone=backbone))
    state, batch = parts.program.init(), parts.work.source[4]
    scored = lambda batch: np.asarray(parts.program.predict(state, parts.program.place(batch)))  # noqa: E731
    of_history = ["history_number"] if backbone != "deepctr" else []  # which reads none
    for name in ("item_number", "user_number", "context_number", *of_history):
        assert np.abs(scored(batch | {name: batch[name] + 50}) - scored(batch)).max() > 1e-4, name


def test_several_devices_make_the_same_step(tmp_path):
    config = run_config(shop(tmp_path), model__all_numbers="piecewise", model__backbone_settings__dropout=0.0)
    check_equal(on_meshes(config.to_dict(), "label", [[1, 1], [4, 1]]))


def test_a_grown_dataset_goes_on_only_with_the_same_scale(tmp_path):
    dataset = shop(tmp_path / "a", split="0.5,0.2,0.3")
    config = run_config(dataset, model__all_numbers="standardised")
    train.train(config, tmp_path / "run")
    grown = {"split": "0.7,0.1,0.2", "overwrite": True}
    config.train.grow = True
    shop(tmp_path / "a", **grown)
    assert "--numbers-like" in user_error(lambda: train.train(config, tmp_path / "run"))
    shop(tmp_path / "b", split="0.5,0.2,0.3")
    shop(tmp_path / "a", **grown, numbers_like=str(tmp_path / "b" / "out"), number_bins=16)
    assert train.train(config, tmp_path / "run")["step"] > 5


def test_the_numbers_are_kept_beside_their_ranges(tmp_path):
    dataset = shop(tmp_path)
    raw = pq.read_table(tmp_path / "clicks.parquet")
    np.testing.assert_array_equal(dataset.interactions["number_hour"], raw.column("hour").to_numpy().astype(np.float32))
    train_rows = np.asarray(dataset.split_rows("train"))
    price = dataset.item_table.column("number_price").to_numpy()
    facts = dataset.meta["numbers"]["item"]["price"]
    assert facts["mean"] == pytest.approx(np.nanmean(price[dataset.interactions["item"][train_rows]]), rel=1e-6)
    assert np.isnan(price[0]) and facts["missing"]
    own = np.lexsort((dataset.interactions["time"], dataset.interactions["user"]))
    np.testing.assert_array_equal(
        dataset.events["number_seconds"], raw.column("seconds").to_numpy()[own].astype(np.float32)
    )


def test_a_batch_has_the_numbers_that_a_run_reads_as_values_and_no_others(tmp_path):
    dataset = shop(tmp_path)
    plain, options = dataset.fields, {"history_length": 4, "unknown_alpha": 0.0, "unknown_floor": {}}
    view = with_numbers(dataset, {"hour": "ranges"}, "log")
    assert [f.name for f in view.fields.context] == ["hour"] and view.fields.event == () and len(plain.event) == 1
    assert [field.name for field in view.fields.item] == ["item"]
    rows = np.arange(300, 340)
    for field in ("hour", "price"):  # as values they are no fields, and rows are grouped by their ranges all the same
        found = groups.of_rows(with_numbers(dataset, {}, "log"), rows, field)
        np.testing.assert_array_equal(found, groups.of_rows(dataset, rows, field))
    batch = BatchBuilder(view, **options)(rows, buckets=Buckets(items=64, rows=256))
    assert "context_number" not in batch and batch["history_row"].shape == (40, 4, 0)
    price = dataset.item_table.column("number_price").to_numpy()
    np.testing.assert_array_equal(batch["item_number"][:, 0], price[batch["item_id"]])
    end = dataset.interactions["history_end"][rows]
    np.testing.assert_array_equal(
        np.where(batch["history_mask"][:, -1], batch["history_number"][:, -1, 0], 0),
        np.where(batch["history_mask"][:, -1], dataset.events["number_seconds"][end - 1], 0),
    )
    shards = Shards(0, 2, 2)
    block = build(BatchBuilder(view, **options), shards, rows, buckets=Buckets(64, 256, own_items=32, own_rows=128))
    item = block["item_id"] < ITEMS
    np.testing.assert_array_equal(block["item_number"][item, 0], price[block["item_id"][item]])
    assert block["item_number"].shape == (128, 1) and np.isnan(block["item_number"][~item]).all()
    said = user_error(lambda: with_numbers(dataset, {"prise": "log"}, "ranges"))
    assert "config.model.numbers.prise" in said and "did you mean 'price'" in said
    old = dataclasses.replace(
        dataset, meta=dataset.meta | {"numbers": {"item": {"price": {"edges": [], "missing": False}}}}
    )
    assert "prepare it again" in user_error(lambda: with_numbers(old, {}, "log"))
    without = dataclasses.replace(dataset, meta={**dataset.meta, "numbers": {}})
    assert "has no numbers" in user_error(lambda: with_numbers(without, {}, "log"))


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
