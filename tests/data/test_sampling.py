"""Log-Q corrections: how likely items are drawn, losses that take it off, and scores that are of the whole catalogue."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import losses, metrics, train
from em3_jax.data import sampling
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.readers.table import table
from em3_jax.evaluation import calibration
from em3_jax.tasks.heads import FurtherLabels
from em3_jax.training import experiment
from tests.conftest import user_error
from tests.small_runs import small_config

pytestmark = pytest.mark.quickly_compiled
CLICKS, USERS, ITEMS = 6000, 4000, 40


def test_how_likely_items_are_drawn(tiny):
    dataset, rows, size, length = tiny.dataset, np.asarray(tiny.dataset.split_rows("train")), 8, 3
    columns = dataset.interactions
    kept, expected, present = (
        sampling.log_kept(dataset, rows, "click"),
        sampling.log_expected(dataset, rows, size),
        sampling.log_present(dataset, rows, size, length),
    )
    named = np.zeros(dataset.num_items)
    for row in rows:
        end = columns["history_end"][row]
        events = dataset.events["item"][max(columns["history_start"][row], end - length) : end]
        np.add.at(named, [columns["item"][row], *events], 1)
    for item in (0, 7, 35):
        shown = columns["item"][rows] == item
        negatives = np.sum(columns["label"][rows[shown]] == 0)
        assert kept[item] == pytest.approx(np.log((negatives + 1) / np.sum(columns["label"][rows])), rel=1e-5)
        assert expected[item] == pytest.approx(np.log(max(shown.sum(), 1) / len(rows) * size), rel=1e-5)
        chance = 1 - np.exp(-max(named[item], 1) / len(rows) * size)
        assert present[item] == pytest.approx(np.log(chance), rel=1e-5)
    log_q = {"log_kept": kept, "log_present": present}
    builder = BatchBuilder(dataset, history_length=length, unknown_alpha=0.0, unknown_floor={}, log_q=log_q)
    trained = builder(rows[:9], buckets=Buckets(64, 128), key=np.uint64(1))
    np.testing.assert_array_equal(trained["log_kept"], kept[columns["item"][rows[:9]]])
    np.testing.assert_array_equal(trained["log_present"], present[trained["item_id"]])
    assert not {*log_q} & {*builder(rows[:9], buckets=Buckets(64, 128))}, "of a score nothing is taken off"


@pytest.mark.parametrize("negatives", [0, 3])
def test_contrasts_take_log_q_off_all_logits(negatives):
    random, n = np.random.default_rng(0), 9
    content, ids = (random.standard_normal((n, 4)).astype(np.float32) for _ in range(2))
    mask, log_q, key = np.arange(n) != 4, random.normal(-2, 1, n).astype(np.float32), jax.random.key(1)
    given = {"temperature": 0.5, "negatives": negatives or None, "key": key}
    value, _ = losses.content_id_contrastive(content, ids, mask, log_q=jnp.asarray(log_q), **given)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (content, ids)]
    others = {i: [j for j in np.flatnonzero(mask) if j != i] for i in np.flatnonzero(mask)}
    if negatives:
        drawn, used = (np.asarray(x) for x in losses.in_batch_negatives(jnp.asarray(mask), negatives, key))
        others = {i: drawn[used[i]] for i in others}
    each = []
    for one, other in (unit, unit[::-1]):
        for i, of in others.items():
            terms = np.array([one[i] @ other[j] / 0.5 - log_q[j] for j in (i, *of)])
            each.append(np.log(np.exp(terms).sum()) - terms[0])
    assert float(value) == pytest.approx(np.mean(each), rel=1e-5)
    same, _ = losses.content_id_contrastive(content, ids, mask, log_q=jnp.full(n, -3.0), **given)
    plain, _ = losses.content_id_contrastive(content, ids, mask, **given)
    assert float(same) == pytest.approx(float(plain), rel=1e-5)
    query = losses.query_document_contrastive
    arguments = (content, ids, np.ones(n, bool), np.arange(n), None, mask)
    value, _ = query(*map(jnp.asarray, arguments[:4]), None, jnp.asarray(mask), scale=2.0, log_q=jnp.asarray(log_q))
    logits = 2 * unit[0] @ unit[1].T - log_q
    rows = [np.log(np.exp(logits[i][mask]).sum()) - logits[i, i] for i in np.flatnonzero(mask)]
    assert float(value) == pytest.approx(np.mean(rows), rel=1e-5)


def test_the_loss_of_a_click_and_a_conversion_is_of_the_rows_as_drawn():
    task, logit, less = (
        FurtherLabels(("buy",), {}, False, True),
        jnp.array([0.3, -1.0, 2.0]),
        jnp.array([-2.0, 0.5, 1.0]),
    )
    batch = {"label": jnp.array([1.0, 0.0, 1.0]), "weight": jnp.ones(3), "further": jnp.array([[1.0], [-1.0], [0.0]])}
    out = {"further": jnp.array([[0.5], [0.1], [-0.4]])}
    corrected = task.loss({}, jnp.float32(0), logit, out, batch | {"log_kept": less})[0]
    assert float(corrected) == float(task.loss({}, jnp.float32(0), logit - less, out, batch)[0])


@pytest.fixture(scope="module")
def popular(tmp_path_factory):
    """Clicks on items whose shares fall as 1 / rank, whoever clicks, against negatives by popularity."""
    folder, random = tmp_path_factory.mktemp("popular"), np.random.default_rng(0)
    share = 1 / np.arange(1, ITEMS + 1)
    item = random.choice(ITEMS, CLICKS, p=share / share.sum())
    log = pa.table({"user": random.integers(0, USERS, CLICKS), "item": item, "time": np.arange(CLICKS) + 1_600_000_000})
    pq.write_table(log, folder / "log.parquet")
    how = {"negatives": 3, "negatives_by": "popularity", "events": "none", "split": "0.6,0.2,0.2"}
    return table(folder / "data", interactions=folder / "log.parquet", **how)


def settings(dataset, **changes):
    given = {
        "model__content": "none", "data__features": (), "model__cic__id_fields": ("item",), "data__log_q": True,
        "data__history_length": 0, "model__backbone": "deepctr", "train__epochs": 4.0, "tables__learning_rate": 0.05,
        "eval__metric": "logloss", "data__unknown_floor": {"user": 1.0},
    }  # fmt: skip
    return small_config(dataset, **given | changes)


def test_scores_are_of_all_items_against_each_click(popular, tmp_path):
    """Against negatives by popularity all items look alike; corrected, probabilities are the items' shares of clicks."""
    item = np.asarray(popular.interactions["item"])[np.asarray(popular.split_rows("test"))]
    clicked = np.asarray(popular.label("click"))[np.asarray(popular.split_rows("train"))] == 1
    of_train = np.asarray(popular.interactions["item"])[np.asarray(popular.split_rows("train"))]
    share = np.bincount(of_train[clicked], minlength=popular.num_items) / clicked.sum()
    report, slope = {}, {}
    for name in (True, False):
        train.train(settings(popular, data__log_q=name), tmp_path / str(name))
        report[name] = evaluation.evaluate(tmp_path / str(name), "test")["slices"]["all"]
        scores = np.load(tmp_path / str(name) / "eval_test_logits.npy").astype(np.float64)
        mean = np.bincount(item, scores, popular.num_items) / np.maximum(
            np.bincount(item, minlength=popular.num_items), 1
        )
        shown = np.bincount(item, minlength=popular.num_items) > 20
        slope[name] = np.polyfit(np.log(share[shown]), mean[shown], 1)[0]
        if name:
            total = np.sum(1 / (1 + np.exp(-mean)))
    assert 0.85 < slope[True] < 1.15 and abs(slope[False]) < 0.3
    assert 0.7 < total < 1.3, "probabilities of a click on one of all items"
    assert report[True]["logloss"] == pytest.approx(report[False]["logloss"], abs=0.03)
    assert 0.8 < report[True]["calibration"] < 1.25
    folder = tmp_path / "True"
    again = evaluation.evaluate(folder, "test", calibrate="platt", beside=evaluation.Beside(bootstrap=100))
    kept = calibration.read(folder, again["step"]).first
    log_kept = np.load(folder / "eval_test_log_kept.npy")
    logits = np.load(folder / "eval_test_logits.npy").astype(np.float64)
    labels = np.asarray(popular.label("click"))[np.asarray(popular.split_rows("test"))]
    assert again["calibration"]["after"]["logloss"] == pytest.approx(
        metrics.logloss(labels, kept.of_rows(logits) - log_kept)
    )
    assert again["bootstrap"]["intervals"]["all"]["logloss"]["se"] == pytest.approx(report[True]["logloss_se"], rel=0.3)
    assert json.loads((folder / "calibration.json").read_text())["kept_negatives"] == 1
    said = user_error(evaluation.evaluate, folder, "test", None, None, "isotonic")
    assert "data.log_q" in said and "platt" in said


def test_it_is_of_negatives_that_were_drawn(popular, planted, tmp_path):
    """A log that has its own is refused, one of which nothing is known is warned of; contrasts are of any log."""
    assert popular.meta["negatives"] == "popularity" and planted.meta["negatives"] == "logged"
    said = user_error(train.train, settings(planted).to_dict(), tmp_path / "run")
    assert said.startswith(f"config.data.log_q: is of drawn negatives, and the negatives of {planted.root} were not")
    assert not (tmp_path / "run").exists()
    sampling.check_drawn(popular, "click")
    assert "the rows without 'buy'" in user_error(sampling.check_drawn, popular, "buy")
    (tmp_path / "log.csv").write_text(
        "user,item,time,label\n" + "".join(f"u{k % 7},i{k % 5},{k},{k % 2}\n" for k in range(60))
    )
    own = table(tmp_path / "data", interactions=tmp_path / "log.csv")
    with pytest.warns(UserWarning, match=r"data\.log_q: nothing in .*data says how its negatives came about"):
        experiment.build(settings(own).to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiment.build(settings(own, data__log_q=False, model__cic__log_q=True).to_dict())
