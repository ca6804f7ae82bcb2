"""What a run reads of histories beyond the last items, served: the logits of `em3 eval`."""

import importlib.util

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs import lemur
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.data.features import write_features
from em3_jax.data.readers.table import table
from em3_jax.export import command as export
from em3_jax.predict import replay
from em3_jax.predict.command import predict
from em3_jax.predict.recommend import recommend
from em3_jax.protocols.missing import missing
from em3_jax.serving import store
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, score
from em3_jax.serving.service import Model
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
PLAIN = export.Settings(batch_size=64, platforms=("cpu",))
ROWS, ITEMS = 1200, 50


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Views and buys over some weeks, in seconds."""
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(3)
    time = 1_600_000_000 + np.cumsum((2 ** random.uniform(0, 14, ROWS)).astype(np.int64))
    log = {"user": random.integers(0, 8, ROWS), "item": random.integers(0, ITEMS, ROWS), "time": time}
    log |= {"dear": random.integers(0, 2, ROWS)}
    log |= {"label": random.integers(0, 2, ROWS), "action": random.choice(["buy", "view"], ROWS, p=[0.2, 0.8])}
    pq.write_table(pa.table(log), folder / "log.parquet")
    items = {"item": np.arange(ITEMS), "category": [f"c{k % 5}" for k in range(ITEMS)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return table(
        folder / "data", interactions=folder / "log.parquet", items=folder / "items.parquet", events="all",
        item_fields=("category",), event_fields=("action",), labels={"dear": "dear"}, split="0.7,0.15,0.15",
    )  # fmt: skip


def trained(dataset, folder, **changes):
    """The run's folder, evaluated."""
    given = {"model__content": "none", "data__features": (), "model__cic__id_fields": ("item",)} | changes
    config = small_config(dataset, eval__batch_size=64, data__batch_size=64, **given)
    config.train.epochs, config.tables.init_scale = 2.0, 0.5  # so that each value moves the score
    train.train(config, folder)
    evaluation.evaluate(folder, "test")
    return folder


def requests(dataset, rows) -> list[dict]:
    """What a service is asked for each row."""
    columns, events = dataset.interactions, dataset.events
    ids = {kind: np.array(getattr(dataset, f"{kind}_table").column("id")) for kind in ("user", "item")}
    words = [None, None, *dataset.meta["vocabularies"]["event"]["action"]]
    result = []
    for row in rows:
        span = slice(columns["history_start"][row], columns["history_end"][row])
        result.append({
            "user": ids["user"][columns["user"][row]], "history": ids["item"][events["item"][span]],
            "candidates": [ids["item"][columns["item"][row]]],
            "history_fields": {"action": [words[one] for one in events["field_action"][span]]},
            "time": columns["time"][row], "history_times": events["time"][span],
        })  # fmt: skip
    return result


def whole_pasts(dataset, rows) -> list[dict]:
    """What a service is asked for the users of these rows, with all that they have done."""
    events, asked = dataset.events, requests(dataset, rows)
    words = [None, None, *dataset.meta["vocabularies"]["event"]["action"]]
    ids = np.array(dataset.item_table.column("id"))
    for one, row in zip(asked, rows, strict=True):
        start = dataset.interactions["history_start"][row]
        own = dataset.interactions["user"] == dataset.interactions["user"][row]
        span = slice(start, start + int(own.sum()))  # each row of the log is an event
        one |= {"history": ids[events["item"][span]], "history_times": events["time"][span]}
        one["history_fields"] = {"action": [words[k] for k in events["field_action"][span]]}
    return asked


def is_replayed(run, root, asked, path, drill) -> None:
    """Recorded requests have the inputs and logits of the training code, and a feature that is broken is named."""
    model, recorder = Model(store.open_current(root), ()), Recorder(path)
    for one in asked:
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in one.items()}
        seen: list = []
        found = ScoreRequest(**plain | {"time": int(one["time"]), "user": int(one["user"])})
        recorder(model, found, score(model, found, seen).logit, seen)
    recorder.close()
    found = replay.replay(run, root, path)
    assert found.requests == len(asked) and found.candidates == sum(len(one["candidates"]) for one in asked)
    assert found.inputs == {} and found.logits == 0 and found.largest < 1e-6
    assert list(replay.replay(run, root, path, drill=drill).inputs) == [drill]


def as_table(dataset, rows) -> pa.Table:
    columns, result = dataset.interactions, {}
    for kind in ("user", "item"):
        ids = np.array(getattr(dataset, f"{kind}_table").column("id"))
        result[kind] = ids[columns[kind][rows]]
    return pa.table(result | {"time": columns["time"][rows]})


