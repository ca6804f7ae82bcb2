"""The id index against a dictionary: integers and texts of every kind, found, not found, refused."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em3_jax import id_index
from tests.conftest import user_error

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
TEXTS = st.text(max_size=20).filter(lambda text: "\0" not in text and "\ud800" > max(text, default="") < "\ue000")


@settings(max_examples=40, deadline=None)
@given(st.one_of(st.sets(INTEGERS, min_size=1, max_size=60), st.sets(TEXTS, min_size=1, max_size=60)), st.data())
def test_as_a_dictionary(ids, data):
    ids = sorted(ids)
    index, place = id_index.build(ids), {one: row for row, one in enumerate(ids)}
    kind = TEXTS if isinstance(ids[0], str) else INTEGERS
    asked = data.draw(st.lists(st.one_of(st.sampled_from(ids), kind), max_size=80))
    assert index.find(asked).tolist() == [place.get(one, -1) for one in asked]
    rows = np.arange(len(ids))
    assert index.ids(rows) == ids


@pytest.mark.parametrize("ids", [np.arange(5000), np.arange(5000) << 40, np.arange(5000) * 3 - 7000])
def test_ids_that_follow_a_pattern_are_found_in_few_rounds(ids):
    index = id_index.build(ids)
    assert (index.find(ids[::-1]) == np.arange(5000)[::-1]).all()
    assert (index.find(ids + 1)[ids + 1 > ids.max()] == -1).all()
    runs = np.diff(np.flatnonzero(np.append(index.slots, id_index.EMPTY) == id_index.EMPTY))
    assert runs.max() < 100  # the longest cluster: no probing is longer


def test_a_longer_text_is_not_its_beginning_and_arrays_of_numpy_are_taken():
    index = id_index.build(["abcdefgh", "b"])
    assert index.find(["abcdefghi", "abcdefg", "abcdefgh"]).tolist() == [-1, -1, 0]
    assert index.find(np.array(["b", "abcdefgh", "cc"])).tolist() == [1, 0, -1]
    assert index.find(np.array([b"b", b"x" * 40])).tolist() == [1, -1]
    assert index.find([]).tolist() == []


def test_texts_however_they_are_given_are_found():
    texts = ["a", "ab" * 9, "é", "name-1"]
    index, other = id_index.build(texts), ["", "abc", "ab" * 9 + "c", "ü", "\ud800"]
    asked, expected = [*texts, *other], [*range(4), *[-1] * 5]
    given = [asked, tuple(asked), np.array(asked), np.array(asked, object), np.array(asked)[::2].repeat(1)]
    for one, rows in zip(given, [expected] * 4 + [expected[::2]], strict=True):
        assert index.find(one).tolist() == rows
    assert index.find(np.array(asked[:-1], np.dtypes.StringDType())).tolist() == expected[:-1]
    assert index.find([b"a", "name-1", b"b"]).tolist() == [0, 3, -1]
    assert index.find(pa.array(asked[:-1])).tolist() == expected[:-1]


def test_integers_beyond_64_bits_are_no_negative_ones():
    index = id_index.build([-1, 1 - (1 << 63), 5])
    assert index.find(np.array([(1 << 64) - 1, (1 << 63) + 1, 5], np.uint64)).tolist() == [-1, -1, 2]


@pytest.mark.parametrize(
    ("ids", "asked", "words"),
    [
        ([1, 2], ["1"], "ids are integers here, not text as '1'"),
        ([1, 2], [1.5], "ids are integers here, not float64 as '1.5'"),
        ([1, 2], [True], "ids are integers here, not bool as 'True'"),
        ([1, 2], [None], "ids are integers here, not NoneType as 'None'"),
        ([1, 2], [1 << 70], "ids are integers of 64 bits here, not int as '1180591620717411303424'"),
        (["1", "2"], [1], "ids are texts here, not int as '1'"),
        (["1", "2"], np.array([1.5]), "ids are texts here, not float64 as '1.5'"),
        (["1", "2"], ["1", 2], "ids are texts here, not int as '2'"),
        (["1", "2"], np.array(["1", None], object), "ids are texts here, not NoneType as 'None'"),
    ],
)
def test_ids_of_the_other_type_are_refused(ids, asked, words):
    assert words in user_error(id_index.build(ids).find, asked)


def test_an_id_that_ends_in_a_zero_byte_is_refused():
    assert "zero byte" in user_error(id_index.build, ["a", "a\0"])
