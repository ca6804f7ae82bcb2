"""Raw content for encoders that train from scratch: token ids of texts, pixels of pictures.

    em3 raw --data data/ml-100k --text title=12,genres=6
    em3 raw --data data/ml-100k --image-size 48

For an encoder that comes with a checkpoint, `em3 extract --raw` stores what that one reads.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from em3_jax import cli
from em3_jax.core import terminal
from em3_jax.core.errors import UserError
from em3_jax.data import content as content_
from em3_jax.data.features import FeatureWriter, feature_folder, write_features
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.features import encoding
from em3_jax.features.encode_items import content_hash, describe, encode, report

PADDING, UNKNOWN = "[PAD]", "[UNK]"
MOST_SIDE = 1024
BATCH = 64  # pictures between two entries of the journal


def raw(
    data: str | Path,
    *,
    text: dict[str, str] | None = None,
    image_size: int | None = None,
    vocabulary: int = 8192,
    tokenizer_of: str | Path | None = None,
    frames: int = 1,
    images: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> dict:
    """Adds a raw feature set to a dataset; returns its manifest.

    Args:
      data: dataset folder.
      text: fields and how many tokens of each are kept: text columns, or categorical fields, whose values are written out.
      image_size: rows and columns to resize pictures to, in place of texts.
      vocabulary: most word pieces of the tokenizer, which is trained on the texts of all items; the
        same texts always give the same one.
      tokenizer_of: another dataset folder whose tokenizer to take; without it a set that is replaced keeps its own.
      frames: most pictures of an item, spread evenly over those it has.
      images: folder of <item id>.jpg, or <item id>/ with frames, in place of the dataset's image paths.
      name: of the feature set; default text or image.
      overwrite: replace a feature set of that name.

    Raises:
      UserError: whatever the user can mend.
    """
    dataset = open_dataset(data)
    if (text is None) == (image_size is None):
        raise UserError("give either --text field=tokens,... or --image-size")
    if image_size is not None and not 4 <= image_size <= MOST_SIDE:
        raise UserError(f"--image-size {image_size}: give 4 to {MOST_SIDE}")
    name = name or ("image" if text is None else "text")
    final = feature_folder(dataset.root, name)
    if final.exists() and not overwrite:
        raise UserError(f"{final}: there already; choose another --name, or replace it with --overwrite")
    if text is None:
        assert image_size is not None  # one of the two is given
        pictures = content_.images(dataset, frames, images)
        _write_pictures(dataset, name, pictures, image_size, overwrite)
    else:
        words = _tokenizer_json(Path(tokenizer_of) / "features" / name if tokenizer_of else final)
        tokens, mask, facts = _texts(dataset, _lengths(text), vocabulary, words)
        write_features(dataset.root, name, tokens, mask, facts, dataset.meta["item_hash"], overwrite)
    return json.loads((final / "manifest.json").read_text(encoding="utf-8"))


def _lengths(text: dict[str, str]) -> dict[str, int]:
    for field, length in text.items():
        if not length.isdigit() or not int(length):
            raise UserError(f"--text {field}={length}: give a number of tokens from 1 on")
    return {field: int(length) for field, length in text.items()}


def _tokenizer_json(folder: Path) -> str | None:
    path = folder / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")).get("tokenizer") if path.is_file() else None


def _texts(dataset: Dataset, lengths: dict[str, int], vocabulary: int, known: str | None):
    """(tokens [I, L, 1] i32, mask [I, L], manifest), the fields side by side."""
    from tokenizers import Tokenizer

    content = content_.texts(dataset, lengths)
    if not content.values:
        raise UserError(f"{dataset.root}: no item has any text in {', '.join(lengths)}; choose other fields")
    tokenizer = Tokenizer.from_str(known) if known else _trained(content.values, vocabulary)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(content.values)]
    items, total = len(content.index), sum(lengths.values())
    tokens, mask, start = np.zeros((items, total, 1), np.int32), np.zeros((items, total), bool), 0
    for column, length in enumerate(lengths.values()):
        for item in np.flatnonzero(content.index[:, column] >= 0):
            found = ids[content.index[item, column]][:length]
            tokens[item, start : start + len(found), 0] = found
            mask[item, start : start + len(found)] = True
        start += length
    facts = {"kind": "text", "encoder": "word pieces, no encoder", "tokenizer": tokenizer.to_str()}
    return tokens, mask, facts | {"raw": {"fields": lengths, "vocabulary": tokenizer.get_vocab_size()}}


def _trained(texts: list[str], vocabulary: int):
    """A WordPiece tokenizer of lower-case words without accents, as BERT's; a function of the texts.

    The library's trainer numbers the letters inside words ("##x") as a hash table with a random seed
    gives them, and settles ties between merges by these numbers: the same texts give other pieces in
    each process. So the trainer is told of them first, in alphabetical order, as special tokens; the
    tokenizer made of its vocabulary knows them as the ordinary pieces that they are.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
        made = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return made

    trained = tokenizer({})
    normalised = map(trained.normalizer.normalize_str, texts)
    words = {word for text in normalised for word, _ in trained.pre_tokenizer.pre_tokenize_str(text)}
    inside = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=[PADDING, UNKNOWN, *inside], show_progress=False, min_frequency=2
    )
    trained.train_from_iterator(texts, trainer)
    return tokenizer(trained.get_vocab())


def _write_pictures(dataset: Dataset, name: str, content: content_.Content, size: int, overwrite: bool) -> None:
    """The feature set `name` of pixels [I, M, size * size * 3] u8; what cannot be read is masked and listed.

    Each file is decoded once and written where it belongs; stopped and run again, it goes on.
    """
    made = encoding.pixels_alone(content, size, BATCH)
    wanted = content.index >= 0
    facts = {"kind": "image", "encoder": "pixels, no encoder", **made.facts}
    plan = facts | {"content": content_hash(content, wanted), "batch_size": BATCH}
    with FeatureWriter(
        dataset, name, plan, slots=content.index.shape, unit=made.unit, dtype="uint8", discard=overwrite
    ) as writer:
        encode(writer, made, content, wanted, strict=False, name=name)
        counts = {"distinct": len(content.values), "unusable": sum(map(len, writer.notes))}
        seen = {"raw": {"shape": [size, size, 3]}, "channels": "RGB"}
        told = report(dataset, content, writer, "image")
        writer.finish(facts | seen | {"counts": counts}, told)


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(prog="em3 raw", description=__doc__)
    parser.argument_default = argparse.SUPPRESS  # what is not given takes the function's own default
    cli.add_options(parser, raw)
    arguments = vars(parser.parse_args(argv))
    cli.check_arguments(raw, arguments, "em3 raw --help")
    manifest = raw(**cli.with_local_paths(raw, arguments))
    name = arguments.get("name", "image" if "image_size" in arguments else "text")
    folder = feature_folder(Path(arguments["data"]), name)
    terminal.result(describe(folder, manifest), folder=str(folder), manifest=manifest)