@pytest.fixture(scope="module")
def several(shop, tmp_path_factory):
    """A run that reads histories of its own of buys, of the candidate's category, and the last events, with all there is."""
    folder = tmp_path_factory.mktemp("several") / "run"
    return trained(
        shop, folder, data__event_features=("recency", "position"), data__history_length=3, data__histories_by="action",
        data__histories={"buy": 4}, data__similar_by="category", data__similar_length=5, data__similar_within=60,
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is None, reason="jax2onnx is not installed")
def test_an_onnx_file_reads_the_slots_of_several_histories(several, tmp_path):
    """`write_onnx` compares its logits with the run's, for 64 candidates, or any number of them and of events."""
    export.export(several, tmp_path / "any", PLAIN._replace(with_onnx=True, any_candidates=True))
    facts = store.open_current(tmp_path / "any").manifest["serving"]["onnx"]
    assert facts["largest_difference"] < 1e-5 and facts["inputs"]["history_slot"][0] == ["candidates", 12]
    assert facts["inputs"]["history_row"][0][0] == "events"
    export.export(several, tmp_path / "fixed", PLAIN._replace(with_onnx=True))
    manifest = store.open_current(tmp_path / "fixed").manifest
    assert manifest["serving"]["onnx"]["largest_difference"] < 1e-5
    assert (
        manifest["serving"]["onnx"]["candidates"] == 64 == manifest["serving"]["onnx"]["inputs"]["history_slot"][0][0]
    )


def test_a_service_chooses_the_events_of_each_candidate_as_training_does(shop, several, tmp_path, monkeypatch):
    export.export(several, tmp_path / "store", PLAIN)
    model = Model(store.open_current(tmp_path / "store"))
    expected = np.load(several / "eval_test_logits.npy")
    asked = requests(shop, shop.split_rows("test"))
    found = np.array([model.score(**one).logit[0] for one in asked])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # Of many candidates each has its own events; what they hold together may ask for several calls.
    one = asked[-1] | {"candidates": [*range(ITEMS), "new"] * 3}
    together = model.score(**one)
    alone = [model.score(**one | {"candidates": [item]}).logit[0] for item in one["candidates"][: ITEMS + 1]]
    np.testing.assert_allclose(together.logit, alone * 3, rtol=0, atol=1e-5)
    choice = model._choice
    held = len(choice._choose(np.arange(40) % ITEMS, {}, np.arange(ITEMS))[0])
    assert held == 12 == choice.slots and 12 < together.history_used <= len(one["history"])
    monkeypatch.setattr(type(choice), "length", lambda self, size: min(14, 12 + 2 * size))
    item, fields = np.arange(40) % ITEMS, {"action": np.zeros(40)}
    pieces = [*choice(item, fields, np.arange(ITEMS))]
    assert len(pieces) > 1 and all(len(piece.event) <= 14 or len(piece.slot) == 1 for piece in pieces)
    every = np.concatenate([np.where(piece.slot < 0, -1, piece.event[piece.slot]) for piece in pieces])
    np.testing.assert_array_equal(every, choice._choose(item, fields, np.arange(ITEMS)))
    monkeypatch.undo()
    many = [
        one | {"candidates": [*map(int, one["candidates"]), *range(ITEMS), 4711] * times}
        for one, times in ((asked[-1], 22), (asked[3], 1))
    ]
    is_replayed(several, tmp_path / "store", [*many, *asked[:40:5]], tmp_path / "requests.jsonl", "event.action")


