"""Tokenized texts, cut and counted, and padded lengths that cost the least."""

import itertools

import numpy as np
import pytest

from em3_jax.data.texts import TextBatches, Tokenized, bucket_lengths, load_tokenizer
from tests import raw_items
from tests.conftest import user_error

TEXTS = ["red", "", "red green blue car house", "世 界", "unheard of", "red car " * 30]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(raw_items.write_bert(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("max_length", [3, 6, 100])
def test_ids_are_those_of_the_tokenizer_and_cuts_are_counted(tokenizer, max_length):
    tokenized = Tokenized(tokenizer, TEXTS, max_length)
    whole = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert tokenized.truncated == sum(len(ids) > max_length for ids in whole)
    assert tokenized.length.tolist() == [min(len(ids), max_length) for ids in whole]
    order = np.array([3, 5, 0])
    ids, mask = tokenized.pad(order, (5, max_length), padding_id=9)
    for row, text in enumerate(order):
        expected = tokenizer(TEXTS[text], truncation=True, max_length=max_length)["input_ids"]
        assert ids[row, mask[row]].tolist() == expected
    assert (ids[~mask] == 9).all() and not mask[3:].any()


def test_a_tokenizer_in_python_counts_too(tokenizer):
    class InPython:
        def __call__(self, texts, **settings):
            encoded = tokenizer(texts, **settings)
            encoded._encodings = None
            return encoded

    assert Tokenized(InPython(), TEXTS, 4).truncated == Tokenized(tokenizer, TEXTS, 4).truncated == 2


def test_bucket_lengths_cost_the_least_of_all():
    random = np.random.default_rng(0)
    for _ in range(20):
        length, cost = random.integers(1, 50, 40), int(random.integers(0, 300))
        sizes = sorted({-(-int(n) // 8) * 8 for n in length})

        def tokens(buckets, length=length, cost=cost):
            return sum(min(b for b in buckets if b >= n) for n in length) + cost * len(buckets)

        every = [c for k in range(len(sizes)) for c in itertools.combinations(sizes, k + 1) if c[-1] == sizes[-1]]
        assert tokens(bucket_lengths(length, 8, cost)) == min(map(tokens, every))


@pytest.mark.parametrize("multiple", [1, 4])
def test_batches_hold_every_text_once_with_little_padding(tokenizer, multiple):
    random = np.random.default_rng(0)
    texts = [" ".join(["red"] * int(n)) for n in random.integers(3, 249, 4000)]
    tokenized = Tokenized(tokenizer, texts, 512)
    order = np.flatnonzero(random.random(4000) < 0.9)
    source = TextBatches(tokenized, texts, order, batch_tokens=2048, longest=512, padding_id=0, multiple=multiple)
    members = [source.members(k) for k in range(len(source))]
    assert sorted(np.concatenate(members).tolist()) == order.tolist()
    shapes = set()
    for k, some in enumerate(members):
        ids, mask = source[k]["inputs"]
        shapes.add(ids.shape)
        assert ids.shape[0] % multiple == 0 and ids.size <= 2048 + multiple * ids.shape[1]
        assert mask.sum(axis=1)[: len(some)].tolist() == tokenized.length[some].tolist()
    assert {shape[1] for shape in shapes} == set(source.lengths) and len(shapes) == len(source.lengths)
    assert source.padding() < 0.1
    naive = 1 - tokenized.length[order].mean() / tokenized.length[order].max()
    assert source.padding() < naive / 4


def test_lengths_never_pass_the_encoders_positions(tokenizer):
    texts = ["red " * 30]
    tokenized = Tokenized(tokenizer, texts, 12)
    source = TextBatches(tokenized, texts, np.arange(1), batch_tokens=64, longest=12, padding_id=0, multiple=1)
    assert source[0]["inputs"][0].shape == (1, 12)


def test_nothing_to_encode(tokenizer):
    source = TextBatches(
        Tokenized(tokenizer, [], 12), [], np.arange(0), batch_tokens=64, longest=12, padding_id=0, multiple=1
    )
    assert len(source) == 0


def test_folders_without_a_tokenizer(tmp_path):
    raw_items.write_bert(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    assert "no tokenizer" in user_error(load_tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read" in user_error(load_tokenizer, tmp_path)
