"""em3 coldstart: what of a held-out item or user is known at k shots, and that nothing else is."""

import functools
import json
import sys

import numpy as np
import pytest

from em3_jax.config import parse
from em3_jax.data.codes import read_codes
from em3_jax.data.format import SPLITS, Dataset, open_dataset
from em3_jax.protocols import coldstart, runs, shots
from tests.conftest import user_error
from tests.protocols.conftest import ROWS, config_of, write_codes_of, write_shop

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(60)]

KS, MOST = (0, 2, 5), 5


@pytest.fixture(scope="module", params=["items", "users"])
def held(request, tmp_path_factory):
    """(of, the dataset, k -> that of k shots)."""
    of = request.param
    root = tmp_path_factory.mktemp(of)
    dataset = write_shop(root / "shop", f"{of}:0.6,0.15,0.25")
    write_codes_of(dataset, "image")
    return of, dataset, {k: shots.derive(dataset, of, k, MOST, root / f"{of}-{k}") for k in KS}


def rows_of(dataset: Dataset, split: str) -> list[tuple]:
    """What is known of each row of a split; the log's rows all differ in it but by rare chance."""
    names = ("user", "item", "time", "label", "context_slot")
    rows = np.asarray(dataset.split_rows(split))
    return list(zip(*(dataset.interactions[name][rows].tolist() for name in names), strict=True))


def history(dataset: Dataset, row: int) -> list[tuple[int, int]]:
    """(time, item) of a row's history."""
    start, end = (int(dataset.interactions[f"history_{name}"][row]) for name in ("start", "end"))
    return [(int(dataset.events["time"][k]), int(dataset.events["item"][k])) for k in range(start, end)]


def by_hand(dataset: Dataset, of: str, k: int) -> dict[str, list[tuple]]:
    """Split -> rows at k shots, by a loop over the rows of each item, or user."""
    column = shots.KINDS[of]
    place = ("user", "item").index(column)
    result = {"train": rows_of(dataset, "train"), "valid": [], "test": []}
    for split in SPLITS[1:]:
        rows = rows_of(dataset, split)
        for one in {row[place] for row in rows}:
            own = sorted((row for row in rows if row[place] == one), key=lambda row: row[2])
            if len(own) > MOST:
                result["train"] += own[:k]
                result[split] += own[MOST:]
    return result


def test_the_first_rows_train_and_those_after_the_most_are_tested(held):
    of, dataset, derived = held
    times = dataset.interactions["time"]
    assert len(np.unique(times)) < ROWS, "some rows have equal times, whose order a hash decides"
    for k, at_k in derived.items():
        expected = by_hand(dataset, of, k)
        for split in SPLITS:
            found = rows_of(at_k, split)
            assert len(found) == len(expected[split]), (k, split)
            alike = len(set(found) & set(expected[split])) / len(set(found))
            assert alike > 0.99, (k, split)  # of equal times either is the first
        assert read_codes(at_k, "sid").manifest == read_codes(dataset, "sid").manifest
        assert at_k.meta["held_out"] == shots.KINDS[of] and at_k.meta["shots"]["shots"] == k
        assert (
            at_k.meta["item_hash"] == dataset.meta["item_hash"] and at_k.meta["data_hash"] != dataset.meta["data_hash"]
        )


def test_tested_rows_are_the_same_for_all_k_and_no_row_is_in_two_splits(held):
    of, dataset, derived = held
    first = derived[0]
    for k, at_k in derived.items():
        for split in SPLITS[1:]:
            assert rows_of(at_k, split) == rows_of(first, split)
        every = [row for split in SPLITS for row in rows_of(at_k, split)]
        whole = [row for split in SPLITS for row in rows_of(dataset, split)]
        assert all(every.count(row) <= whole.count(row) for row in set(every))
        extra = len(rows_of(at_k, "train")) - len(rows_of(first, "train"))
        column = shots.KINDS[of]
        tested = {
            one
            for split in SPLITS[1:]
            for one in first.interactions[column][np.asarray(first.split_rows(split))].tolist()
        }
        assert extra == k * len(tested) and len(tested) > 5
        known = at_k.counts[column][sorted(tested)]
        assert (known == k).all()


def test_histories_show_nothing_that_is_not_known(held):
    """No history of a tested row has an event of a row that does not train."""
    of, _, derived = held
    for k, at_k in derived.items():
        columns = {name: np.asarray(column) for name, column in at_k.interactions.items()}
        training = {
            (u, t, i)
            for u, t, i, split in zip(
                *(columns[name].tolist() for name in ("user", "time", "item", "split")), strict=True
            )
            if split == 0
        }
        some = 0
        for row in np.flatnonzero(columns["split"] == 2):
            shown = history(at_k, int(row))
            some += len(shown)
            assert all((int(columns["user"][row]), t, i) in training for t, i in shown), (k, row)
        assert some or (of == "users" and k == 0)
        if of == "users":
            assert (some == 0) == (k == 0)


def test_a_log_without_times_is_ordered_by_a_hash(tmp_path):
    dataset = write_shop(tmp_path / "shop", "items:0.6,0.15,0.25", time_unit="none")
    at = {k: shots.derive(dataset, "items", k, MOST, tmp_path / f"{k}") for k in (0, MOST)}
    assert rows_of(at[0], "test") == rows_of(at[MOST], "test")
    found = shots.ranked(dataset, "items")
    first = np.flatnonzero((found.rank == 0) & (found.number > MOST))
    earliest = {one: np.flatnonzero(found.of_row == one)[0] for one in found.of_row[first].tolist()}
    assert np.mean([earliest[one] == row for one, row in zip(found.of_row[first].tolist(), first, strict=True)]) < 0.5


