"""Makes content features: images or texts through a frozen encoder, or ready arrays.

em3 extract --data data/ml-100k --modality image --encoder efficientnet-lite0
em3 extract --data data/ml-100k --modality image --encoder path/to/swin-tiny-patch4-window7-224-in22k
em3 extract --data data/ml-100k --modality text --encoder path/to/chinese-roberta-wwm-ext --fields title,genres
em3 extract --data data/tiktok --modality audio --array audio_feat.npy

Stopped at any moment and run again, it goes on where it was, to the same bytes. A feature set appears when it is complete, in
<data>/features/<name>/, with a manifest of how it was made and a report of the items without content.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import numpy as np

from em3_jax import cli
from em3_jax.core import terminal
from em3_jax.core.errors import UserError
from em3_jax.core.values import canonical
from em3_jax.data.features import FeatureWriter, feature_folder, reusable, write_features
from em3_jax.data.format import Dataset, hash_files, open_dataset
from em3_jax.data.readers.files import load_array, read_array, read_ids
from em3_jax.features import encoding, sentences
from em3_jax.features.encode_items import content_hash, describe, encode, report
from em3_jax.features.extract_inputs import check, of_images, of_texts
from em3_jax.features.known import KNOWN, installs, place_of
from em3_jax.features.lower import BITS

RAW_DTYPES = {"image": "uint8", "text": "int32"}
HUB_FILES = ("*.json", "*.txt", "*.model")


def extract(
    data: str | Path,
    *,
    modality: str,
    encoder: str | Path,
    name: str | None = None,
    fields: tuple[str, ...] = (),
    join: str | None = None,
    frames: int = 1,
    images: str | Path | None = None,
    pooling: str | None = None,
    normalize: bool = False,
    max_length: int | None = None,
    prompt: str | None = None,
    image_size: int | None = None,
    dtype: str = "float16",
    precision: str = "float32",
    batch_size: int = 32,
    batch_tokens: int = 2048,
    random_weights: int | None = None,
    raw: bool = False,
    below: str | None = None,
    strict: bool = False,
    update: bool = False,
    overwrite: bool = False,
) -> dict:
    """Encodes the images or texts of a dataset's items; returns the manifest of the feature set.

    Args:
      data: dataset folder.
      modality: image or text.
      encoder: folder in the Hugging Face layout (config.json, weights, tokenizer or image processor), a name on the hub,
        or one of efficientnet-lite0, -lite1, -lite2, dinov2-small, whose weights a package carries.
      name: of the feature set; default the modality.
      fields: texts to encode, each a token of its own: text columns or categorical fields; default all text columns.
      join: put between the fields to make them one text, e.g. ". ".
      frames: most images of an item, spread evenly over those it has, each a token of its own.
      images: folder of <item id>.jpg, or <item id>/ with frames, in place of the dataset's image paths.
      pooling: mean, cls, pooler, or tokens, which keeps them all; of texts also max, lasttoken, weightedmean,
        mean_sqrt_len_tokens; default what a sentence-transformers folder says, else mean.
      normalize: scale every token to length 1, as a sentence-transformers folder may ask for too.
      max_length: tokens after which a text is cut; default what such a folder says, else what the encoder can take.
      prompt: name of one of such a folder's prompts, put before each text; default its default; "" none.
      image_size: rows and columns to resize images to; default what the checkpoint says.
      dtype: of the stored tokens: float16, bfloat16 or float32.
      precision: of the computation: float32 or bfloat16.
      batch_size: images at once.
      batch_tokens: text tokens at once.
      random_weights: seed of fresh weights, for trials without a checkpoint; the folder needs a config.json only.
      raw: store what the encoder is to see, pixels or token ids, for training with config.model.content=raw.
      below: name of a part of the image encoder, e.g. block11 or layer9: stores what it reads, as bits of float16 or of
        float32, for training the encoder from there on with config.model.content=raw.
      strict: a missing or damaged image is an error; else it is masked and reported.
      update: encode only items that are new or whose content has changed.
      overwrite: replace a feature set of that name, or an unfinished one.

    Raises:
      UserError: whatever the user can mend.
    """
    at_least_one = {"frames": frames, "batch-size": batch_size, "batch-tokens": batch_tokens}
    check(modality, dtype, precision, raw, below, at_least_one)
    dataset, name = open_dataset(data), name or modality
    folder, label = encoder_folder(encoder)
    use = sentences.use_of(folder, pooling=pooling, normalize=normalize, max_length=max_length, prompt=prompt)
    settings = encoding.Settings(use.pooling, use.normalize, precision, random_weights)
    if modality == "image":
        job = of_images(
            dataset, folder, settings, frames=frames, images=images, image_size=image_size, batch_size=batch_size,
            below=below or "", dtype=dtype,
        )  # fmt: skip
    else:
        job = of_texts(dataset, use, settings, fields=fields, join=join, batch_tokens=batch_tokens)
    content, inputs, made, layout = job
    if below:
        dtype = BITS[dtype]
    elif raw:
        made, dtype = encoding.unencoded(made), RAW_DTYPES[modality]
    facts = json.loads(json.dumps({"kind": modality, "encoder": label, "dtype": dtype, "inputs": inputs, **made.facts}))
    for note in use.notes:
        print(note)
    if random_weights is not None:
        warnings.warn(
            f"features '{name}' will come from random weights: they try the way, and mean nothing", stacklevel=2
        )

    old = _existing(dataset, name, facts, update, overwrite)
    if old is not None and not update:
        print(
            f"{old}: complete already, made in the same way; --update encodes what has changed, --overwrite all of it"
        )
        return _manifest(old)
    reused = reusable(old, dataset, content, made.digests) if old is not None else None
    wanted = content.index >= 0 if reused is None else (content.index >= 0) & (reused.unit < 0)
    plan = (
        facts
        | layout
        | {"content": content_hash(content, wanted), "update_of": _manifest(old)["hash"] if old is not None else None}
    )
    with FeatureWriter(
        dataset, name, plan, slots=content.index.shape, unit=made.unit, dtype=dtype, discard=overwrite
    ) as writer:
        if reused is not None and writer.done == 0:
            reused.copy(writer)
        encode(writer, made, content, wanted, strict, name)
        told = report(dataset, content, writer, modality)
        counts = {"distinct": len(content.values), "unusable": sum(map(len, writer.notes)), **made.counts}
        shape = {"raw": {"slots": content.index.shape[1], **made.raw}} if raw or below else {}
        channels = {"channels": "RGB"} if modality == "image" else {}
        declared = {"sentence_transformers": dict(made.declared)} if made.declared else {}
        writer.finish(facts | shape | channels | declared | {"counts": counts}, told)
    return _manifest(feature_folder(dataset.root, name))


def encoder_folder(encoder: str | Path) -> tuple[Path, str]:
    """(folder, name) of an encoder: a local folder, one known by name, or one fetched from the Hugging Face hub."""
    path, name = place_of(encoder), str(encoder)
    if path.is_dir():
        return path, name if name in KNOWN else path.resolve().name
    if path.exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise UserError(f"{encoder}: no such folder; give the folder of a checkpoint, with its config.json and weights")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # of the network, the hub and the cache
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"{name}: no such folder, and the hub does not give it ({reason}); give a local folder, or one known by name, "
            f"whose weights a package carries: {'; '.join(installs())}"
        ) from None
    return folder, name


def _manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def _existing(dataset: Dataset, name: str, facts: dict, update: bool, overwrite: bool) -> Path | None:
    """The complete feature set of that name, if it was made in the same way; None if there is none or it is in the way."""
    final = feature_folder(dataset.root, name)
    if not final.exists() or overwrite:
        return None
    manifest = _manifest(final)
    changed = [key for key, value in facts.items() if manifest.get(key) != value]
    if changed:
        raise UserError(
            f"{final}: modality name in use, made otherwise (differs in: {', '.join(changed)}); choose another --name, or "
            "replace it with --overwrite"
        )
    if not update and manifest["item_hash"] != dataset.meta["item_hash"]:
        raise UserError(f"{final}: made for other items; pass --update to encode those that are new or changed")
    return final


def from_array(
    data: str | Path,
    *,
    modality: str,
    array: str | Path,
    ids: str | Path | None = None,
    mask: str | Path | None = None,
    overwrite: bool = False,
) -> dict:
    """Makes a modality of ready vectors; returns the manifest of the feature set.

    Args:
      data: dataset folder.
      modality: its name.
      array: .npy file [rows, D] or [rows, tokens, D], float16 or float32, one row an item in the dataset's order.
      ids: item ids of the rows, .npy or a text file of one a line; items that are not among them are masked.
      mask: .npy file [rows] or [rows, tokens] of bool, True = there is one; default: a token of zeros is missing.
      overwrite: replace a feature set of that name.

    Raises:
      UserError: whatever the user can mend.
    """
    dataset, array = open_dataset(data), Path(array)
    names = None if ids is None else read_ids(Path(ids))
    tokens = read_array(
        array, dataset.num_items if names is None else len(names), of=f"{data if names is None else ids}"
    )
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens
    present = _read_mask(Path(mask), tokens.shape[:2]) if mask else (tokens != 0).any(axis=-1)
    if ids is not None and names is not None:
        tokens, present = _in_order(dataset, Path(ids), names, tokens, present)
    facts = {"kind": "array", "encoder": f"ready made, {array.name}", "file_hash": hash_files([array])}
    write_features(dataset.root, modality, tokens, present, facts, dataset.meta["item_hash"], overwrite)
    return _manifest(feature_folder(dataset.root, modality))


def _read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """[rows, tokens] bool."""
    mask = load_array(path)
    if mask.dtype != np.bool_ or mask.shape not in (shape, shape[:1]):
        raise UserError(f"{path}: {mask.dtype} {list(mask.shape)}, must be bool {list(shape)}; save it so")
    return np.broadcast_to(mask.reshape(len(mask), -1), shape)


def _in_order(
    dataset: Dataset, path: Path, names: list[str], tokens: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [I, N, D], mask [I, N]) in the dataset's order of items; `names` are the ids of the rows given."""
    place: dict[str | None, int] = {name: row for row, name in enumerate(names)}
    if len(place) < len(names):
        twice = next(name for row, name in enumerate(names) if place[name] != row)
        raise UserError(f"{path}: id '{twice}' occurs twice; keep one row for each")
    rows = np.array([place.get(canonical(item), -1) for item in dataset.item_table.column("id").to_pylist()])
    if (rows < 0).all():
        raise UserError(
            f"{path}: holds no id of the dataset's items, which are like '{dataset.item_table.column('id')[0]}'"
        )
    return np.where((rows >= 0)[:, None, None], tokens[rows], tokens.dtype.type(0)), mask[rows] & (rows >= 0)[:, None]