def test_lemur_reads_several_histories_learns_several_labels_and_is_served(shop, tmp_path):
    config = lemur.get_config()
    config.data.root, config.data.features = str(shop.root), ("text",)
    vectors = np.random.default_rng(0).standard_normal((ITEMS, 2, 8)).astype(np.float32)
    write_features(shop.root, "text", vectors, np.ones((ITEMS, 2), bool), {"encoder": "drawn"}, shop.meta["item_hash"])
    config.data.history_length, config.data.batch_size, config.eval.batch_size = 6, 64, 64
    config.data.similar_by, config.data.similar_length = "category", 4
    config.data.histories_by, config.data.histories = "action", {"buy": 3}
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    config.model.short_history, config.model.backbone_settings.hidden = 6, (8,)
    config.model.heads.labels, config.model.heads.hidden, config.model.heads.kind = ("dear",), (8,), "mmoe"
    config.tables.init_scale, config.train.epochs, config.train.eval_every = 0.5, 2.0, 100
    train.train(config, tmp_path / "run")
    evaluation.evaluate(tmp_path / "run", "test")
    export.export(tmp_path / "run", tmp_path / "store", PLAIN)
    model = Model(store.open_current(tmp_path / "store"))
    logits, dear = (np.load(tmp_path / "run" / f"eval_test_logits{name}.npy")[:12] for name in ("", "_dear"))
    answers = [model.score(**one) for one in requests(shop, shop.split_rows("test")[:12])]
    np.testing.assert_allclose(np.concatenate([one.logit for one in answers]), logits, atol=1e-5)
    found = np.concatenate([one.further["dear"] for one in answers])
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-dear.astype(np.float64))), atol=1e-5)
    assert logits.std() > 1e-3 and dear.std() > 1e-3
    asked = [one | {"candidates": [*range(0, ITEMS, 3), 4711]} for one in requests(shop, shop.split_rows("test")[:4])]
    is_replayed(tmp_path / "run", tmp_path / "store", asked, tmp_path / "requests.jsonl", "history.content")
    rows = np.asarray(shop.split_rows("test"))
    pq.write_table(as_table(shop, rows), tmp_path / "rows.parquet")
    predict(tmp_path / "run", tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet")
    np.testing.assert_array_equal(found.column("logit").to_numpy(), np.load(tmp_path / "run" / "eval_test_logits.npy"))
    recommend(tmp_path / "run", tmp_path / "top.parquet", count=3, keep_seen=True)
    best = pq.read_table(tmp_path / "top.parquet").column("score").to_numpy().reshape(-1, 3)
    last = [np.flatnonzero(shop.interactions["user"] == k)[-1] for k in range(shop.num_users)]
    for one, mine in zip(whole_pasts(shop, last), best, strict=True):
        theirs = model.score(**one | {"candidates": [*range(ITEMS)]}).probability
        np.testing.assert_allclose(np.sort(theirs)[::-1][:3], mine, atol=1e-5)
    pq.write_table(pa.table({"user": [1], "item": [4711], "time": [1_700_000_000]}), tmp_path / "new.parquet")
    said = user_error(predict, tmp_path / "run", tmp_path / "new.parquet", tmp_path / "none.parquet")
    assert "a run of task lemur scores items of its dataset alone" in said and not (tmp_path / "none.parquet").exists()


def test_events_sought_by_content_are_served_predicted_and_missed(shop, tmp_path):
    """SIM soft, SimTier and SA-TA together, by a service, for the rows of a file, and where content is taken away."""
    random, mask = np.random.default_rng(1), np.ones((ITEMS, 2), bool)
    mask[4] = False
    tokens = random.standard_normal((ITEMS, 2, 8)).astype(np.float32)
    write_features(shop.root, "look", tokens, mask, {"encoder": "drawn"}, shop.meta["item_hash"])
    run = trained(
        shop, tmp_path / "run", model__content="end_to_end", data__features=("look",), data__similar_content=("look",),
        data__similar_length=6, data__similar_within=80, data__history_length=4, model__similar_attention=True,
        model__content_parts=("item", "simtier"),
    )  # fmt: skip
    expected = np.load(run / "eval_test_logits.npy")
    export.export(run, tmp_path / "store", PLAIN)
    model = Model(store.open_current(tmp_path / "store"))
    found = np.array([model.score(**one).logit[0] for one in requests(shop, shop.split_rows("test"))])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    asked = [one | {"candidates": [*range(0, ITEMS, 3), 4711]} for one in requests(shop, shop.split_rows("test")[:4])]
    is_replayed(run, tmp_path / "store", asked, tmp_path / "requests.jsonl", "history item.category")
    pq.write_table(as_table(shop, np.asarray(shop.split_rows("test"))), tmp_path / "rows.parquet")
    predict(run, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    np.testing.assert_array_equal(pq.read_table(tmp_path / "scores.parquet").column("logit").to_numpy(), expected)
    curve = missing([run], ("look",), tmp_path / "missing", rates=(0.5,))["curves"]["as trained"]
    assert curve[0]["auc"] != curve[1]["auc"]


@pytest.fixture(scope="module")
def timed(shop, tmp_path_factory):
    """A run that reads how long ago events were, and which from the newest."""
    return trained(shop, tmp_path_factory.mktemp("timed") / "run", data__event_features=("recency", "position"))


def test_a_service_knows_how_long_ago_events_were(shop, timed, tmp_path):
    export.export(timed, tmp_path / "store", PLAIN)
    model = Model(store.open_current(tmp_path / "store"))
    asked = requests(shop, shop.split_rows("test"))
    expected = np.load(timed / "eval_test_logits.npy")
    found = np.array([model.score(**one).logit[0] for one in asked])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    later = np.array([model.score(**one | {"time": one["time"] + 10**6}).logit[0] for one in asked])
    assert np.abs(later - found).max() > 1e-3, "time moves the score"
    one = asked[-1]
    for changes in ({"time": None}, {"history_times": None}, {"history_times": one["history_times"][1:]}):
        assert "whole numbers of seconds" in user_error(lambda changes=changes: model.score(**one | changes))
    assert "give whole numbers" in user_error(lambda: model.score(**one | {"time": "noon"}))
    assert "no such field" in user_error(
        lambda: model.score(**one | {"history_fields": {"recency": [1] * len(one["history"])}})
    )


def test_rows_of_a_file_need_their_times(shop, timed, tmp_path):
    rows = as_table(shop, np.asarray(shop.split_rows("test")))
    pq.write_table(rows, tmp_path / "rows.parquet")
    predict(timed, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    found = pq.read_table(tmp_path / "scores.parquet").column("logit").to_numpy()
    np.testing.assert_array_equal(found, np.load(timed / "eval_test_logits.npy"))
    pq.write_table(rows.drop_columns(["time"]), tmp_path / "untimed.parquet")
    said = user_error(predict, timed, tmp_path / "untimed.parquet", tmp_path / "no.parquet")
    assert "--columns time=" in said
    recommend(timed, tmp_path / "top.parquet", count=3, keep_seen=True)
    assert pq.read_table(tmp_path / "top.parquet").num_rows == 3 * shop.num_users
