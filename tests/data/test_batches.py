"""batches: against plain loops over the log that the dataset was written from."""

import numpy as np
import pytest

from em3_jax.core import rng
from em3_jax.core.fields import UNKNOWN, columns
from em3_jax.data.batches import BatchBuilder, Buckets, Distinct
from tests.tiny import FIELDS, FIRST_COLD_ITEM, FIRST_NEW_USER, ROWS, USER_WITHOUT_EVENTS, write_tiny

T = 6
SMALL = Buckets(64, 64)
ALL_ROWS = np.arange(ROWS)
KEYS = [rng.numpy_key(0, "unknown", step) for step in range(3000)]


def make_builder(tiny, alpha=0.0, floor=None, **settings):
    return BatchBuilder(
        tiny.dataset, history_length=T, unknown_alpha=alpha, unknown_floor=dict(floor or {}), **settings
    )


@pytest.fixture(scope="module")
def builder(tiny):
    return make_builder(tiny)


@pytest.fixture(scope="module")
def batch(builder):
    """All rows of the dataset as one evaluation batch."""
    return builder(ALL_ROWS, buckets=SMALL)


# The plain reference: loops over the log.


def earlier_events(tiny, row: int) -> list[int]:
    """The user's events strictly before the row, oldest first, equal times in the order of the log."""
    user, time = tiny.rows["user"][row], tiny.rows["time"][row]
    events = [e for e in range(len(tiny.events["user"])) if tiny.events["user"][e] == user]
    return sorted((e for e in events if tiny.events["time"][e] < time), key=lambda e: tiny.events["time"][e])


def group_ids(tiny, group: str, index: int) -> list[int]:
    """The field ids of user, item, row (context) or event number `index`, side by side."""
    if group in ("user", "item"):
        values = getattr(tiny, f"{group}s")
        return [int(i) for field in getattr(FIELDS, group) for i in np.ravel(values[field.name][index])]
    source, prefix = (tiny.rows, "context") if group == "context" else (tiny.events, "field")
    return [int(source[f"{prefix}_{field.name}"][index]) for field in getattr(FIELDS, group)]


def field_of_column(group: str) -> list[str]:
    return [field.name for field in getattr(FIELDS, group) for _ in range(field.length)]


@pytest.fixture(scope="module")
def times_seen(tiny):
    """(group, field, id) -> how often training shows it: by a row, or by an event that some training row can see."""
    counts = {}

    def see(group, index):
        for name, i in zip(field_of_column(group), group_ids(tiny, group, index), strict=True):
            counts[group, name, i] = counts.get((group, name, i), 0) + 1

    seen_events = set()
    for row in np.flatnonzero(tiny.rows["split"] == 0):
        see("user", tiny.rows["user"][row])
        see("item", tiny.rows["item"][row])
        see("context", row)
        seen_events |= set(earlier_events(tiny, row))
    for event in seen_events:
        see("item", tiny.events["item"][event])
        see("event", event)
    return counts


def expected_rows(times_seen, group: str, ids: list[int]) -> list[int]:
    """Table rows of field ids: padding is row 0, id i is the field's offset + i - 1, ids that training lacks are unknown."""
    offsets = FIELDS.offsets()[group]
    result = []
    for name, i in zip(field_of_column(group), ids, strict=True):
        known = i if i == 0 or (group, name, i) in times_seen else UNKNOWN
        result.append(0 if known == 0 else offsets[name] + known - 1)
    return result


def rows_of(batch, name: str) -> np.ndarray:
    return batch["row_id"][batch[f"{name}_row"]]


# Histories and candidates.


def test_history_is_the_last_strictly_earlier_events_newest_last_right_aligned(tiny, batch):
    ids = batch["item_id"][batch["history_position"]]
    lengths = set()
    for row in ALL_ROWS:
        events = earlier_events(tiny, row)[-T:]
        lengths.add(len(events))
        np.testing.assert_array_equal(batch["history_mask"][row], [False] * (T - len(events)) + [True] * len(events))
        np.testing.assert_array_equal(ids[row][T - len(events) :], tiny.events["item"][events])
    assert {0, T} < lengths  # the data has them all: empty, partly filled, cut


def test_the_fixture_has_events_at_the_time_of_a_row(tiny):
    """Else `strictly earlier` and `not later` would be the same."""
    moments = set(zip(tiny.events["user"], tiny.events["time"], strict=True))
    assert any(pair in moments for pair in zip(tiny.rows["user"], tiny.rows["time"], strict=True))


