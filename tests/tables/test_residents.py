"""Ids that come and go, against dictionaries: who has a row, who leaves, and what comes back, killed anywhere."""

import shutil

import jax
import numpy as np
import pyarrow as pa
import pytest

from em3_jax.core.errors import UserError
from em3_jax.tables import id_keys, residents, swaps
from em3_jax.tables.key_index import KeyIndex
from em3_jax.tables.residents import Residents
from em3_jax.tables.sketch import CountMin
from em3_jax.tables.spill import Spill
from em3_jax.training.original_ids import text_block

ROWS, WIDTH = 48, 3


def test_an_index_is_a_dictionary_also_of_keys_with_one_hash():
    random, words, index, known = np.random.default_rng(0), np.zeros(20_000, np.int64), KeyIndex(), {}
    hashes = lambda keys: (keys % 50).astype(np.uint64) << np.uint64(40)  # noqa: E731
    find = lambda keys: index.find(hashes(keys), lambda at, which: words[at] == keys[which])  # noqa: E731
    for start in range(0, 3000, 150):
        keys = random.permutation(5000)[:300] - 2500
        assert find(keys).tolist() == [known.get(int(key), -1) for key in keys]
        gone = np.array([key for key in keys if int(key) in known], np.int64)
        index.remove(hashes(gone), np.array([known.pop(int(key)) for key in gone], np.int64))
        new = np.setdiff1d(keys, gone)[:150]
        words[start : start + len(new)] = new
        index.add(hashes(new), start + np.arange(len(new)))
        known |= {int(key): start + k for k, key in enumerate(new)}
        assert len(index) == len(known)
    with pytest.raises(KeyError):
        index.remove(hashes(np.array([9999])), np.array([0]))


def test_texts_are_compared_byte_by_byte_and_found_again(tmp_path):
    words = ["", "a", "b", "ab", "ba", "é", "a\x00", "x" * 300, *map(str, range(500))]
    block = text_block(pa.array(words, pa.large_string()))
    assert len(set(block.hashes().tolist())) == len(words)
    for one_hash in (False, True):
        folder = tmp_path / str(one_hash)
        folder.mkdir()
        hashes = block.hashes() * np.uint64(not one_hash)
        texts = id_keys.Texts(folder)
        some = np.arange(0, len(words), 2)
        assert (texts.find(block, hashes) == -1).all()
        assert texts.add(block.take(some), hashes[some]).tolist() == list(range(len(some)))
        found = texts.find(block, hashes)
        assert found[some].tolist() == list(range(len(some))) and (found[1::2] == -1).all()
        texts.flush()
    again = id_keys.Texts(tmp_path / "False", 100)
    assert again.find(block, block.hashes())[some[:102]].tolist() == [*range(100), -1, -1]


def test_a_sketch_counts_never_too_few_until_it_is_halved():
    sketch, true, random = CountMin(1 << 12), np.zeros(400, int), np.random.default_rng(1)
    for _ in range(30):
        some = np.unique(random.zipf(1.5, 60) % 400)
        true[some] += 1
        found = sketch.add(some.astype(np.uint64))
        assert (found >= true[some]).all() and (found == true[some]).mean() > 0.9
    before = sketch.counters.copy()
    sketch.add(np.arange(1 << 12).astype(np.uint64) + 10_000)
    assert (sketch.counters >= before >> 1).all() and sketch.counters[:, :].max() <= before.max()


class Dictionary:
    """A table with `Residents`, its rows as numbers that name id and uses, and what a dictionary says of them."""

    def __init__(self, folder, evict="lfu", admit_after=1, saved=None):
        self.spill = Spill(folder, 8, *(saved["spill"] if saved else ()))
        self.own = Residents(ROWS, admit_after, evict, self.spill)
        self.table, self.true, self.seen = np.zeros(ROWS, np.int64), {}, {}
        if saved:
            self.own.load(saved["own"])
            self.table, self.true, self.seen = saved["table"].copy(), dict(saved["true"]), dict(saved["seen"])

    def step(self, ids):
        own, table = self.own, self.table
        own.begin()
        score = {
            "lfu": lambda r: (own.count[r], own.last[r]),
            "lru": lambda r: own.last[r],
            "age": lambda r: own.born[r],
        }
        scores = {int(own.word[r]): score[own._evict](r) for r in np.flatnonzero(own.held)}
        rows, moves = own.call(id_keys.of_numbers(1, ids), np.full(len(ids), -1), learn=True)
        left = {int(own.spill.heads(place)["word"]) for place in moves.out_place}
        self.spill.write(moves.out_place, table[moves.out].view(np.uint8).reshape(-1, 8))
        table[moves.back] = self.spill.read(moves.back_place).view(np.int64)[:, 0]
        table[moves.born] = 0
        assert not left & set(ids.tolist()), "an id of the batch has left"
        if left and residents.AHEAD > ROWS:
            stayed = [value for id_, value in scores.items() if id_ not in left and id_ not in set(ids.tolist())]
            assert all(scores[id_] <= value for id_ in left for value in stayed), "another should have left"
        for id_, row in zip(ids.tolist(), rows.tolist(), strict=True):
            self.seen[id_] = self.seen.get(id_, 0) + 1
            assert (row >= 0) == (id_ in self.true or self.seen[id_] >= own._admit_after)
            if row >= 0:
                assert table[row] == self.true.setdefault(id_, 0), "a row came back as another"
                table[row] = self.true[id_] = self.true[id_] + 1000 * id_ + 1
        assert len(set(rows[rows >= 0].tolist())) == (rows >= 0).sum() and not (rows == 0).any()
        assert len(own) + len(self.spill) == len(self.true)

    def save(self):
        own = {name: array.copy() for name, array in self.own.state().items()}
        self.spill.flush()
        saved = {"spill": (self.spill.era, self.spill.count), "own": own, "table": self.table.copy()}
        self.spill.saved()
        return saved | {"true": dict(self.true), "seen": dict(self.seen)}


