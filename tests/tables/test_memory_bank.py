"""The memory bank: what is read, what is written, and who is encoded first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.tables import memory_bank, packing

V, D, S = 50, 4, 9
ITEMS = jnp.asarray([3, 7, 8, 11, 20, 21, 40, 41, 49])


def filled() -> memory_bank.Bank:
    random = np.random.default_rng(0)
    written = random.integers(-1, 5, V).astype(np.int32)
    vector = np.where(written[:, None] >= 0, random.normal(size=(V, D)), 0).astype(np.float32)
    return {"vector": jnp.asarray(vector), "written": jnp.asarray(written), "uses": jnp.asarray(written + 1)}


def test_a_write_changes_the_rows_it_names_and_no_other():
    bank = filled()
    stored = memory_bank.read(bank, ITEMS)
    fresh = jnp.asarray(np.random.default_rng(1).normal(size=(4, D)), jnp.float32)
    writes = memory_bank.Writes(
        position=jnp.asarray([1, 4, 6, 1]),
        mask=jnp.asarray([True, True, True, False]),
        vector=fresh,
        encoded=jnp.asarray([True, False, True, False]),
    )
    after = jax.jit(memory_bank.write)(bank, ITEMS, stored, writes, jnp.int32(17))
    expected = {name: np.array(array) for name, array in bank.items()}
    for row, item in ((0, 7), (2, 40)):
        expected["vector"][item], expected["written"][item] = fresh[row], 17
    for item in (7, 20, 40):  # also the one that was not encoded has been seen
        expected["uses"][item] += 1
    for name in bank:
        np.testing.assert_array_equal(after[name], expected[name], err_msg=name)


def test_an_empty_bank_has_nothing():
    stored = memory_bank.read(memory_bank.init(V, D), ITEMS)
    assert not stored.present.any() and not stored.vector.any()


def test_writing_a_donated_bank_copies_nothing_as_long_as_the_bank():
    """The temporaries of the compiled step do not hold the bank, whatever reads come besides the write."""
    length = 100_003

    def step(bank, ids, fresh):
        stored = memory_bank.read(bank, ids)
        writes = memory_bank.Writes(jnp.arange(4), jnp.ones(4, bool), fresh, jnp.ones(4, bool))
        return memory_bank.write(bank, ids, stored, writes, jnp.int32(1)), stored.vector.sum()

    bank = jax.eval_shape(lambda: memory_bank.init(length, D))
    compiled = jax.jit(step, donate_argnums=0).lower(bank, ITEMS, jnp.ones((4, D))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < length


def test_never_written_items_are_encoded_first_and_rare_ones_more_often():
    uses = jnp.asarray([0, 1, 1, 100, 100, 100, 0, 5, 5])
    written = jnp.where(uses > 0, 3, memory_bank.NEVER)
    stored = memory_bank.Stored(jnp.zeros((S, D)), written, uses)
    position, mask = jnp.asarray([8, 3, 0, 1, 4, 6, 6]), jnp.asarray([True] * 6 + [False])
    keys = jax.random.split(jax.random.key(0), 300)

    def order(key):
        drawn = jax.random.exponential(key, position.shape)
        return memory_bank.rank(stored, position, mask, drawn)

    orders = np.asarray(jax.vmap(order)(keys))
    assert all(set(order[:2]) == {2, 5} for order in orders)  # the items 0 and 6
    assert (orders[:, -1] == 6).all()  # padding
    third = np.bincount(orders[:, 2], minlength=7) / len(orders)
    # The next is drawn by weights 1/5, 1/100, 1, 1/100 of what is left.
    expected = np.array([0.2, 0.01, 0, 1, 0.01, 0, 0])
    np.testing.assert_allclose(third, expected / expected.sum(), atol=0.07)
    np.testing.assert_array_equal(orders[0], order(keys[0]))


def test_ids_beyond_the_bank_are_not_there_and_not_written():
    bank, items = filled(), jnp.asarray([3, V + 5])
    assert memory_bank.read(bank, items).present.tolist() == [bool(bank["written"][3] > memory_bank.NEVER), False]
    writes = memory_bank.Writes(jnp.asarray([0, 1]), jnp.ones(2, bool), jnp.ones((2, D)), jnp.ones(2, bool))
    after = memory_bank.write(bank, items, memory_bank.read(bank, items), writes, jnp.int32(9))
    changed = {
        int(row) for name in bank for row in np.flatnonzero((after[name] != bank[name]).reshape(V, -1).any(axis=1))
    }
    assert changed == {3}


@pytest.mark.parametrize("lanes", [0, 128])
def test_a_bank_that_is_dealt_out_is_read_whole_and_in_parts(lanes):
    """Ids beyond it were never written, be they too large or in what fills up a part."""
    plain, parts = filled(), 4
    form = packing.Form(parts, lanes, parts)
    bank = {name: packing.laid_out(table, form) for name, table in plain.items()}
    items = jnp.concatenate([ITEMS, jnp.asarray([V + 1, V + 1000])])
    expected, found = memory_bank.read(plain, items), memory_bank.read(bank, items)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    for device in range(parts):
        own = {name: _part(table, device, parts) for name, table in bank.items()}
        mine = ITEMS[ITEMS % parts == device]
        rows = jnp.concatenate([mine // parts, jnp.asarray([1 << 20])])
        found = memory_bank.read_part(own, rows)
        for one, other in zip(memory_bank.read(plain, mine), found, strict=True):
            np.testing.assert_array_equal(one, other[:-1])
        assert not found.present[-1]


def _part(table: packing.Rows, device: int, parts: int) -> packing.Rows:
    """What one device holds of a table."""
    return dataclasses.replace(table, lines=jnp.split(table.lines, parts)[device])


def test_rows_of_several_shards_may_name_an_item_twice():
    bank, items = filled(), jnp.asarray([3, 7, 3, 9])
    fresh = jnp.ones((2, D))
    writes = memory_bank.Writes(jnp.asarray([0, 2]), jnp.ones(2, bool), fresh, jnp.ones(2, bool))
    after = memory_bank.write(bank, items, memory_bank.read(bank, items), writes, jnp.int32(9))
    assert int(after["uses"][3]) == int(bank["uses"][3]) + 1
    np.testing.assert_array_equal(after["vector"][3], fresh[0])


def test_the_first_place_of_an_item_that_several_shards_name():
    item, mask = jnp.asarray([5, 9, 5, 2, 9, 5, 7, 7]), jnp.asarray([True, True, True, True, True, True, False, True])
    first = np.asarray(memory_bank.first_places(item, mask))
    assert first[np.asarray(mask)].tolist() == [0, 1, 0, 3, 1, 0, 7]


@pytest.mark.parametrize("p,q", [(100.0, 100.0), (20.0, 20.0), (60.0, 7.0), (12.5, 0.0), (33.3, 11.1)])
def test_a_sample_has_its_share_of_the_real_rows(p, q):
    order = jnp.asarray(np.random.default_rng(0).permutation(37))
    for count in range(38):
        drawn = jax.tree.map(np.asarray, memory_bank.sample(order, jnp.int32(count), p, q))
        trained, held = drawn.trained[drawn.trained_mask], drawn.held[drawn.held_mask]
        forward, backward = (-(-count * round(10 * percent) // 1000) for percent in (p, q))
        assert np.concatenate([trained, held]).tolist() == order[:forward].tolist()
        assert len(trained) == backward
    # Static sizes are those of the whole block, and no more than one beyond.
    assert len(drawn.trained) == backward and forward <= len(drawn.trained) + len(drawn.held) <= forward + 1