def test_candidate_label_and_weight_are_those_of_the_row(tiny, builder, batch):
    np.testing.assert_array_equal(batch["item_id"][batch["item_position"]], tiny.rows["item"])
    np.testing.assert_array_equal(batch["label"], tiny.rows["label"])
    np.testing.assert_array_equal(batch["weight"], np.ones(ROWS))
    weight = np.linspace(0, 1, ROWS, dtype=np.float32)
    np.testing.assert_array_equal(builder(ALL_ROWS, buckets=SMALL, weight=weight)["weight"], weight)


def test_rows_may_come_in_any_order_and_twice(builder, batch):
    rows = np.array([200, 3, 3, 310, 0])
    few = builder(rows, buckets=SMALL)
    for name in ("item_position", "history_position"):
        np.testing.assert_array_equal(few["item_id"][few[name]], batch["item_id"][batch[name]][rows])
    np.testing.assert_array_equal(rows_of(few, "user"), rows_of(batch, "user")[rows])


# The distinct blocks.


def test_items_are_distinct_sorted_and_just_those_of_the_batch(batch):
    valid = batch["item_id"][batch["item_mask"]]
    assert (np.diff(valid) > 0).all()
    slots = np.concatenate([batch["history_position"][batch["history_mask"]], batch["item_position"]])
    np.testing.assert_array_equal(np.unique(slots), np.flatnonzero(batch["item_mask"]))


def test_surplus_items_are_masked_and_real(tiny, builder):
    few = builder(np.arange(5), buckets=SMALL)
    assert not few["item_mask"].all()
    assert set(few["item_id"][~few["item_mask"]]) <= set(few["item_id"][few["item_mask"]])


def test_row_id_is_sorted_distinct_with_padding_first_and_surplus_beyond_the_table(batch):
    row_id = batch["row_id"]
    assert row_id[0] == 0 and (np.diff(row_id.astype(np.int64)) > 0).all()
    real = row_id < FIELDS.num_rows
    assert 0 < (~real).sum() and (np.diff(real.astype(int)) <= 0).all()
    positions = np.concatenate([batch[f"{name}_row"].ravel() for name in ("item", "user", "context", "history")])
    assert real[positions].all()


@pytest.mark.parametrize("group", ["item", "user", "context"])
def test_positions_name_the_table_rows_of_the_ids(tiny, batch, times_seen, group):
    index = {"item": batch["item_id"], "user": tiny.rows["user"], "context": ALL_ROWS}[group]
    rows = rows_of(batch, group)
    assert rows.shape == (len(index), len(field_of_column(group)))
    for row, i in zip(rows, index, strict=True):
        np.testing.assert_array_equal(row, expected_rows(times_seen, group, group_ids(tiny, group, i)))


def test_event_fields_belong_to_their_event(tiny, batch, times_seen):
    rows = rows_of(batch, "history")
    for row in ALL_ROWS:
        for slot, event in enumerate(reversed(earlier_events(tiny, row)[-T:])):
            expected = expected_rows(times_seen, "event", group_ids(tiny, "event", event))
            np.testing.assert_array_equal(rows[row, T - 1 - slot], expected)


def test_multi_valued_fields_are_padded_with_position_zero(tiny, batch):
    tags = columns(FIELDS.item)["tags"]
    padded = tiny.items["tags"][batch["item_id"]] == 0
    assert padded.any() and not padded.all()
    np.testing.assert_array_equal(batch["item_row"][:, tags] == 0, padded)


def test_the_fixture_has_ids_that_training_lacks_in_every_group(tiny, times_seen):
    """Else the tests of unknown ids would test nothing."""
    for group, count in (("user", 23), ("item", 37), ("context", ROWS), ("event", len(tiny.events["user"]))):
        names = field_of_column(group)
        used = {(group, n, i) for k in range(count) for n, i in zip(names, group_ids(tiny, group, k), strict=True)}
        assert {name for _, name, i in used - set(times_seen) if i > UNKNOWN}, group


def test_ids_never_seen_in_training_are_unknown(tiny, batch):
    offsets = FIELDS.offsets()
    new_user = tiny.rows["user"] >= FIRST_NEW_USER
    assert new_user.any() and (rows_of(batch, "user")[new_user, 0] == offsets["user"]["user"]).all()
    cold = batch["item_id"] >= FIRST_COLD_ITEM
    assert cold.any() and (rows_of(batch, "item")[cold, 0] == offsets["item"]["item"]).all()


