"""Several histories and long ones: the events that an example reads against a plain search, and runs from end to end."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.core.segments import Segment
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.buckets import Buckets
from em3_jax.data.readers.table import table
from em3_jax.data.segments import Sought, segments
from em3_jax.predict.command import predict
from em3_jax.protocols.importance import importance
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
ROWS = 2400


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Views and buys of items of five categories; a click where the user has bought of the category before."""
    folder, random = tmp_path_factory.mktemp("segments"), np.random.default_rng(0)
    user, item = random.integers(0, 12, ROWS), random.integers(0, 60, ROWS)
    bought, label = {}, []
    action = np.where(random.random(ROWS) < 0.2, "buy", "view")
    for k in range(ROWS):
        likes = item[k] % 5 in bought.get(user[k], ())
        label.append(int(random.random() < (0.8 if likes else 0.2)))
        if action[k] == "buy":
            bought.setdefault(user[k], []).append(item[k] % 5)
            bought[user[k]] = bought[user[k]][-2:]
    log = {"user": user, "item": item, "time": np.arange(ROWS) // 2, "label": label, "action": action}
    pq.write_table(pa.table(log), folder / "log.parquet")
    items = {"item": np.arange(60), "category": [f"c{k % 5}" for k in range(60)], "tags": ["a|b"] * 60}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return table(
        folder / "data", interactions=folder / "log.parquet", items=folder / "items.parquet", events="all",
        item_fields=("category", "tags:multi"), event_fields=("action",), split="0.7,0.15,0.15",
    )  # fmt: skip


def config_of(dataset, **changes):
    given = {"model__content": "none", "data__features": (), "model__cic__id_fields": ("item",)} | changes
    config = small_config(dataset, eval__batch_size=128, data__batch_size=64, **given)
    config.train.epochs = 1.0
    return config


def plainly(dataset, row: int, wanted, length: int, within: int) -> list[int]:
    """The last events of a row's history that are wanted."""
    start, end = (int(dataset.interactions[f"history_{name}"][row]) for name in ("start", "end"))
    places = range(max(start, end - within) if within else start, end)
    return [place for place in places if wanted(place)][-length:]


@pytest.mark.parametrize("within", [0, 30])
def test_events_are_those_of_a_plain_search(shop, within):
    random = np.random.default_rng(1)
    rows = random.integers(0, ROWS, 200)
    columns = shop.interactions
    given = columns["item"][rows], columns["history_start"][rows], columns["history_end"][rows]
    category = shop.item_field_ids[:, 1]
    buy = FIRST_KNOWN + shop.meta["vocabularies"]["event"]["action"].index("buy")
    alike = Segment("similar", 7, item_field="category", within=within)
    bought = Segment("of_buy", 4, event_field="action", value=buy, within=within)
    alike, bought = (Sought(shop, *one.seeks)(one, *given) for one in (alike, bought))
    for k, row in enumerate(rows):
        own = category[columns["item"][row]]
        expected = plainly(shop, row, lambda p, own=own: category[shop.events["item"][p]] == own, 7, within)
        assert alike.place[k][alike.mask[k]].tolist() == expected
        expected = plainly(shop, row, lambda p: shop.events["field_action"][p] == buy, 4, within)
        assert bought.place[k][bought.mask[k]].tolist() == expected
    assert not alike.mask[:, 0].all() and (alike.mask[:, :-1] <= alike.mask[:, 1:]).all(), "right-aligned"


def test_events_are_sorted_once_for_all_that_is_sought_by_a_field(shop):
    parts = segments(shop, 5, "action", {"buy": 3, "view": 2}, "category", 4, 0)
    indexes = parts.indexes(shop)
    assert set(indexes) == {("event", "action"), ("item", "category")}
    later = dataclasses.replace(shop, counts={})  # as a window of a stream has it
    assert parts.indexes(later) is indexes
    assert parts.indexes(dataclasses.replace(shop, events=dict(shop.events))) is not indexes


def test_a_batch_has_the_segments_side_by_side(shop):
    parts = segments(shop, 5, "action", {"buy": 3, "view": 2}, "category", 4, 0)
    assert [(one.name, one.length) for one in parts.parts] == [
        ("of_buy", 3),
        ("of_view", 2),
        ("similar", 4),
        ("last", 5),
    ]
    options = {"history_length": 5, "unknown_alpha": 0.0, "unknown_floor": {}}
    one, several = BatchBuilder(shop, **options), BatchBuilder(shop, **options, segments=parts)
    rows = np.arange(1000, 1064)
    last, batch = one(rows, buckets=Buckets(64, 128)), several(rows, buckets=Buckets(64, 128))
    assert several.history_length == 14 and batch["history_position"].shape == (64, 14)
    np.testing.assert_array_equal(batch["history_mask"][:, 9:], last["history_mask"])
    of = lambda made, part: made["item_id"][made["history_position"]][:, part]  # noqa: E731
    np.testing.assert_array_equal(of(batch, slice(9, 14)), of(last, slice(0, 5)))
    category = shop.item_field_ids[:, 1]
    alike, candidate = of(batch, slice(5, 9)), batch["item_id"][batch["item_position"]]
    kept = batch["history_mask"][:, 5:9]
    assert kept.any() and (category[alike] == category[candidate][:, None])[kept].all()


def test_a_run_of_several_histories_learns_what_one_cannot_and_predicts_as_it_evaluates(shop, tmp_path):
    more = {"data__histories_by": "action", "data__histories": {"buy": 2}, "data__similar_by": "category",
            "data__similar_length": 6, "data__history_length": 2}  # fmt: skip
    config = config_of(shop, **more)
    train.train(config, tmp_path / "run")
    report = evaluation.evaluate(tmp_path / "run", "test")
    assert report["slices"]["all"]["n"] == len(shop.split_rows("test"))
    names = experiment.build(config).program.shapes.params["model"]["backbone"]
    assert {"attention_of_buy", "attention_similar", "attention_last"} <= set(names) and "attention" not in names
    rows = np.asarray(shop.split_rows("test"))
    ids = {kind: np.array(getattr(shop, f"{kind}_table").column("id").to_pylist()) for kind in ("user", "item")}
    columns = {kind: ids[kind][shop.interactions[kind][rows]] for kind in ids} | {
        "time": shop.interactions["time"][rows]
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    evaluation.evaluate(tmp_path / "run", "test")
    predict(tmp_path / "run", tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet").column("logit").to_numpy()
    np.testing.assert_array_equal(found, np.load(tmp_path / "run" / "eval_test_logits.npy"))
    told = importance(tmp_path / "run", repeats=2)
    assert told["base"]["auc"] == pytest.approx(report["slices"]["all"]["auc"], abs=1e-6)
    lost = {one["told"]: one["auc"]["drop"] for one in told["inputs"]}
    assert lost["event action"] > 0.01, "it says which events are of a segment"


@pytest.mark.parametrize("backbone", ["deepfm", "dcnv2"])
def test_backbones_that_take_means_have_one_a_segment(shop, backbone):
    of_one, of_two = (
        experiment.build(config_of(shop, model__backbone=backbone, **more)).program.shapes.params
        for more in ({}, {"data__similar_by": "category"})
    )
    wide, wider = (made["model"]["backbone"]["dnn"]["Dense_0"]["kernel"].shape[0] for made in (of_one, of_two))
    assert wider - wide == 16, "the width of a table row"


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__histories": {"buy": 2}}, "histories_by=none"),
        ({"data__histories_by": "action"}, "says of which values"),
        ({"data__histories_by": "action", "data__histories": {"bye": 2}}, "did you mean 'buy'"),
        ({"data__histories_by": "act", "data__histories": {"buy": 2}}, "names no event field"),
        ({"data__similar_by": "color"}, "names no item field"),
        ({"data__similar_by": "tags"}, "several values an item"),
        ({"data__similar_by": "category", "data__similar_length": 9, "data__similar_within": 4}, "is more than"),
    ],
)
def test_segments_that_cannot_be(shop, changes, words):
    assert words in user_error(experiment.build, config_of(shop, **changes))


def test_the_attention_on_ids_may_read_the_contents_cosines(planted):
    """It trains their weight, over all segments, and one network without content refuses it."""
    config = small_config(
        planted,
        model__similar_attention=True,
        data__similar_by="category",
        data__similar_length=4,
        data__history_length=4,
    )
    parts = experiment.build(config)
    state, program = parts.program.init(), parts.program
    batch = program.place(parts.work.source[0])
    names = state.params["model"]["backbone"]
    assert names["attention_similar"]["similarity_weight"] == names["attention_last"]["similarity_weight"] == 1.0
    before = np.asarray(names["attention_last"]["similarity_weight"])
    after, _ = program.train_step(state, parts.work.constants, batch)
    assert after.params["model"]["backbone"]["attention_last"]["similarity_weight"] != before
    for changes in ({"model__content": "none"}, {"model__backbone": "deepfm"}):
        said = user_error(experiment.build, small_config(planted, model__similar_attention=True, **changes))
        assert said.startswith("config.model.similar_attention")