# The command.


@pytest.fixture(scope="module")
def cold(tmp_path_factory) -> Dataset:
    return write_shop(tmp_path_factory.mktemp("cold") / "shop", "items:0.6,0.15,0.25")


@pytest.fixture(scope="module")
def models(cold):
    ids = config_of(cold, epochs=1.0)
    ids.model.content, ids.optim.multipliers = "none", ()
    configs = {"ids": ids, "em3": config_of(cold, epochs=2.0)}
    return {name: functools.partial(runs.with_data, parse.parse(one.to_dict())) for name, one in configs.items()}


@pytest.fixture(scope="module")
def reported(cold, models, tmp_path_factory):
    """(folder, report) of two models at 0 and 3 shots."""
    out = tmp_path_factory.mktemp("out") / "out"
    return out, coldstart.coldstart(models, cold.root, out, ks=(0, 3))


def test_curves_are_of_the_runs_and_of_the_same_rows(reported):
    out, report = reported
    assert list(report["curves"]) == ["ids", "em3"] and report["clusters"].endswith(" items")
    for name, points in report["curves"].items():
        assert [point["x"] for point in points] == [0, 3]
        for point in points:
            evaluated = json.loads((out / "runs" / f"{name}-{point['x']}-seed0" / "eval_test.json").read_text())
            assert point["n"] == report["rows"] == evaluated["slices"]["all"]["n"]
            assert point["auc"]["mean"] == evaluated["slices"]["all"]["auc"]
            assert point["auc"]["low"] < point["auc"]["mean"] < point["auc"]["high"]
    ids, em3 = report["curves"]["ids"], report["curves"]["em3"]
    assert em3[0]["auc"]["above"]["value"] == pytest.approx(em3[0]["auc"]["mean"] - ids[0]["auc"]["mean"])
    assert em3[1]["auc"]["difference"]["value"] == pytest.approx(em3[1]["auc"]["mean"] - em3[0]["auc"]["mean"])
    assert "difference" not in em3[0]["auc"] and "above" not in ids[0]["auc"]
    assert em3[0]["auc"]["above"]["low"] > 0, "content says of new items what decides"


def test_what_is_finished_is_reused(reported, cold, models, capsys):
    out, report = reported
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.json")}
    assert coldstart.coldstart(models, cold.root, out, ks=(0, 3)) == report
    assert capsys.readouterr().out.count("finished before") == 4
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/*.json")} == stamps


def test_the_page_names_n_and_intervals(reported, cold, monkeypatch, capsys, tmp_path):
    out, report = reported
    command = ["em3", "--workdir", f"ids={out / 'runs' / 'ids-0-seed0'}", f"em3={out / 'runs' / 'em3-0-seed0'}"]
    monkeypatch.setattr(sys, "argv", [*command, "--data", str(cold.root), "--shots", "0,3", "--out", str(out)])
    coldstart.main()
    above = report["curves"]["em3"][1]["auc"]["above"]
    interval = f"{above['low']:+.4f} to {above['high']:+.4f}"
    texts = [(out / f"coldstart.{ending}").read_text() for ending in ("md", "html")]
    for text in (capsys.readouterr().out, *texts):
        said = " ".join(text.split())
        assert f"n = {report['rows']:,} test rows of {report['tested']:,} items" in said and interval in text
    assert (out / "coldstart.png").read_bytes().startswith(b"\x89PNG")


def test_one_config_stands_for_itself_and_for_ids(cold):
    made = coldstart.of_configs(["configs/em3_synthetic.py"], {"train.epochs": "1.5"})
    found = {name: config_of(cold.root) for name, config_of in made.items()}
    assert {one.data.root for one in found.values()} == {str(cold.root)}
    assert list(found) == ["ids", "em3_synthetic"] and {one.train.epochs for one in found.values()} == {1.5}
    assert found["ids"].model.content == "none" != found["em3_synthetic"].model.content
    named = coldstart.of_configs(["a=em3_synthetic", "b=em3_synthetic:id_only"], {})
    assert list(named) == ["a", "b"] and named["b"](cold.root).model.content == "none"


def test_a_recipe_that_looks_into_the_data_sees_what_is_known_of_new_items(reported):
    """With no row of a new item its ID is of no use and always unknown; with three it is learnt."""
    out, _ = reported
    (made,) = coldstart.of_configs(["a=configs/own_data.py:id_only"], {}).values()
    floors = [made(out / "data" / f"items-{k}").data.unknown_floor["item"] for k in (0, 3)]
    assert floors[0] == 1.0 and floors[1] < 0.5


def test_errors_are_one_line(shop, cold, models, reported, tmp_path):
    def said(data, **options):
        return user_error(lambda: coldstart.coldstart(models, data.root, options.pop("out", tmp_path / "o"), **options))

    assert "holds neither items nor users out; prepare it with --split items:" in said(shop)
    assert "holds items out; prepare it with --split users:" in said(cold, of="users")
    assert "--shots -1,2: give numbers of rows" in said(cold, ks=(2, -1))
    assert "no item of the valid part has more than 5000 rows; give fewer --shots" in said(cold, ks=(5000,))
    assert "--seeds 0: give 1 or more" in said(cold, seeds=0)
    assert "largest number of shots was 3 and is 4" in said(cold, ks=(4,), out=reported[0])
    assert "two models are called a" in user_error(
        lambda: coldstart.of_configs(["a=em3_synthetic", "a=em3_synthetic"], {})
    )
    assert open_dataset(cold.root).meta == cold.meta
