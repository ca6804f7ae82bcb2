#!/usr/bin/env bash
# tokenizers 0.23.3: WordPieceTrainer is not reproducible.
#
# Trained on the same texts with the same options, each process gets another vocabulary, with one
# thread too (RAYON_NUM_THREADS=1, TOKENIZERS_PARALLELISM=false) and whatever PYTHONHASHSEED is.
# Expected: the same input gives the same tokenizer; nothing in its options or documentation says
# that training draws at random.
#
# Cause, by what can be seen from outside: pieces that go on inside a word ("##x") are numbered in
# the order in which a hash table with a random seed yields the words, and merges that are equally
# frequent are settled by these numbers. Where all "##x" are among the special tokens, in a fixed
# order, the vocabulary is the same in each process (the second part below).
#
# Output seen (the digests differ each time):
#   tokenizers 0.23.3
#   plain: 5 vocabularies in 5 processes; of 500 pieces the first two share 482
#   "##x" as special tokens: 1 vocabulary in 5 processes
#   not reproducible, as described
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" tokenizers==0.23.3

cat >"$folder/vocabulary.py" <<'PYTHON'
"""Prints a digest of the trained vocabulary, then its pieces."""
import hashlib
import random
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

draw = random.Random(0)
letters = "abcdefghijklmnopqrstuvwxyz0123456789"
words = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(400)]
texts = [" ".join(draw.choices(words, k=6)) for _ in range(400)]
special = ["[PAD]", "[UNK]"]
if sys.argv[1] == "special":
    special += ["##" + letter for letter in letters]
tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
trainer = trainers.WordPieceTrainer(
    vocab_size=500, min_frequency=2, special_tokens=special, show_progress=False
)
tokenizer.train_from_iterator(texts, trainer)
pieces = sorted(tokenizer.get_vocab())
print(hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest())
print("\n".join(pieces))
PYTHON

export PYTHONPATH="$folder/packages" PYTHONHASHSEED=0 RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
python3 -c 'import tokenizers; print("tokenizers", tokenizers.__version__)'
for way in plain special; do
  for run in 1 2 3 4 5; do python3 "$folder/vocabulary.py" "$way" >"$folder/$way$run"; done
done
distinct() { head -qn 1 "$folder/$1"[1-5] | sort -u | wc -l; }
pieces() { tail -n +2 "$folder/plain$1"; }
shared=$(LC_ALL=C comm -12 <(pieces 1 | LC_ALL=C sort) <(pieces 2 | LC_ALL=C sort) | wc -l)
of=$(pieces 1 | wc -l)
echo "plain: $(distinct plain) vocabularies in 5 processes; of $of pieces the first two share $shared"
echo "\"##x\" as special tokens: $(distinct special) vocabulary in 5 processes"
if [ "$(distinct plain)" -gt 1 ] && [ "$(distinct special)" -eq 1 ]; then
  echo "not reproducible, as described"
else
  echo "this has changed"
  exit 1
fi
