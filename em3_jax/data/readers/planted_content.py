"""What planted items show of their latent vectors: noisy tokens, as an encoder's, and raw words.

Tokens: the module `synthetic` says how. Title: 5 to 12 of WORDS words; tags: 4 of them. Each is drawn with P(word | z) ~
exp(MEANING <d_word, z>), d_word a random unit vector; a quarter of the words of a title say nothing, drawn evenly.
Pictures: see `planted_pictures`.
"""

import numpy as np
from tqdm import tqdm

NOISE_LOW, NOISE_HIGH, TITLE_CARDS = 0.1, 0.5, 0.25
WORDS, TITLE, TAGS, MEANING, EMPTY_WORDS = 300, 12, 4, 6.0, 0.25
RESERVED = 2  # padding and unknown, as of every tokenizer
_CHUNK = 1 << 12


def tokens(
    random: np.random.Generator, shown: np.ndarray, count: int, width: int, missing: float
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [I, N, D] f16, mask [I, N]) of a modality that shows the content `shown` [I, k]; see `synthetic`."""
    items, latent = shown.shape
    matrix = random.standard_normal((latent, width))
    title_card = random.standard_normal(width)
    result = np.empty((items, count, width), np.float16)
    for start in tqdm(range(0, items, 1 << 14), desc="tokens", unit="chunk", disable=None):
        content = shown[start : start + (1 << 14), None, :]  # [i, 1, k]
        shape = (len(content), count, 1)
        is_card = random.random(shape) < TITLE_CARDS
        noise = random.standard_normal((len(content), count, width)) * np.where(
            is_card, 1, random.uniform(NOISE_LOW, NOISE_HIGH, shape)
        )
        result[start : start + len(content)] = np.where(is_card, title_card, content @ matrix) + noise
    mask = np.repeat(random.random((items, 1)) >= missing, count, axis=1)
    return np.where(mask[:, :, None], result, 0), mask


def words(random: np.random.Generator, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict]:
    """(word ids [I, L, 1] i32, mask [I, L], manifest) of items with latent vectors `shown` [I, k]."""
    items, latent = len(shown), shown.shape[1]
    meaning = random.standard_normal((WORDS, latent), dtype=np.float32)
    meaning /= np.linalg.norm(meaning, axis=1, keepdims=True)
    length = random.integers(5, TITLE + 1, items)
    total = TITLE + TAGS
    ids = np.zeros((items, total, 1), np.int32)
    for start in range(0, items, _CHUNK):
        part = shown[start : start + _CHUNK]
        weight = np.exp(MEANING * part @ meaning.T, dtype=np.float64)
        cumulative = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)  # [i, WORDS]
        drawn = random.random((len(part), total))
        word = np.stack([np.searchsorted(row, u) for row, u in zip(cumulative, drawn, strict=True)])
        empty = random.random((len(part), total)) < EMPTY_WORDS
        empty[:, TITLE:] = False
        word = np.where(empty, random.integers(0, WORDS, word.shape), np.minimum(word, WORDS - 1))
        ids[start : start + _CHUNK, :, 0] = word + RESERVED
    mask = np.concatenate([np.arange(TITLE) < length[:, None], np.ones((items, TAGS), bool)], axis=1)
    facts = {"raw": {"fields": {"title": TITLE, "tags": TAGS}, "vocabulary": WORDS + RESERVED}}
    return np.where(mask[..., None], ids, 0), mask, {"encoder": "planted", "kind": "text"} | facts