def births_and_deaths(steps, seed=0):
    random = np.random.default_rng(seed)
    for step in range(steps):
        yield np.unique(np.concatenate([random.integers(0, 30, 8), random.integers(step, step + 70, 10)]))


@pytest.mark.parametrize("evict", residents.EVICT)
def test_rows_come_back_as_they_left_and_those_leave_that_should(tmp_path, monkeypatch, evict):
    monkeypatch.setattr(residents, "AHEAD", 1 << 20)  # one victim at a time
    made = Dictionary(tmp_path, evict)
    for step, ids in enumerate(births_and_deaths(250)):
        made.step(ids)
        if step % 20 == 19:
            made.save()
    own = made.own
    assert own.returned > 100 and own.evicted - own.returned == len(made.spill) and len(made.true) == own.admitted
    assert made.spill.count < own.evicted / 2, "places are used again"


def test_an_id_is_admitted_when_it_was_seen_often_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(residents, "PER_ROW", 1000)  # not to be halved here
    made = Dictionary(tmp_path, "lru", admit_after=3)
    for ids in births_and_deaths(120):
        made.step(ids)
    assert 0 < made.own.admitted < len(made.seen) and made.own.returned


def test_killed_at_any_moment_it_goes_on_from_either_of_two_checkpoints(tmp_path):
    (tmp_path / "files").mkdir()
    made, kept, batches = Dictionary(tmp_path / "files"), [], list(births_and_deaths(160, seed=3))
    for step, ids in enumerate(batches):
        made.step(ids)
        if step % 8 == 7:
            kept = [*kept[-1:], (step + 1, made.save())]
        if step > 24 and step % 13 == 0:  # killed here: what the files are now has to do for both
            for first, saved in kept:
                shutil.copytree(tmp_path / "files", tmp_path / f"{step}-{first}")
                again = Dictionary(tmp_path / f"{step}-{first}", saved=saved)
                for k in range(first, step + 1):
                    again.step(batches[k])
                    if k % 8 == 7:
                        again.save()
                assert again.true == made.true and (again.table == made.table).all()
                for name, array in again.own.state().items():
                    assert array.tobytes() == made.own.state()[name].tobytes(), name


def test_too_few_rows_for_a_batch_and_a_file_that_was_cut_are_a_line(tmp_path):
    made = Dictionary(tmp_path)
    with pytest.raises(UserError, match=r"capacity=48: a batch names more ids .*; give 49 or more"):
        made.step(np.arange(ROWS))
    made = Dictionary(tmp_path)
    for ids in births_and_deaths(60):
        made.step(ids)
    saved = made.save()
    for name in ("rows", "heads"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:100])
        with pytest.raises(UserError, match=rf"{name}: has \d+ of the \d+ rows .*it was cut; restore the file"):
            Dictionary(tmp_path, saved=saved)
        (tmp_path / name).write_bytes(whole)


def test_tables_on_a_device_move_with_their_slots_bit_for_bit(tmp_path):
    """More rows at once than one call moves, among them NaN, -0 and numbers that are not normal."""
    capacity, count = 3000, 1500
    bits = np.random.default_rng(5).integers(0, 1 << 32, (capacity, WIDTH + 2), np.uint32)
    words = lambda tables: np.concatenate(  # noqa: E731
        [np.asarray(x).reshape(len(x), -1).view(np.uint32) for x in jax.tree.leaves(tables)], axis=1
    )
    whole = {"embedding": bits[:, :WIDTH].copy().view(np.float32), "slots": {
        "count": bits[:, WIDTH].copy().view(np.float32), "uses": bits[:, WIDTH + 1].copy().view(np.int32)}}  # fmt: skip
    tables = jax.tree.map(jax.numpy.asarray, whole)
    expected = words(tables)
    spill = Spill(tmp_path, swaps.row_bytes(tables))
    fresh = lambda n, birth: jax.tree.map(lambda x: np.zeros((n, *x.shape[1:]), x.dtype), whole)  # noqa: E731
    moved, none = swaps.Swaps(tables, spill, fresh), np.zeros(0, np.int64)
    out = np.random.default_rng(6).permutation(capacity)[:count]
    places = spill.leave(np.zeros(count, residents.HEAD))
    tables = moved(tables, residents.Moves(out, places, none, none, out, 0))
    assert not words(tables)[out].any()
    back = np.random.default_rng(7).permutation(count)
    tables = moved(tables, residents.Moves(none, none, out[back], places[back], none, 0))
    assert words(tables).tobytes() == expected.tobytes()
