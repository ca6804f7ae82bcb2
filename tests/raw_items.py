"""Items with titles and image files of every kind, and small checkpoints to encode them with."""

import json
import warnings
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import base
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table
from em3_jax.features import extract

ITEMS = 24
WORDS = ("red", "green", "blue", "car", "house", "世", "界", "مرحبا", "привет")
NO_IMAGE, EMPTY_TITLE = 5, 7  # rows of items
SIDE, PATCH, STAGE_WIDTH = 16, 4, 8
BERT_WIDTH, POSITIONS = 8, 12


def title(item: int) -> str:
    """1 to 9 words; item `EMPTY_TITLE` has blanks only."""
    return "  " if item == EMPTY_TITLE else " ".join(WORDS[(item + k) % len(WORDS)] for k in range(1 + item % 9))


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_items(root: Path, items: int = ITEMS, first: int = 0) -> None:
    """items.csv (id, title, tag, photo), photos/<id>.png and clicks.csv of items first .. first + items - 1."""
    lines = ["id,title,tag,photo"]
    for item in range(first, first + items):
        photo = "" if item == NO_IMAGE else f"photos/i{item}.png"
        if photo and not (root / photo).exists():
            write_image(root / photo, seed=1000 + item)
        lines.append(f"i{item},{title(item)},tag{item % 3},{photo}")
    (root / "items.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f"u{k % 7},i{first + k * 5 % items},{k % 2},{k}" for k in range(400)]
    (root / "clicks.csv").write_text("\n".join(["user,item,label,time", *rows]) + "\n", encoding="utf-8")


def prepare(root: Path, out: Path, overwrite: bool = False) -> Dataset:
    """The dataset of `write_items`' tables."""
    return table(
        out,
        interactions=root / "clicks.csv",
        items=root / "items.csv",
        columns={"item_key": "id"},
        item_fields=("tag",),
        item_text=("title",),
        item_image="photo",
        overwrite=overwrite,
    )


def write_swin(folder: Path) -> Path:
    """A config of a very small Swin, for random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "swin", "embed_dim": STAGE_WIDTH, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2,
        "image_size": SIDE, "patch_size": PATCH,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_resnet(folder: Path) -> Path:
    """A config of a very small ResNet, for random weights; its images are of `SIDE` x `SIDE`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "resnet", "embedding_size": 4, "hidden_sizes": [6, 8], "depths": [1, 2], "layer_type": "basic",
        "image_size": SIDE,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_pictures(root: Path) -> Path:
    """A dataset in `root`/data with pictures of a very small ResNet, `root`/resnet, as the raw feature set "image"."""
    write_items(root)
    write_resnet(root / "resnet")
    data = prepare(root, root / "data").root
    with warnings.catch_warnings(action="ignore"):  # of random weights
        extract.extract(
            data, modality="image", encoder=root / "resnet", random_weights=0, raw=True, images=root / "photos"
        )
    return data


def small_ranking(data: Path, **encoders: str) -> ConfigDict:
    """A small config of task ranking on the raw feature sets of `encoders`, which train at a tenth of the rate."""
    config = base.raw(base.ranking(), **encoders)
    config.optim.multipliers = (("^encoders/", 0.1),)
    config.data.update(root=str(data), features=tuple(encoders), batch_size=32, history_length=6)
    config.model.backbone_settings.update(hidden=(16,), attention_score="dot")
    config.model.fusion_settings.update(width=8, heads=2, ffn_width=16)
    config.model.cic.update(negatives=0, width=8)
    config.tables.width = 4
    config.eval.batch_size = 64
    return config


def write_bert(folder: Path) -> Path:
    """A config of a very small BERT with a vocabulary, for random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "tag", "##0", "##1", "##2"]
    config = {
        "model_type": "bert", "vocab_size": len(vocabulary), "hidden_size": BERT_WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": POSITIONS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    return folder
