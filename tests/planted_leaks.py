"""Leaks as a slip might make them: each changes one function of the product, and `test_leaks` has to see it."""

import dataclasses

import numpy as np
import pytest

from em3_jax.data import batches, histories, pairs, pipeline, stream
from em3_jax.data.checks import counts_of
from em3_jax.data.readers import encode, log, mmrec, table_clicks, table_dataset, table_log, table_match
from em3_jax.features import placement
from em3_jax.tasks.ranking import setup as ranking_wiring
from em3_jax.tasks.retrieval import setup as retrieval_wiring
from tests import leaks


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
        patch.setattr(table_dataset, "write_log", lambda writer, **c: written(writer, **(c | change(c))))

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


def a_group_that_the_model_reads(dataset, rows, batch) -> dict:
    return {"context_row": batch["context_row"] + (dataset.group[rows, None] % 2 == 0)}


def rows_of_users_who_come_back(patch):
    chosen = pipeline.training_rows

    def training_rows(dataset, label, most, share):
        rows, split = np.asarray(chosen(dataset, label, most, share)), dataset.interactions["split"]
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


def drawn_from_the_whole_log(change):
    """A leak in what is drawn for clicks alone: `change` (columns) -> the columns that are replaced."""

    def plant(patch):
        draw = table_clicks.draw_negatives

        def draw_negatives(user, item, time, split, **options):
            columns = {"user": user, "item": item, "time": time, "split": split}
            return draw(**(columns | change(columns)), **options)

        patch.setattr(table_clicks, "draw_negatives", draw_negatives)

    return plant


def events_of_no_split(patch):
    found = table_match._split_of_events
    patch.setattr(table_match, "_split_of_events", lambda columns, *rest: 0 * found(columns, *rest))


def at_one_time(columns) -> dict:
    return {"time": 0 * columns["time"], "split": 0 * columns["split"]}


def cycles_of_all_rows(patch):
    write = table_dataset.write_log
    patch.setattr(table_dataset, "write_log", lambda writer, **given: write(writer, **given | {"is_event": None}))


def histories_drawn_by_all(patch):
    write, made, seen = mmrec._write_rows, mmrec.cyclic_histories, []

    def write_rows(writer, log, *rest):
        seen.append(int((log.item * np.arange(len(log.item))).sum()))
        return write(writer, log, *rest)

    def again(order, *rest):
        return made(np.random.default_rng(seen[-1]).permutation(order), *rest)

    patch.setattr(mmrec, "_write_rows", write_rows)
    patch.setattr(mmrec, "cyclic_histories", again)


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
    "a table of events that has the test clicks": ("table of events at random", "valid", events_of_no_split),
    "negatives that a click to come decides": ("table of clicks alone", "test", drawn_from_the_whole_log(at_one_time)),
    "negatives without test items": ("mmrec as clicks", "test", negatives_that_nobody_ever_touches),
    "histories drawn by what comes": ("mmrec as clicks", "test", histories_drawn_by_all),
    "other rows of every split": ("table without times", "test", cycles_of_all_rows),
    "retrieval pairs of every split": ("retrieval", "test", pairs_of_every_split),
    "a graph of every split": ("retrieval", "valid", of_all_pairs("graph")),
    "retrieval negatives without test items": ("retrieval", "valid", of_all_pairs("negatives")),
    "neighbours by pairs of every split": ("retrieval", "test", of_all_pairs("neighbours")),
    "a window that knows itself": ("stream", "test", scored_with_the_window_itself_known),
}
