"""em3 importance: what decides the label is worth much, noise nothing; each permutation moves what it says and no more."""

import json
import sys

import numpy as np
import pytest

from em3_jax.core import rng
from em3_jax.data.batches import BatchBuilder
from em3_jax.protocols import importance, permutations
from em3_jax.protocols import inputs as inputs_of
from em3_jax.protocols.inputs import Input, Inputs
from em3_jax.tasks.ranking.task import RankingTask
from tests.conftest import user_error

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(40)]

KEY = rng.numpy_key(3, "test")


@pytest.fixture(scope="module")
def report(trained):
    return importance.importance(trained, repeats=3)


@pytest.fixture(scope="module")
def found(report):
    """(kind, name) -> what was found of it."""
    return {(one["kind"], one["name"]): one for one in report["inputs"]}


# What is found.


def test_what_decides_is_worth_much_and_noise_nothing(found):
    assert set(found) == {
        ("user", "user"), ("user", "city"), ("item", "item"), ("item", "brand"), ("item", "colour"), ("context", "slot"),
        ("history", "history"), ("event", "rating"), ("content", "image"), ("content", "text"), ("content", "all of it"),
    }  # fmt: skip
    for deciding in (("item", "brand"), ("content", "all of it")):
        for metric in ("auc", "gauc", "logloss"):
            assert found[deciding][metric]["low"] > 0.03, (deciding, metric)
    for noise in (("user", "city"), ("item", "colour"), ("event", "rating"), ("content", "text")):
        for metric in ("auc", "gauc"):
            value = found[noise][metric]
            assert value["low"] <= 0.005 and value["high"] >= -0.005, (noise, value)
            assert abs(value["drop"]) < 0.1 * found["item", "brand"][metric]["drop"], noise


def test_as_trained_it_is_what_eval_says(trained, report):
    evaluated = json.loads((trained / "eval_test.json").read_text())
    assert report["rows"] == evaluated["slices"]["all"]["n"] and report["step"] == evaluated["step"]
    for metric, value in report["base"].items():
        assert value == pytest.approx(evaluated["slices"]["all"][metric], abs=1e-5)


def test_nothing_permuted_loses_nothing(trained, monkeypatch):
    itself = lambda count, key: np.arange(count)  # noqa: E731
    monkeypatch.setattr(permutations, "among_rows", itself)
    for name in ("within_groups", "of_groups"):
        monkeypatch.setattr(permutations, name, lambda group, key: np.arange(len(group)))
    monkeypatch.setattr(inputs_of.rng, "permute", lambda index, size, key: index)
    for one in importance.importance(trained, repeats=1)["inputs"]:
        for metric in ("auc", "gauc", "logloss"):
            assert one[metric]["drop"] == one[metric]["low"] == one[metric]["high"] == 0.0


def test_one_program_predicts_all_and_the_same_again_is_the_same(trained, report, monkeypatch):
    traced, predict = [], RankingTask.predict
    monkeypatch.setattr(RankingTask, "predict", lambda *given: traced.append(1) or predict(*given))
    again = importance.importance(trained, repeats=3)
    assert len(traced) == 1
    assert again == report
    assert importance.importance(trained, repeats=1, seed=1)["inputs"] != report["inputs"]


