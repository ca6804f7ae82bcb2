"""The id index against a dictionary: ids of every type, found, not found, refused."""

import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em3_jax.core.values import canonical
from em3_jax.serving import id_index
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
    same = {canonical(one): row for row, one in reversed([*enumerate(ids)])}
    expected = [place.get(one, same.get(canonical(one) or 0, -1)) for one in asked]
    assert index.find(asked).tolist() == expected
    rows = np.arange(len(ids))
    assert index.ids(rows) == ids


@settings(max_examples=40, deadline=None)
@given(st.sets(TEXTS, min_size=1, max_size=200), st.lists(st.integers(1, 200), max_size=8), st.randoms())
def test_one_that_grows_is_the_same_in_whatever_pieces_and_what_it_gave_stays(ids, cuts, random):
    ids = sorted(ids)
    random.shuffle(ids)
    whole, pieces, given_ = id_index.GrowingIndex(), id_index.GrowingIndex(), []
    whole.add(ids)
    ends = sorted({min(cut, len(ids)) for cut in cuts} | {len(ids)})
    for first, end in zip([0, *ends], ends, strict=False):
        pieces.add(ids[first:end])
        given_.append((end, pieces.index))
    assert np.array_equal(whole.index.slots, pieces.index.slots) and np.array_equal(
        whole.index.words, pieces.index.words
    )
    for end, index in given_:
        assert index._rows(*id_index.encode(ids, True, index.words.shape[1])).tolist() == [
            *range(end),
            *[-1] * (len(ids) - end),
        ]


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


WAYS = [
    5, 5.0, "5", "5.0", "+5.00", np.int8(5), np.uint64(5), np.float16(5), np.float64(5), decimal.Decimal("5.00"), b"5",
]  # fmt: skip


@pytest.mark.parametrize("ids", [[7, 5, -3], ["7", "5", "-3"], ["7.0", "5.0", "x"], ["true", "5.00"]])
def test_an_id_is_found_however_it_is_written_in_the_index_and_in_the_request(ids):
    index = id_index.build(ids)
    assert [int(index.find([one])[0]) for one in WAYS] == [1] * len(WAYS)
    assert index.find(WAYS).tolist() == [1] * len(WAYS)
    for kind in (np.int32, np.uint8, np.float32, np.float64, object, str):
        assert index.find(np.array([5, 6, 5], kind)).tolist() == [1, -1, 1]
    others = [5.5, "5.50", "05", "5e0", True, np.bool_(False), float("inf"), 1 << 80, "5" * 5000, ""]
    found = index.find(others).tolist()
    assert found == [0 if ids[0] == one else -1 for one in map(canonical, others)]


def test_truth_values_and_names_that_look_like_numbers():
    index = id_index.build(["True", "007", "1.10", "NA"])
    asked = [True, "true", "TRUE", np.True_, 7, "007", 1.1, "1.10", "NA", "false"]
    assert index.find(asked).tolist() == [0, 0, 0, 0, -1, 1, -1, 2, 3, -1]
    assert id_index.build([0, 1]).find([True, False, 1]).tolist() == [-1, -1, 1]


def test_of_ids_that_differ_in_their_form_alone_each_is_found_by_its_own():
    index = id_index.build(["5.0", "5", "6.00", "6.0"])  # as a dataset prepared long ago may have them
    assert index.find(["5.0", "5", 5, "5.00", "6.0", "6.00", 6]).tolist() == [0, 1, 1, 1, 3, 2, 2]


def test_large_integers_keep_their_bits_beside_numbers_of_other_types():
    index = id_index.build([(1 << 60) + 1, 1 << 60, 2])
    assert index.find([(1 << 60) + 1, 2.0]).tolist() == [0, 2]
    assert index.find([(1 << 60) + 1, True, "2"]).tolist() == [0, -1, 2]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([None], "an id is missing (None); leave it out"),
        (np.array([1.0, np.nan]), "an id is missing (nan); leave it out"),
        ([1, [2]], "an id is a number or a text, not list as '[2]'"),
        ([{"id": 2}], "an id is a number or a text, not dict as '{'id': 2}'"),
        (np.array([[1, 2]]), "ids have shape (1, 2); give a list of them, [n]"),
        (5, "ids have shape (); give a list of them, [n]"),
        ("item-1", "ids have shape (); give a list of them, [n]"),
    ],
)
def test_what_is_no_id_is_refused(asked, words):
    for ids in ([1, 2], ["1", "2"]):
        assert words in user_error(id_index.build(ids).find, asked)


def test_an_id_that_ends_in_a_zero_byte_is_refused():
    assert "zero byte" in user_error(id_index.build, ["a", "a\0"])
