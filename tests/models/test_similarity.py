"""similarity: cosines of mean tokens against a loop; and what masks hide has no say."""

import numpy as np

from em3_jax.models.similarity import TIERS, history_similarity, history_tiers, item_vectors

S, N, E, B, T = 7, 3, 5, 6, 4


def make():
    random = np.random.default_rng(0)
    tokens = random.standard_normal((S, N, E)).astype(np.float32)
    tokens_mask = random.random((S, N)) < 0.7
    tokens_mask[:, 0], tokens_mask[3] = True, False  # item 3 has no content
    candidate, history = np.array([0, 1, 2, 3, 4, 0], np.int32), random.integers(0, S, (B, T)).astype(np.int32)
    history[4, 1] = 3
    mask = random.random((B, T)) < 0.7
    mask[:, -1], mask[1] = True, False  # user 1 has no history
    history[5], mask[5] = 0, True  # a history of nothing but the candidate
    return tokens, tokens_mask, candidate, history, mask


def similarity(tokens, tokens_mask, *others):
    return np.asarray(history_similarity(item_vectors(tokens, tokens_mask), *others))


def naive(tokens, tokens_mask, candidate, history, mask):
    def vector(item):
        total = sum((tokens[item, n] for n in range(N) if tokens_mask[item, n]), np.zeros(E))
        length = np.sqrt((total**2).sum())
        return total / length if length else total

    result = np.zeros((B, 2))
    for b in range(B):
        found = [vector(candidate[b]) @ vector(history[b, t]) for t in range(T) if mask[b, t]]
        if found:
            result[b] = np.mean(found), np.max(found)
    return result


def test_mean_and_largest_cosine():
    arguments = make()
    result = similarity(*arguments)
    np.testing.assert_allclose(result, naive(*arguments), atol=1e-6)
    assert (result[[1, 3]] == 0).all(), "no history; a candidate without content"
    np.testing.assert_allclose(result[5], 1.0, atol=1e-6)


def test_masked_tokens_and_slots_have_no_say():
    tokens, tokens_mask, candidate, history, mask = make()
    other = np.where(tokens_mask[..., None], tokens, 1e30).astype(np.float32), np.where(mask, history, 6)
    before = similarity(tokens, tokens_mask, candidate, history, mask)
    after = similarity(other[0], tokens_mask, candidate, other[1], mask)
    np.testing.assert_array_equal(before, after)


def test_tiers_are_the_histogram_of_the_cosines():
    tokens, tokens_mask, candidate, history, mask = make()
    vectors = np.asarray(item_vectors(tokens, tokens_mask))
    expected = np.zeros((B, TIERS))
    for b in range(B):
        found = [vectors[candidate[b]] @ vectors[history[b, t]] for t in range(T) if mask[b, t]]
        for cosine in found:
            expected[b, min(int((cosine + 1) / 2 * TIERS), TIERS - 1)] += 1 / len(found)
    result = np.asarray(history_tiers(vectors, candidate, history, mask))
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert result[1].sum() == 0, "no history"
    assert result[5, -1] == 1, "a history of nothing but the candidate"