def test_attention_is_that_of_the_modalities(report):
    for kind in ("layers", "equal"):
        shares = report["attention"][kind]["layer_0"]
        assert set(shares) == {"image", "text", "learnt queries"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    assert report["attention"]["equal"]["layer_0"] == pytest.approx({"image": 0.4, "text": 0.2, "learnt queries": 0.4})
    assert report["attention"]["layers"]["layer_0"] != pytest.approx({"image": 0.4, "text": 0.2, "learnt queries": 0.4})


def test_the_page_names_n_and_intervals(trained, tmp_path, monkeypatch, capsys):
    command = ["em3", "--workdir", str(trained), "--out", str(tmp_path / "rep"), "--repeats", "1", "--split", "valid"]
    monkeypatch.setattr(sys, "argv", command)
    importance.main()
    told = json.loads((tmp_path / "rep" / "importance.json").read_text())
    brand = next(one for one in told["inputs"] if one["name"] == "brand")
    interval = f"{brand['gauc']['low']:+.4f} to {brand['gauc']['high']:+.4f}"
    texts = [(tmp_path / "rep" / f"importance.{ending}").read_text() for ending in ("md", "html")]
    for text in (capsys.readouterr().out, *texts):
        assert f"n = {told['rows']:,} rows" in " ".join(text.split()) and interval in text and "item brand" in text
    assert "importance.png" in texts[0] and "data:image/png" in texts[1] and str(trained) in texts[1]
    assert (tmp_path / "rep" / "importance.png").read_bytes().startswith(b"\x89PNG")


def test_errors_are_one_line(trained, tmp_path):
    assert "--repeats 0: give 1 or more" in user_error(lambda: importance.importance(trained, repeats=0))
    assert "run.json: file missing" in user_error(importance.importance, tmp_path)


# What is moved.


def test_rows_stand_in_within_their_groups_or_whole_groups_do():
    group = np.random.default_rng(0).integers(0, 30, 400)
    rows = np.arange(400)
    for made in (permutations.among_rows(400, KEY), permutations.within_groups(group, KEY)):
        assert sorted(made) == rows.tolist() and (made != rows).mean() > 0.8
    assert (group[permutations.within_groups(group, KEY)] == group).all()
    assert (group[permutations.among_rows(400, KEY)] != group).mean() > 0.8
    other = group[permutations.of_groups(group, KEY)]
    assert all(len(set(other[group == one])) == 1 for one in range(30))
    assert len({other[group == one][0] for one in range(30)}) == 30 and (other != group).mean() > 0.8
    own = permutations.of_groups(group, KEY)[group == 7]
    assert len(set(own)) == min(len(own), (group == other[group == 7][0]).sum())


@pytest.fixture(scope="module")
def small(tiny):
    """(inputs, rows) of the test rows of the dataset that has everything."""
    sets = tuple(tiny.dataset.features(name) for name in ("image", "text"))
    builder = BatchBuilder(tiny.dataset, history_length=4, unknown_alpha=0.0, unknown_floor={}, host_features=sets)
    rows = np.asarray(tiny.dataset.split_rows("test"))
    return Inputs(builder, rows, len(rows), sets, True), rows


def seen(source) -> dict[str, np.ndarray]:
    """What each row of the only batch shows, by value."""
    batch = source[0]
    row = batch["row_id"]
    result = {name: row[batch[f"{name}_row"]] for name in ("user", "context")}
    result["item"] = row[batch["item_row"]][batch["item_position"]]
    result["past items"] = np.where(
        batch["history_mask"][..., None], row[batch["item_row"]][batch["history_position"]], 0
    )
    result["events"] = row[batch["history_row"]]
    for name, tokens in batch["tokens"].items():
        masked = np.where(batch["tokens_mask"][name][..., None], tokens, 0)
        result[name] = masked[batch["item_position"]]
        result[f"past {name}"] = np.where(batch["history_mask"][..., None, None], masked[batch["history_position"]], 0)
    return result


MOVES = {
    Input("user", "languages"): {"user"},
    Input("item", "tags"): {"item"},
    Input("item", "item", True): {"item"},
    Input("context", "hour"): {"context"},
    Input("history", "history"): {"past items", "events", "past image", "past text"},
    Input("event", "rating"): {"events"},
    Input("content", "image"): {"image", "past image"},
    Input("content", "all of it"): {"image", "past image", "text", "past text"},
}


@pytest.mark.parametrize("scope", inputs_of.SCOPES)
@pytest.mark.parametrize("one", MOVES, ids=lambda one: one.told())
def test_an_input_is_moved_and_nothing_else(small, one, scope):
    inputs, _ = small
    assert one in inputs.named()
    before, after = seen(inputs.source()), seen(inputs.source(one, scope, KEY))
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == MOVES[one]
    if one.kind in ("user", "item", "context"):  # the values of one field, and they are those of the row that stands in
        source = inputs._stand_ins(one.kind == "user", scope, KEY)
        changed = (before[one.kind] != after[one.kind]).any(axis=0)
        assert 0 < changed.sum() <= 3
        np.testing.assert_array_equal(after[one.kind][:, changed], before[one.kind][source][:, changed])


def test_a_stranger_s_content_is_the_same_in_candidate_and_history(small, tiny):
    """Who is at once candidate and past item shows one content, and it is that of an item that the split shows."""
    inputs, rows = small
    builder = inputs.source(Input("content", "image"), "rows", KEY).builder
    item = tiny.dataset.interactions["item"][rows]
    as_candidate, _ = builder.host_features[0].of_items(tiny.dataset.num_items + np.arange(len(rows)))
    as_past, _ = builder.host_features[0].of_items(item)
    np.testing.assert_array_equal(as_candidate, as_past)
