"""Nothing behind a cut reaches what a model is given before it: for every reader and task, and every planted leak is found."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import retrieval as retrieval_configs
from em3_jax import experiment, placement
from em3_jax.data import batches, checks, histories, pairs, pipeline, stream
from em3_jax.data.checks import counts_of
from em3_jax.data.format import Dataset
from em3_jax.data.readers import encode, log, mmrec, table, table_log
from em3_jax.wiring import Work
from em3_jax.wiring import lemur as lemur_wiring
from em3_jax.wiring import ranking as ranking_wiring
from em3_jax.wiring import retrieval as retrieval_wiring
from tests import leaks

WORLDS = {
    "table by time": leaks.World(leaks.write_table(random_split=False)),
    "table at random": leaks.World(leaks.write_table(random_split=True)),
    "movielens": leaks.World(leaks.write_movielens),
    "mmrec as clicks": leaks.World(leaks.write_mmrec(as_clicks=True), has_times=False),
    "microlens": leaks.World(leaks.write_given),
    "synthetic": leaks.World(None),  # needs the planted data
}
RETRIEVAL = leaks.World(leaks.write_mmrec(), has_times=False)
STEPS = lambda rows, size: leaks.STEPS  # noqa: E731


def both(world: leaks.World, root: Path, cut: str, planted: Dataset | None = None) -> list[Dataset]:
    """The datasets as they are and with all changed behind the cut."""
    write = world.write or leaks.write_planted(planted)
    datasets = [write(root / name, cut, name == "changed") for name in ("plain", "changed")]
    assert leaks.facts(datasets[0]) == leaks.facts(datasets[1])  # tables of one size
    return datasets


def work_on(dataset: Dataset, task: str = "ranking", **data) -> Work:
    config = leaks.ranking_config(dataset, task, **data)
    wire = lemur_wiring.lemur if task == "lemur" else ranking_wiring.ranking
    return wire(config, leaks.mesh(config), STEPS)


def seen_of(world: leaks.World, dataset: Dataset, cut: str, task: str = "ranking", **data) -> dict:
    return leaks.given(work_on(dataset, task, **data), leaks.observed_rows(dataset, cut, world.has_times))


@pytest.mark.parametrize("cut", ["valid", "test"])
@pytest.mark.parametrize("name", WORLDS)
def test_no_input_of_a_row_knows_what_is_behind_the_cut(name, cut, planted, tmp_path):
    world = WORLDS[name]
    plain, changed = both(world, tmp_path, cut, planted)
    for most in (0, 20):
        assert not leaks.differing(*(seen_of(world, one, cut, most_rows_per_user=most) for one in (plain, changed)))
    behind = np.flatnonzero(np.asarray(plain.interactions["split"]) == 2)
    later = [leaks.given(work_on(one), behind) for one in (plain, changed)]
    assert any(name.startswith("['rows") for name in leaks.differing(*later))  # and the change is one


@pytest.mark.parametrize("task", ["ranking", "lemur"])
def test_no_logit_of_a_row_knows_what_is_behind_the_cut(task, tmp_path):
    world = WORLDS["table at random"]
    datasets = both(world, tmp_path, "test")
    configs = [leaks.ranking_config(one, task) for one in datasets]
    built = [experiment.build(config, STEPS) for config in configs]
    state, predict = built[0].init(), built[0].predict  # one compiled program: both are given the same shapes
    for split in ("train", "valid"):
        rows = np.asarray(datasets[0].split_rows(split))[:32]
        logits = []
        for parts in built:
            batch = parts.evaluation("valid").builder(rows, buckets=batches.Buckets(192, 192))
            logits.append(np.asarray(predict(state, parts.place(batch | {"label": 0 * batch["label"]}))))
        assert logits[0].std() > 0 and logits[0].tobytes() == logits[1].tobytes()


def retrieval_given(dataset: Dataset) -> dict[str, np.ndarray]:
    """Training batches, graphs and features: all that a retrieval model is made of."""
    config = retrieval_configs.get_config("freedom").to_dict()
    config["data"] |= {"root": str(dataset.root), "batch_size": 32, "edge_dropout": 0.5}
    config["model"]["retrieval_settings"] |= {"width": 8}
    config["model"]["item_graph"] |= {"neighbours": 3}
    config["mesh"] |= {"data": 1}
    work = retrieval_wiring.retrieval(config, leaks.mesh(config), STEPS)
    leaves = {"constants": jax.device_get(work.constants)}
    leaves |= {f"train {step}": work.source[step] for step in range(leaks.STEPS)}
    found = jax.tree_util.tree_leaves_with_path(leaves)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


@pytest.mark.parametrize("cut", ["valid", "test"])
def test_retrieval_trains_on_nothing_behind_the_cut(cut, tmp_path):
    assert not leaks.differing(*map(retrieval_given, both(RETRIEVAL, tmp_path, cut)))


def test_a_stream_is_given_nothing_behind_a_window(tmp_path):
    """The labels of a window are behind its scoring: it is the window in whose middle the cut lies."""
    world = WORLDS["table by time"]
    datasets = both(world, tmp_path, "test")
    late, now = leaks.behind(*(np.asarray(datasets[0].interactions[n]) for n in ("split", "time")), "test")
    end = int(np.flatnonzero(late | now)[0])
    given = [leaks.given_in_stream(one, work_on(one), end) for one in datasets]
    assert not leaks.differing(*given)


# Planted leaks: each changes one function of the product as a slip might, and the check has to fail.


def not_strictly_earlier(patch):
    ranges = histories.history_ranges
    patch.setattr(histories, "history_ranges", lambda eu, et, ru, rt: ranges(eu, et, ru, rt + 1))


def all_events_of_the_user(patch):
    ranges = histories.history_ranges
    patch.setattr(histories, "history_ranges", lambda eu, et, ru, rt: ranges(eu, et, ru, rt + 10**6))


def the_next_event_too(patch):
    made = log.histories

    def one_more(*columns):
        found = made(*columns)
        return found._replace(end=np.minimum(found.end + 1, len(found.order)))

    patch.setattr(log, "histories", one_more)


def blind_to_splits(patch):
    made = log.histories
    patch.setattr(log, "histories", lambda eu, et, es, ru, rt, rs: made(eu, et, 0 * es, ru, rt, 0 * rs))


def valid_reads_test(patch):
    made = log.histories
    patch.setattr(log, "histories", lambda eu, et, es, ru, rt, rs: made(eu, et, np.minimum(es, 1), ru, rt, rs))


def of_log(change):
    """A leak in what is written of a log: `change` (columns) -> the columns that are replaced."""

    def plant(patch):
        written = log.write_log
        patch.setattr(table, "write_log", lambda writer, **c: written(writer, **(c | change(c))))

    return plant


def _clicks_of_item(columns) -> np.ndarray:
    return np.bincount(columns["item"], columns["label"], minlength=leaks.ITEMS)[columns["item"]]


def events_of_items_clicked_ever(columns) -> dict:
    return {"is_event": _clicks_of_item(columns) > 6}


def fields_of_the_whole_log(columns) -> dict:
    rank = np.argsort(np.argsort(_clicks_of_item(columns), kind="stable"), kind="stable")
    return {"event": {name: 2 + rank * 5 // len(rank) for name in columns["event"]}}


def popularity_as_context(columns) -> dict:
    rank = np.argsort(np.argsort(_clicks_of_item(columns), kind="stable"), kind="stable")
    return {"context": {name: 2 + rank * 4 // len(rank) for name in columns["context"]}}


def click_rate_of_the_user_as_context(columns) -> dict:
    rate = np.bincount(columns["user"], columns["label"]) / np.bincount(columns["user"])
    rank = np.argsort(np.argsort(rate))[columns["user"]]
    return {"context": {name: 2 + rank * 4 // leaks.USERS for name in columns["context"]}}


def counts_over(change):
    """A leak in what counts as known: `change` (dataset, rows) -> the rows that are counted."""

    def plant(patch):
        def as_trained(dataset, rows, length, key):
            return dataclasses.replace(dataset, counts=counts_of(dataset, change(dataset, rows), length))

        patch.setattr(ranking_wiring, "as_trained", as_trained)

    return plant


def every_row(dataset, rows):
    return np.arange(len(dataset.interactions["item"]))


def clicks_of_any_split(dataset, rows):
    label, split = (np.asarray(dataset.interactions[name]) for name in ("label", "split"))
    return np.flatnonzero((split == 0) | (label == 1))


def rarity_over_every_row(patch):
    counted = batches.row_counts

    def row_counts(dataset):
        item = np.bincount(dataset.interactions["item"], minlength=dataset.num_items)
        return counted(
            dataclasses.replace(dataset, counts=dataset.counts | {"item": item * (dataset.counts["item"] > 0)})
        )

    patch.setattr(batches, "row_counts", row_counts)


def ids_in_the_order_of_frequency(patch):
    def by_frequency(column):
        ids, values = encode.encode(column)
        order = np.argsort(-np.bincount(ids, minlength=len(values) + 2)[2:], kind="stable")
        rank = np.concatenate([[0, 1], 2 + np.argsort(order)])
        return rank[ids].astype(np.int32), [values[k] for k in order]

    patch.setattr(table_log, "encode", by_frequency)


def rows_of_users_who_come_back(patch):
    chosen = pipeline.training_rows

    def training_rows(dataset, label, most):
        rows, split = np.asarray(chosen(dataset, label, most)), dataset.interactions["split"]
        clicks = np.bincount(dataset.interactions["user"], (split == 2) & (dataset.interactions["label"] == 1))
        return rows[clicks[dataset.interactions["user"][rows]] > np.median(clicks)]

    patch.setattr(ranking_wiring, "training_rows", training_rows)


def an_order_seeded_by_all_items(patch):
    opened, ordered, seed = ranking_wiring.open_dataset, pipeline.rows_of_step, []

    def open_dataset(root):
        dataset = opened(root)
        item = np.asarray(dataset.interactions["item"], np.int64)
        seed.append(int((item * np.arange(len(item))).sum()))
        return dataset

    patch.setattr(ranking_wiring, "open_dataset", open_dataset)
    patch.setattr(pipeline, "rows_of_step", lambda rows, size, _, *rest: ordered(rows, size, seed[-1], *rest))


def in_batch(change):
    """A leak in how a batch is made: `change` (builder, rows, batch) -> the entries that are replaced."""

    def plant(patch):
        made = batches.BatchBuilder.__call__

        def call(self, rows, **options):
            batch = made(self, rows, **options)
            return batch | change(self.dataset, rows, batch)

        patch.setattr(batches.BatchBuilder, "__call__", call)

    return plant


def weights_by_clicks_of_all(dataset, rows, batch) -> dict:
    label, item = (np.asarray(dataset.interactions[name]) for name in ("label", "item"))
    rate = np.bincount(item, label, minlength=dataset.num_items) / np.maximum(
        np.bincount(item, minlength=dataset.num_items), 1
    )
    return {"weight": batch["weight"] * rate[item[rows]].astype(np.float32)}


def padding_that_holds_an_item(dataset, rows, batch) -> dict:
    ids = batch["item_id"].copy()
    test = np.asarray(dataset.interactions["split"]) == 2
    ids[~batch["item_mask"]] = dataset.interactions["item"][test][-1]
    return {"item_id": ids}


def the_items_rate_beside_its_content(patch):
    loaded = placement.load_features

    def load_features(dataset, names):
        item, label = (np.asarray(dataset.interactions[name]) for name in ("item", "label"))
        rate = np.bincount(item, label, minlength=dataset.num_items)[:, None, None]
        return [
            dataclasses.replace(one, tokens=(one.tokens * (1 + rate)).astype(one.tokens.dtype))
            for one in loaded(dataset, names)
        ]

    patch.setattr(placement, "load_features", load_features)


def content_scaled_by_clicks(patch):
    loaded = placement.load_features

    def load_features(dataset, names):
        rows = np.asarray(dataset.interactions["label"]) == 1
        clicked = dataset.interactions["item"][rows]  # "fitted on the items that were clicked"
        return [
            dataclasses.replace(one, tokens=(one.tokens / np.abs(one.tokens[clicked]).mean()).astype(one.tokens.dtype))
            for one in loaded(dataset, names)
        ]

    patch.setattr(placement, "load_features", load_features)


def negatives_that_nobody_ever_touches(patch):
    kept, read, draw = {}, mmrec._read_interactions, mmrec.draw_negatives

    def reading(*arguments):
        kept["log"] = read(*arguments)
        return kept["log"]

    def drawing(random, part, rows, count):
        whole = kept["log"]
        own = part.user[rows] * whole.items + part.item[rows]
        return draw(random, whole, np.searchsorted(whole.user * whole.items + whole.item, own), count)

    patch.setattr(mmrec, "_read_interactions", reading)
    patch.setattr(mmrec, "draw_negatives", drawing)


def histories_drawn_by_all(patch):
    made = mmrec.cyclic_histories
    seed = lambda log: int((log.item * np.arange(len(log.item))).sum())  # noqa: E731
    patch.setattr(mmrec, "cyclic_histories", lambda _, log: made(np.random.default_rng(seed(log)), log))


def pairs_of_every_split(patch):
    def training_pairs(dataset):
        user, item = (np.asarray(dataset.interactions[name], np.int64) for name in ("user", "item"))
        key = np.unique(user * dataset.num_items + item)
        return pairs.Pairs(key // dataset.num_items, key % dataset.num_items, dataset.num_users, dataset.num_items)

    patch.setattr(retrieval_wiring, "training_pairs", training_pairs)


def of_all_pairs(name: str):
    """A leak in retrieval alone: `name` of `data.pairs` or its wiring is made from the pairs of every split."""

    def plant(patch):
        opened, kept = retrieval_wiring.open_dataset, {}

        def open_dataset(root):
            kept["dataset"] = opened(root)
            return kept["dataset"]

        def whole(_pairs) -> pairs.Pairs:
            with pytest.MonkeyPatch.context() as inner:
                pairs_of_every_split(inner)
                return retrieval_wiring.training_pairs(kept["dataset"])

        patch.setattr(retrieval_wiring, "open_dataset", open_dataset)
        if name == "graph":
            made = retrieval_wiring.full_graph
            patch.setattr(retrieval_wiring, "full_graph", lambda p: made(whole(p)))
        elif name == "negatives":
            sampler = pairs.NegativeSampler
            patch.setattr(pairs, "NegativeSampler", lambda p: sampler(whole(p)))
        else:  # items near to each other by who takes them
            vectors = retrieval_wiring.item_vectors

            def item_vectors(features):
                degree = whole(None).item_degree
                return vectors(features) + degree[:, None].astype(np.float32)

            patch.setattr(retrieval_wiring, "item_vectors", item_vectors)

    return plant


def scored_with_the_window_itself_known(patch):
    known_at = stream.as_of
    patch.setattr(leaks, "as_of", lambda dataset, row, *rest: known_at(dataset, row + 150, *rest))


# leak -> (world, cut, what plants it)
LEAKS = {
    "events of the same moment": ("table by time", "valid", not_strictly_earlier),
    "events to come": ("table by time", "valid", all_events_of_the_user),
    "the row's own event": ("table by time", "valid", the_next_event_too),
    "events of later splits": ("table at random", "valid", blind_to_splits),
    "events of test in valid": ("table at random", "test", valid_reads_test),
    "events chosen by clicks of all": ("table by time", "test", of_log(events_of_items_clicked_ever)),
    "an event with its item's later clicks": ("table by time", "valid", of_log(fields_of_the_whole_log)),
    "popularity over all rows": ("table by time", "test", of_log(popularity_as_context)),
    "click rate over all rows": ("table by time", "test", of_log(click_rate_of_the_user_as_context)),
    "known by every row": ("table by time", "valid", counts_over(every_row)),
    "known by clicks of any split": ("table at random", "valid", counts_over(clicks_of_any_split)),
    "rarity by every row": ("table by time", "valid", rarity_over_every_row),
    "ids by frequency": ("table by time", "test", ids_in_the_order_of_frequency),
    "rows chosen by what comes": ("table by time", "test", rows_of_users_who_come_back),
    "an order that depends on what comes": ("table by time", "test", an_order_seeded_by_all_items),
    "weights by clicks of all": ("table by time", "test", in_batch(weights_by_clicks_of_all)),
    "padding that holds an item": ("table by time", "test", in_batch(padding_that_holds_an_item)),
    "content with the item's rate": ("table by time", "test", the_items_rate_beside_its_content),
    "content scaled by clicks": ("table by time", "test", content_scaled_by_clicks),
    "negatives without test items": ("mmrec as clicks", "test", negatives_that_nobody_ever_touches),
    "histories drawn by what comes": ("mmrec as clicks", "test", histories_drawn_by_all),
    "retrieval pairs of every split": ("retrieval", "test", pairs_of_every_split),
    "a graph of every split": ("retrieval", "valid", of_all_pairs("graph")),
    "retrieval negatives without test items": ("retrieval", "valid", of_all_pairs("negatives")),
    "neighbours by pairs of every split": ("retrieval", "test", of_all_pairs("neighbours")),
    "a window that knows itself": ("stream", "test", scored_with_the_window_itself_known),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_planted_leak_is_found(leak, tmp_path, monkeypatch):
    where, cut, plant = LEAKS[leak]
    monkeypatch.setattr(checks, "_check_histories", lambda *_: None)  # which refuses some of them by itself
    plant(monkeypatch)
    if where == "retrieval":
        found = leaks.differing(*map(retrieval_given, both(RETRIEVAL, tmp_path, cut)))
    elif where == "stream":
        with pytest.raises(AssertionError, match="trained"):
            test_a_stream_is_given_nothing_behind_a_window(tmp_path)
        return
    else:
        found = leaks.differing(*(seen_of(WORLDS[where], one, cut) for one in both(WORLDS[where], tmp_path, cut)))
    assert found, f"nobody would have noticed: {leak}"
