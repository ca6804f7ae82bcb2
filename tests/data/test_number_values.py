"""Numbers that a run reads as values: batches, training, scores, services, devices, data that grow."""

import dataclasses
import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import lemur
from em3_jax import evaluate, train
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.core.ranges import Ranges
from em3_jax.core.types import Shards
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.blocks import build
from em3_jax.data.buckets import Buckets
from em3_jax.data.features import write_features
from em3_jax.data.number_columns import with_numbers
from em3_jax.evaluation import groups
from em3_jax.export import command as export
from em3_jax.export import onnx_model, scorer
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from em3_jax.protocols import importance
from em3_jax.serving import programs
from em3_jax.serving.service import Service
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.data.test_table_numbers import ITEMS, USERS, shop
from tests.small_runs import small_config
from tests.training.test_sharding import check_equal, on_meshes

pytestmark = pytest.mark.quickly_compiled
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
