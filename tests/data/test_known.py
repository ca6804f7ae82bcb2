"""What a run's training shows: by label, rows of each user, and length of the histories."""

import dataclasses

import numpy as np
import pytest

from em3_jax.config import parse
from em3_jax.data import known
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.checks import counts_of
from em3_jax.data.format import NOT_PART
from em3_jax.data.pipeline import training_rows
from em3_jax.tasks.ranking.setup import ranking
from tests import leaks

T = 2


@pytest.fixture(scope="module")
def dataset(tiny):
    """The tiny dataset with a label that a third of the rows have."""
    rows = np.arange(len(tiny.rows["item"]))
    part = rows % 3 == 0
    label = np.where(part, rows % 2, NOT_PART).astype(np.uint8)
    return dataclasses.replace(
        tiny.dataset,
        interactions=tiny.dataset.interactions | {"label_bought": label},
        meta=tiny.dataset.meta | {"labels": {"bought": "every third row"}},
    )


def naive_counts(dataset, rows, length) -> dict[str, np.ndarray]:
    """By a loop over the rows."""
    counts = {name: np.zeros_like(array) for name, array in dataset.counts.items()}
    columns, seen = dataset.interactions, set()
    for row in rows:
        for name in ("user", "item", "context_slot", "context_hour"):
            counts[name][columns[name][row]] += 1
        last = columns["history_end"][row]
        seen |= set(range(max(columns["history_start"][row], last - length), last))
    for event in seen:
        counts["item_history"][dataset.events["item"][event]] += 1
        for name in ("rating", "kind"):
            counts[f"event_{name}"][dataset.events[f"field_{name}"][event]] += 1
    return counts


@pytest.mark.parametrize(("label", "most"), [("click", 0), ("bought", 0), ("click", 2), ("bought", 2)])
def test_known_is_what_the_runs_own_rows_show(dataset, label, most):
    rows = training_rows(dataset, label, most)
    found = known.as_trained(dataset, rows, T, "any")
    expected = naive_counts(dataset, rows, T)
    for name, counts in expected.items():
        np.testing.assert_array_equal(found.counts[name], counts, err_msg=name)
    builder = BatchBuilder(found, history_length=T, unknown_alpha=0.0, unknown_floor={}, label=label)
    shown = expected["item"] + expected["item_history"] > 0
    every_item = np.unique(dataset.interactions["item"], return_index=True)[1]
    batch = builder(every_item, buckets=Buckets(64, 128))
    np.testing.assert_array_equal(batch["item_is_known"], shown[batch["item_id"]])
    everything = dataset.counts["item"] + dataset.counts["item_history"] > 0
    if label == "bought" and most:  # rows enough show every item anyhow
        assert (everything & ~shown).any()


def test_an_event_beyond_the_last_t_of_every_row_is_not_known(dataset):
    rows = training_rows(dataset, "click", 1)
    whole, short = (known.as_trained(dataset, rows, length, "any").counts for length in (1000, T))
    assert (short["item_history"] <= whole["item_history"]).all()
    assert ((short["item_history"] == 0) & (whole["item_history"] > 0)).any()
    np.testing.assert_array_equal(whole["item"], short["item"])


def test_an_event_that_is_stored_twice_counts_once(dataset):
    events = {name: np.concatenate([column, column]) for name, column in dataset.events.items()}
    events["original"] = np.tile(np.arange(len(dataset.events["item"])), 2)
    columns = {name: np.array(column) for name, column in dataset.interactions.items()}
    for name in ("history_start", "history_end"):
        columns[name][::2] += len(dataset.events["item"])
    twice = dataclasses.replace(dataset, events=events, interactions=columns)
    rows = training_rows(dataset, "click", 0)
    for name, counts in counts_of(dataset, rows).items():
        np.testing.assert_array_equal(counts_of(twice, rows)[name], counts, err_msg=name)


def test_all_training_rows_and_whole_histories_give_the_datasets_own_counts(dataset):
    for name, counts in counts_of(dataset, dataset.split_rows("train"), 1000).items():
        np.testing.assert_array_equal(counts, dataset.counts[name], err_msg=name)
    assert not (dataset.root / "features" / known.FOLDER).exists()  # short logs are counted each time


def test_where_the_last_events_show_as_much_nothing_is_counted(dataset, planted, monkeypatch):
    """The reach that a dataset tells is enough, and where it is short of the longest history one less is not."""
    for one in (dataset, planted):
        rows, reach = one.split_rows("train"), one.meta["history_reach"]
        columns = one.interactions
        longest = int((columns["history_end"] - columns["history_start"])[np.asarray(rows)].max())
        assert 0 < reach <= longest
        for name, counts in counts_of(one, rows, reach).items():
            np.testing.assert_array_equal(counts, one.counts[name], err_msg=name)
        if reach < longest:
            assert counts_of(one, rows, reach - 1)["item_history"].sum() < one.counts["item_history"].sum()
        with monkeypatch.context() as patch:
            patch.setattr(known, "counts_of", None)  # is not called
            assert known.as_trained(one, rows, reach, "click-0") is one
    assert planted.meta["history_reach"] < longest


def test_a_run_and_its_exports_know_what_its_rows_show(planted):
    """The dataset of a run's work, from which the exporter makes its tables, has the counts of the run."""
    config = leaks.ranking_config(planted, most_rows_per_user=3)
    work = ranking(parse.parse(config), leaks.mesh(config))
    expected = counts_of(planted, training_rows(planted, "click", 3), leaks.T)
    for name, counts in expected.items():
        np.testing.assert_array_equal(work.dataset.counts[name], counts, err_msg=name)
    assert (expected["item"] < planted.counts["item"]).any()
    canonical = work.builder(work.dataset).item_rows[:, 0]
    unknown = canonical == canonical.min()
    np.testing.assert_array_equal(unknown, expected["item"] + expected["item_history"] == 0)


def test_the_counts_of_a_long_log_are_kept_and_read_again(planted, monkeypatch):
    monkeypatch.setattr(known, "KEPT_ROWS", 100)
    monkeypatch.setattr("em3_jax.data.checks._CHUNK", 1000)
    rows = training_rows(planted, "click", 0)
    first = known.as_trained(planted, rows, T, "click-0").counts
    kept = list((planted.root / "features" / known.FOLDER).iterdir())
    assert len(kept) == 1 and "click-0-2" in kept[0].name
    with monkeypatch.context() as patch:
        patch.setattr(known, "counts_of", None)  # is not called
        again = known.as_trained(planted, rows, T, "click-0").counts
    kept[0].write_bytes(kept[0].read_bytes()[:100])  # what cannot be read is counted anew
    anew = known.as_trained(planted, rows, T, "click-0").counts
    for name, counts in naive_counts_of_planted(planted, rows).items():
        for found in (first, again, anew):
            np.testing.assert_array_equal(found[name], counts, err_msg=name)


def naive_counts_of_planted(planted, rows) -> dict[str, np.ndarray]:
    columns = planted.interactions
    start = np.maximum(columns["history_start"], columns["history_end"] - T)
    seen = {e for row in rows for e in range(start[row], columns["history_end"][row])}
    history = np.bincount(planted.events["item"][sorted(seen)], minlength=planted.num_items)
    return {
        "item": np.bincount(columns["item"][np.asarray(rows)], minlength=planted.num_items),
        "item_history": history,
    }