def main(argv: list[str] | None = None) -> None:
    parser = cli.Parser(prog="em3 extract", description=__doc__)
    parser.argument_default = argparse.SUPPRESS  # what is not given takes the function's own default
    cli.add_options(parser, extract)
    cli.add_options(parser.add_argument_group("ready arrays"), from_array, besides=extract)
    arguments = vars(parser.parse_args(argv))
    _run(arguments)


def _run(arguments: dict) -> None:
    """The command: `from_array` where an array is given, else `extract`."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch
    function = from_array if "array" in arguments else extract
    if "array" in arguments and "encoder" in arguments:
        raise UserError("--array and --encoder exclude each other; give one of them")
    cli.check_arguments(function, arguments, "em3 extract --help")
    arguments = cli.with_local_paths(function, arguments)
    began = time.perf_counter()
    try:
        manifest = function(**arguments)
    except OSError as error:  # no space, no permission, a file where a folder should be
        raise UserError(
            f"{error.filename or arguments['data']}: {error.strerror or error}; mend it and run again to go on"
        ) from None
    folder = feature_folder(Path(arguments["data"]), arguments.get("name", arguments["modality"]))
    seconds = time.perf_counter() - began
    text = f"{describe(folder, manifest)}\n  {seconds:.1f} s"
    terminal.result(text, folder=str(folder), seconds=seconds, manifest=manifest)