def test_ids_seen_fewer_times_than_asked_are_unknown(tiny, times_seen):
    """Evaluated and trained, and just as if training had not shown them at all."""
    least = 12
    often = {key: count for key, count in times_seen.items() if count >= least}
    assert 0 < len(often) < len(times_seen)
    for key in (None, KEYS[0]):
        batch = make_builder(tiny, unknown_below=least)(ALL_ROWS, buckets=SMALL, key=key)
        for row, user in zip(rows_of(batch, "user"), tiny.rows["user"], strict=True):
            np.testing.assert_array_equal(row, expected_rows(often, "user", group_ids(tiny, "user", user)))
        for row, item in zip(rows_of(batch, "item"), batch["item_id"], strict=True):
            np.testing.assert_array_equal(row, expected_rows(often, "item", group_ids(tiny, "item", item)))


def test_item_is_known_unless_its_own_id_stands_for_unknown(tiny, batch, times_seen):
    seen = [("item", "item", i + 2) in times_seen for i in batch["item_id"]]
    np.testing.assert_array_equal(batch["item_is_known"], seen)
    replaced = make_builder(tiny, floor={"item": 0.5})(ALL_ROWS, buckets=SMALL, key=KEYS[0])
    is_unknown = rows_of(replaced, "item")[:, 0] == FIELDS.offsets()["item"]["item"]
    assert is_unknown.sum() > (~np.array(seen)).sum()
    np.testing.assert_array_equal(replaced["item_is_known"], ~is_unknown)


# Random replacement by `unknown`.


@pytest.mark.parametrize("floor", [{}, {"item": 0.4, "age": 0.3}], ids=["alpha", "alpha and floor"])
def test_replacement_follows_alpha_over_alpha_plus_n_and_the_floor(tiny, times_seen, floor):
    alpha, offsets = 8.0, FIELDS.offsets()
    builder = make_builder(tiny, alpha=alpha, floor=floor)
    rows = np.array([0, 40, 80, 120])
    kept = builder(rows, buckets=SMALL)
    count = np.zeros(FIELDS.num_rows)
    for key in KEYS:
        present = builder(rows, buckets=SMALL, key=key)["row_id"]
        count[present[present < FIELDS.num_rows]] += 1
    unknown = {row for group in offsets.values() for row in group.values()}
    for group, fields in FIELDS.groups():
        for field in fields:
            for i in range(UNKNOWN + 1, field.size):
                row = offsets[group][field.name] + i - 1
                if row not in kept["row_id"] or row in unknown or group == "event":
                    continue
                p = max(alpha / (alpha + times_seen[group, field.name, i]), floor.get(field.name, 0))
                deviation = np.sqrt(p * (1 - p) / len(KEYS))
                assert abs(1 - count[row] / len(KEYS) - p) < 5 * deviation, (field.name, i)


def test_replacement_leaves_padding_unknown_and_event_rows_alone(tiny):
    builder = make_builder(tiny, alpha=1e9)
    batch = builder(ALL_ROWS, buckets=SMALL, key=KEYS[0])
    plain = builder(ALL_ROWS, buckets=SMALL)
    for name in ("item", "user", "context"):
        np.testing.assert_array_equal(rows_of(batch, name) == 0, rows_of(plain, name) == 0)
        unknown = list(FIELDS.offsets()[name].values())
        assert np.isin(rows_of(batch, name), [0, *unknown]).all()  # certain replacement: nothing else is left
    np.testing.assert_array_equal(rows_of(batch, "history"), rows_of(plain, "history"))


def test_replaced_ids_go_to_the_unknown_row_of_their_own_field(tiny):
    builder = make_builder(tiny, alpha=5.0)
    plain, replaced = builder(ALL_ROWS, buckets=SMALL), builder(ALL_ROWS, buckets=SMALL, key=KEYS[1])
    for group in ("item", "user", "context"):
        unknown = np.array([FIELDS.offsets()[group][name] for name in field_of_column(group)])
        before, after = rows_of(plain, group), rows_of(replaced, group)
        assert (after != before).any() and (after == before).any()
        np.testing.assert_array_equal(np.where(after == before, before, unknown), after)


def test_one_decision_per_id_and_key(tiny):
    builder = make_builder(tiny, alpha=5.0)
    plain, replaced = builder(ALL_ROWS, buckets=SMALL), builder(ALL_ROWS, buckets=SMALL, key=KEYS[2])
    for group in ("item", "user", "context"):
        pairs = set(zip(rows_of(plain, group).ravel(), rows_of(replaced, group).ravel(), strict=True))
        assert len(pairs) == len({before for before, _ in pairs})
    # ... whatever else is in the batch, and anew for another key.
    few = builder(np.arange(7), buckets=SMALL, key=KEYS[2])
    np.testing.assert_array_equal(rows_of(few, "user"), rows_of(replaced, "user")[:7])
    assert (rows_of(builder(ALL_ROWS, buckets=SMALL, key=KEYS[3]), "user") != rows_of(replaced, "user")).any()


