"""From texts to batches of token ids of few lengths, with little padding."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.content import digest

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
LENGTH_MULTIPLE = 8
BUCKET_COST = 1024  # compiling for one more length costs about as much as encoding this many tokens
TEXTS_AT_ONCE = 16384  # texts are tokenized in parts of this many, so that memory follows the ids and not the objects


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a checkpoint folder.

    Raises:
      UserError: the folder has none, or it cannot be read.
    """
    from transformers import AutoTokenizer  # a second to import, which only extraction pays

    # Without any of its files transformers makes a tokenizer that knows no word.
    if not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder}: no tokenizer, looked for {', '.join(TOKENIZER_FILES)}; copy it from the checkpoint")
    try:
        return AutoTokenizer.from_pretrained(str(folder), use_fast=True)
    except Exception as error:  # transformers, tokenizers and sentencepiece each have their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason}); copy it again") from None


class Tokenized:
    """Token ids of many texts side by side.

    Args:
      tokenizer: see `load_tokenizer`.
      texts: [V] texts.
      max_length: longer ones are cut to this many tokens, special tokens included.

    Attributes:
      length: [V] i32 tokens of each.
      truncated: how many were cut.
    """

    def __init__(self, tokenizer: Any, texts: list[str], max_length: int):
        ids: list[np.ndarray] = []
        lengths: list[int] = []
        self.truncated = 0
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            part = texts[start : start + TEXTS_AT_ONCE]
            encoded = tokenizer(part, truncation=True, max_length=max_length, return_attention_mask=False)
            if encoded.encodings is not None:
                self.truncated += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            else:  # a tokenizer in Python keeps no record of what it cut
                whole = tokenizer(part, return_attention_mask=False)["input_ids"]
                self.truncated += sum(len(one) > max_length for one in whole)
            lengths += map(len, encoded["input_ids"])
            ids += [np.array(one, np.int32) for one in encoded["input_ids"]]
        self.length = np.array(lengths, np.int32)
        self._start = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])
        self._ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)

    def largest_id(self) -> int:
        return int(self._ids.max(initial=0))

    def pad(self, texts: np.ndarray, shape: tuple[int, int], padding_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(token ids [B, L] i32, mask [B, L]) of `texts` [b <= B], padded at the end; surplus rows are all padding."""
        length = np.zeros(shape[0], np.int64)
        length[: len(texts)] = self.length[texts]
        mask = np.arange(shape[1]) < length[:, None]
        token_ids = np.full(shape, padding_id, np.int32)
        position = np.arange(shape[1]) + np.pad(self._start[texts], (0, shape[0] - len(texts)))[:, None]
        token_ids[mask] = self._ids[position[mask]]
        return token_ids, mask


def bucket_lengths(length: np.ndarray, multiple: int = LENGTH_MULTIPLE, bucket_cost: int = BUCKET_COST) -> list[int]:
    """The padded lengths, ascending, for which padding and compilation together cost the fewest tokens.

    Args:
      length: [n] tokens of each text, at least one text.
      multiple: padded lengths are multiples of this.
      bucket_cost: of one more length, in tokens.
    """
    steps = -(-np.asarray(length) // multiple)
    sizes, counts = np.unique(steps, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])
    # best[j]: cost of the texts of the j smallest sizes; the last bucket holds sizes i .. j - 1, all padded to sizes[j - 1].
    best, cut = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, int)
    for j in range(1, len(sizes) + 1):
        cost = best[:j] + (before[j] - before[:j]) * sizes[j - 1] * multiple + bucket_cost
        cut[j] = int(np.argmin(cost))
        best[j] = cost[cut[j]]
    result, j = [], len(sizes)
    while j > 0:
        result.append(int(sizes[j - 1]) * multiple)
        j = cut[j]
    return result[::-1]


class TextBatches:
    """Batch k of the texts `order`, sorted by length; a source for `pipeline.batches`.

    Args:
      tokenized: all texts.
      texts: the texts themselves.
      order: [n] which of them to encode.
      batch_tokens: B x L of a batch, about.
      longest: padded lengths end here.
      padding_id: of the tokenizer.
      multiple: rows of a batch are a multiple of this (the number of devices).

    Attributes:
      lengths: the padded lengths in use.
    """

    def __init__(
        self,
        tokenized: Tokenized,
        texts: list[str],
        order: np.ndarray,
        *,
        batch_tokens: int,
        longest: int,
        padding_id: int,
        multiple: int,
    ):
        self._tokenized, self._texts, self._padding_id = tokenized, texts, padding_id
        length = tokenized.length[order]
        order = order[np.argsort(length, kind="stable")]
        self.lengths = [min(size, longest) for size in bucket_lengths(length)] if len(order) else []
        ends = np.searchsorted(np.sort(length), self.lengths, side="right")
        self._batches: list[tuple[np.ndarray, tuple[int, int]]] = []
        for size, start, end in zip(self.lengths, [0, *ends], ends, strict=False):
            count = -(-int(end - start) * size // batch_tokens)  # batches, all of the same number of rows
            rows = -(-int(end - start) // count)
            rows = -(-rows // multiple) * multiple
            for first in range(start, end, rows):
                self._batches.append((order[first : min(first + rows, end)], (rows, size)))

    def __len__(self) -> int:
        return len(self._batches)

    def members(self, k: int) -> np.ndarray:
        """Which texts batch k holds, in order of its rows."""
        return self._batches[k][0]

    def __getitem__(self, k: int) -> dict[str, Any]:
        """{"inputs": (token ids [B, L] i32, mask [B, L]), "digest": [b, 16] u8, "problems": [b] str, all empty}."""
        members, shape = self._batches[k]
        digests = np.stack([digest(self._texts[member].encode()) for member in members])
        inputs = self._tokenized.pad(members, shape, self._padding_id)
        return {"inputs": inputs, "digest": digests, "problems": [""] * len(members)}

    def padding(self) -> float:
        """Share of the tokens computed that are padding."""
        computed = sum(rows * length for _, (rows, length) in self._batches)
        real = sum(int(self._tokenized.length[members].sum()) for members, _ in self._batches)
        return 1 - real / max(computed, 1)


def hashed_words(texts: list[str], length: int, buckets: int) -> np.ndarray:
    """[n, length] i32 the first words of each text, lower case, as numbers in 1 .. buckets - 1; 0 where a text has no more.

    A word's number is a hash, so it stays the same whatever texts come later; two words may share one.
    """
    result = np.zeros((len(texts), length), np.int32)
    for row, text in enumerate(texts):
        words = text.lower().split()[:length]
        result[row, : len(words)] = [zlib.crc32(word.encode()) % (buckets - 1) + 1 for word in words]
    return result
