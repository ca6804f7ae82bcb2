"""Speed of the frozen encoders against transformers with PyTorch: python -m benchmarks.extract --text DIR --image DIR

--text is a folder with a BERT-like checkpoint, --image one with a Swin config and weights (or a config alone: both sides then
use the same random weights). Same machine, same texts and images, f32, both sides all cores; variants take turns.
Results and their history: benchmarks/NOTES.md.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from PIL import Image

from benchmarks.timing import interleaved, milliseconds
from em3_jax.data.content import Content
from em3_jax.data.images import read_image
from em3_jax.data.pipeline import batches
from em3_jax.features import encoding, sentences

SETTINGS = encoding.Settings(pooling="mean", normalize=False, precision="float32", random_weights=None)
TORCH_BATCH = 32


class Ours:
    """Encodes all of a content, as `extract` does but for the writing."""

    def __init__(self, encoder: encoding.Encoder, content: Content):
        self.encoder, self.source = encoder, encoder.source(np.arange(len(content.values)))
        self.encode, self.params = jax.jit(encoder.encode), jax.device_put(encoder.params)

    def __call__(self) -> np.ndarray:
        outputs, members = [], []
        for k, batch in enumerate(batches(self.source, threads=2)):
            outputs.append(self.encode(self.params, *batch["inputs"])[0])
            members.append(self.source.members(k))
        rows = [np.asarray(output)[: len(some), 0] for output, some in zip(outputs, members, strict=True)]
        return np.concatenate(rows)[np.argsort(np.concatenate(members))]


def compare(what: str, ours: Ours, theirs: Callable[[], np.ndarray], count: int, repeats: int, target: float) -> None:
    """Prints the rates of both, their ratio, and how far the outputs are apart."""
    start = time.perf_counter()
    first = ours()
    first_seconds = time.perf_counter() - start
    difference = np.abs(first - theirs()).max()
    seconds = interleaved({"ours": ours, "torch": theirs}, repeats)
    for name, value in seconds.items():
        print(f"{what}, {name:<6} {milliseconds(value):<32} {count / value.min():,.1f}/s")
    ratio = seconds["torch"].min() / seconds["ours"].min()
    print(
        f"{what}: {ratio:.2f} x torch by minima, {np.median(seconds['torch']) / np.median(seconds['ours']):.2f} x by medians "
        f"(target {target}); first time, compilation included: {first_seconds:.1f} s = "
        f"{seconds['torch'].min() / first_seconds:.2f} x; outputs differ by {difference:.1e}",
        flush=True,
    )


def texts(what: str, folder: Path, values: list[str], repeats: int, target: float, batch_tokens: int) -> None:
    content = Content(values, np.arange(len(values), dtype=np.int32)[:, None])
    encoder = encoding.text_encoder(
        sentences.Use(folder, SETTINGS.pooling, SETTINGS.normalize),
        content,
        SETTINGS,
        batch_tokens=batch_tokens,
        multiple=1,
    )
    ours = Ours(encoder, content)
    print(f"{what}: {len(values):,} {encoder.summary(ours.source)}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def theirs() -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(values), TORCH_BATCH):
                part = tokenizer(
                    values[start : start + TORCH_BATCH], padding=True, truncation=True, return_tensors="pt"
                )
                mask = part["attention_mask"][..., None]
                rows.append((model(**part).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(rows).numpy()

    def tokenized() -> np.ndarray:
        """Ours with the tokenizer's time, which `text_encoder` has spent already."""
        encoding.Tokenized(tokenizer, values, 512)
        return ours()

    compare(what, tokenized, theirs, len(values), repeats, target)


def movie_texts(root: Path) -> list[str]:
    """ "Toy Story. Animation, Children's, Comedy" of every movie."""
    lines = (root / "items.tsv").read_text("utf-8").splitlines()[1:]
    fields = [line.split("\t") for line in lines]
    return [f"{title}. {genres.replace('|', ', ')}" for _, title, _, genres, *_ in fields]


def mixed_texts(folder: Path, count: int) -> list[str]:
    """Texts of 5 to 250 tokens, uniformly, of common words that are one token each."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and word.islower() and word.isascii()]
    words = sorted(word for word in words if len(word) > 3)[:4000]
    random = np.random.default_rng(0)
    return [" ".join(random.choice(words, n - 2)) for n in random.integers(5, 251, count)]


def images(folder: Path, root: Path, count: int, repeats: int, batch_size: int) -> None:
    paths = [str(path) for path in sorted((root / "posters").iterdir())[:count]]
    content = Content(paths, np.arange(len(paths), dtype=np.int32)[:, None])
    encoder = encoding.image_encoder(folder, content, SETTINGS, image_size=None, batch_size=batch_size)
    ours = Ours(encoder, content)
    processor = transformers.ViTImageProcessorPil.from_pretrained(folder)
    model = transformers.SwinModel.from_pretrained(folder).eval()

    def theirs() -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(paths), TORCH_BATCH):
                part = [Image.open(path).convert("RGB") for path in paths[start : start + TORCH_BATCH]]
                rows.append(model(**processor(part, return_tensors="pt")).pooler_output)
        return torch.cat(rows).numpy()

    compare("images", ours, theirs, len(paths), repeats, 0.9)

    ready = [jax.device_put(ours.source[k]["inputs"]) for k in range(len(ours.source))]
    reader = ours.source._processor
    variants = {
        "decoding alone, one thread": lambda: [read_image(path, reader)[0] for path in paths],
        "encoding alone": lambda: [ours.encode(ours.params, *inputs)[0] for inputs in ready],
        "both, as extract does": ours,
    }
    seconds = interleaved(variants, repeats)
    for name, value in seconds.items():
        print(f"images, {name:<28} {milliseconds(value)}")
    alone, together = seconds["encoding alone"].min(), seconds["both, as extract does"].min()
    hidden = 1 - (together - alone) / seconds["decoding alone, one thread"].min()
    print(
        f"images: {hidden:.0%} of the decoding time is hidden; it takes {together / alone - 1:.1%} more than encoding alone"
    )


def with_weights(folder: Path, scratch: Path) -> Path:
    """`folder`, or a copy with random weights and ImageNet's processor where it holds a config alone."""
    if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
        return folder
    torch.manual_seed(0)
    model = transformers.SwinModel(transformers.SwinConfig(**json.loads((folder / "config.json").read_text())))
    model.save_pretrained(scratch)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    transformers.ViTImageProcessorPil(
        size=size, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ).save_pretrained(scratch)
    return scratch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder of a BERT-like checkpoint")
    parser.add_argument("--image", type=Path, help="folder of a Swin config, with or without weights")
    parser.add_argument("--movielens", type=Path, default=Path("../shared/data/ml-100k-posters"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mixed", type=int, default=1024, help="how many texts of mixed length")
    parser.add_argument("--images", type=int, default=128, help="how many images")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}, torch {torch.__version__} with {torch.get_num_threads()} threads")
    if args.text:
        texts("movie texts", args.text, movie_texts(args.movielens), args.repeats, 1.0, args.batch_tokens)
        texts("mixed texts", args.text, mixed_texts(args.text, args.mixed), args.repeats, 2.0, args.batch_tokens)
    if args.image:
        with tempfile.TemporaryDirectory() as scratch:
            folder = with_weights(args.image, Path(scratch))
            images(folder, args.movielens, args.images, args.repeats, args.batch_size)


if __name__ == "__main__":
    main()