def test_evaluation_replaces_nothing(tiny, batch):
    certain = make_builder(tiny, alpha=1e9, floor={"user": 1.0})(ALL_ROWS, buckets=SMALL)
    for name, value in batch.items():
        np.testing.assert_array_equal(certain[name], value)


# All slots, buckets, features on the host.


def test_all_slots_have_the_same_items_rows_and_histories(tiny, batch):
    rows = np.arange(50)
    plain = make_builder(tiny, alpha=5.0)(rows, buckets=SMALL, key=KEYS[0])
    slots = make_builder(tiny, alpha=5.0, distinct_items=False)(rows, buckets=SMALL, key=KEYS[0])
    assert len(slots["item_id"]) == len(rows) * (1 + T)
    assert len(np.unique(np.c_[slots["item_position"], slots["history_position"]])) == len(rows) * (1 + T)
    for name in ("item_position", "history_position"):
        np.testing.assert_array_equal(slots["item_id"][slots[name]], plain["item_id"][plain[name]])
        np.testing.assert_array_equal(rows_of(slots, "item")[slots[name]], rows_of(plain, "item")[plain[name]])
        np.testing.assert_array_equal(slots["item_is_known"][slots[name]], plain["item_is_known"][plain[name]])
    for name in ("history_mask", "label", "weight"):
        np.testing.assert_array_equal(slots[name], plain[name])
    for name in ("user", "context", "history"):
        np.testing.assert_array_equal(rows_of(slots, name), rows_of(plain, name))
    # Losses per item see each item once here too.
    np.testing.assert_array_equal(np.sort(slots["item_id"][slots["item_mask"]]), plain["item_id"][plain["item_mask"]])


@pytest.mark.parametrize("usual", [1, 64, 200, 4096])
def test_buckets_always_hold_the_need_and_are_few(usual):
    sizes = [Buckets(usual, usual).fit(usual, need) for need in range(1, 5000)]
    assert all(size >= need for need, size in enumerate(sizes, start=1))
    assert sizes[0] == usual and sizes == sorted(sizes)
    assert len(set(sizes)) <= 2 + np.log(5000 / usual) / np.log(1.25)


def test_a_batch_with_more_than_the_usual_bucket_loses_nothing(builder, batch):
    tight = builder(ALL_ROWS, buckets=Buckets(4, 8))
    for name in ("item_position", "history_position"):
        np.testing.assert_array_equal(tight["item_id"][tight[name]], batch["item_id"][batch[name]])
    for name in ("item", "user", "context", "history"):
        index = slice(None) if name != "item" else tight["item_mask"]
        other = slice(None) if name != "item" else batch["item_mask"]
        np.testing.assert_array_equal(rows_of(tight, name)[index], rows_of(batch, name)[other])


def test_measured_buckets_hold_the_samples(builder):
    samples = [np.arange(start, start + 100) for start in (0, 100, 200)]
    buckets = builder.measure_buckets(samples)
    for rows in samples:
        batch = builder(rows, buckets=buckets)
        assert len(batch["item_id"]) == buckets.items and len(batch["row_id"]) == buckets.rows


def test_features_on_the_host_are_those_of_the_distinct_items(tiny):
    features = tuple(tiny.dataset.features(name) for name in ("image", "text"))
    batch = make_builder(tiny, host_features=features)(ALL_ROWS, buckets=SMALL)
    for feature_set in features:
        np.testing.assert_array_equal(batch["tokens"][feature_set.name], feature_set.tokens[batch["item_id"]])
        np.testing.assert_array_equal(batch["tokens_mask"][feature_set.name], feature_set.mask[batch["item_id"]])


@pytest.mark.parametrize("size", [1000, Distinct.SCAN_LIMIT + 1000], ids=["flags", "last seen"])
def test_distinct_equals_numpy_unique(size):
    distinct, random = Distinct(size), np.random.default_rng(0)
    for count in (1, 50, 3000):  # the scratch arrays are used again
        values = random.integers(size - 900, size, count)
        found, position = distinct(values)
        expected, inverse = np.unique(values, return_inverse=True)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(position, inverse)


def test_the_user_without_events_has_an_empty_history(tiny, batch):
    rows = tiny.rows["user"] == USER_WITHOUT_EVENTS
    assert rows.any() and not batch["history_mask"][rows].any()


def test_a_dataset_without_events_has_empty_histories(tmp_path):
    tiny = write_tiny(tmp_path / "no_events", num_events=0)
    batch = make_builder(tiny)(ALL_ROWS, buckets=SMALL)
    assert not batch["history_mask"].any()
    np.testing.assert_array_equal(batch["item_id"][batch["item_mask"]], np.unique(tiny.rows["item"]))
