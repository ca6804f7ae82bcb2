"""em3 shop: a planted shop's log is what its docstring says, and goes through `prepare table`."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from em3_jax.core.paths import local
from em3_jax.data.format import NOT_PART
from em3_jax.data.prepare import read_mapping
from em3_jax.data.readers.table import table
from em3_jax.data.shop import SESSION, shop
from tests.conftest import user_error

SMALL = {"interactions": 20_000, "users": 100, "items": 200}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "whole"
    shop(folder, **SMALL)
    return folder


def test_labels_follow_their_probabilities(whole):
    log, truth = pq.read_table(whole / "interactions.parquet"), pq.read_table(whole / "truth.parquet")
    click, bought = np.asarray(log["click"]), log["buy"]
    p_click, p_buy = np.asarray(truth["p_click"]), np.asarray(truth["p_buy"])
    spread = np.sqrt((p_click * (1 - p_click)).sum())
    assert abs(click.sum() - p_click.sum()) < 4 * spread
    of_clicks = click == 1
    buys = np.asarray(bought.filter(of_clicks))
    assert abs(buys.sum() - p_buy[of_clicks].sum()) < 4 * np.sqrt((p_buy * (1 - p_buy))[of_clicks].sum())
    for name in ("buy", "seconds", "action"):
        np.testing.assert_array_equal(np.asarray(log[name].is_valid()), of_clicks, err_msg=f"{name} is of clicks")
    users_of_sessions = log.group_by("session").aggregate([("user", "count_distinct"), ("user", "count")])
    assert pc.max(users_of_sessions["user_count_distinct"]).as_py() == 1
    assert pc.max(users_of_sessions["user_count"]).as_py() == SESSION
    best = json.loads((whole / "truth.json").read_text())["best_auc"]
    assert 0.8 < best["click"] < 0.95 and 0.7 < best["buy"] < 0.95


def test_the_log_is_prepared_by_its_mapping(whole, tmp_path):
    dataset = table(tmp_path / "data", **read_mapping(local(whole / "shop.toml"), table))
    assert [field.name for field in dataset.fields.item] == ["item", "category", "price", "rating"]
    assert [field.name for field in dataset.fields.event] == ["action", "seconds"]
    assert dataset.meta["summary"]["items_without"].keys() == {"features image", "features text"}
    buy, click = (np.asarray(dataset.label(name)) for name in ("buy", "click"))
    assert ((buy == NOT_PART) == (click == 0)).all()
    counts = np.bincount(np.asarray(dataset.interactions["split"]))
    np.testing.assert_array_equal(counts, [16_000, 2_000, 2_000])


def test_a_share_of_the_negatives_stands_for_all_but_in_the_last_tenth(whole, tmp_path):
    shop(tmp_path / "kept", **SMALL, keep_negatives=0.25)
    kept, log = (pq.read_table(folder / "interactions.parquet") for folder in (tmp_path / "kept", whole))
    assert kept.filter(pc.equal(kept["click"], 1)).equals(log.filter(pc.equal(log["click"], 1))), "all clicks"
    tenth = pc.greater_equal(log["time"], log["time"][18_000])
    assert kept.filter(pc.greater_equal(kept["time"], log["time"][18_000])).equals(log.filter(tenth))
    negatives = 18_000 - int(np.asarray(log["click"])[:18_000].sum())
    assert abs(np.asarray(kept["weight"]).sum() - len(log)) < 4 * np.sqrt(negatives * 0.25 * 0.75) / 0.25
    again = table(tmp_path / "data", **read_mapping(local(tmp_path / "kept" / "shop.toml"), table))
    assert np.bincount(np.asarray(again.interactions["split"]))[2] == 2_000, "test is the last tenth"


def test_what_cannot_be_is_refused(whole, tmp_path):
    assert "exists already" in user_error(shop, whole)
    assert "--keep-negatives 0" in user_error(partial(shop, keep_negatives=0.0), tmp_path / "x")
    assert "--users 1" in user_error(partial(shop, users=1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_may_have_quotes_in_its_name(tmp_path):
    folder = tmp_path / 'my "shop"'
    shop(folder, interactions=200, users=10, items=10)
    assert Path(read_mapping(folder / "shop.toml", table)["interactions"]) == folder / "interactions.parquet"
