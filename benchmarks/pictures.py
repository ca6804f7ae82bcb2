"""Speed of image encoders in extraction and in training: python -m benchmarks.pictures [--only ...]

extract   EfficientNet-Lite0 at 224 px, pixels [B, 224, 224, 3] u8 -> vectors: as `em3 extract` encodes,
          torch in its usual form, torch with channels last, and onnxruntime, 2 threads each. The others
          get their images as floats, normalised already; every side takes batches of 32.
deepctr   a training step of DeepCTR, 1,024 impressions of 200 pictures of 64 px through its 17 layers:
          each picture encoded once, against once for each impression.
dicm      a training step of DICM on stored vectors of 1,280: without histories, with the IDs alone of
          the last T = 30 items, and with their pictures too.

Variants take turns; medians, and CPU seconds of all threads, which a busy machine disturbs less.
onnxruntime's threads wait actively, which counts too. Results: benchmarks/NOTES.md.
"""

from em3_jax.core.allocator import keep_large_blocks

keep_large_blocks()  # before numpy and jax come, as in every em3 command; it serves all sides

import argparse  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from configs import pictures  # noqa: E402
from em3_jax.core import sharding  # noqa: E402
from em3_jax.data.batches import BatchBuilder  # noqa: E402
from em3_jax.data.content import Content  # noqa: E402
from em3_jax.data.features import write_features  # noqa: E402
from em3_jax.data.readers.synthetic import synthetic  # noqa: E402
from em3_jax.features import encoding, known  # noqa: E402
from em3_jax.features.extract import extract  # noqa: E402
from em3_jax.training import experiment  # noqa: E402

NAME, SIDE, BATCH, THREADS = "efficientnet-lite0", 224, 32, 2
IMPRESSIONS, PICTURES, SMALL = 1024, 200, 64
VECTORS, PAST = 1280, 30


def in_turns(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """[repeats, 2] seconds on the clock and of CPUs; every variant runs once before, untimed."""
    for call in variants.values():
        jax.block_until_ready(call())
    seconds = {name: np.empty((repeats, 2)) for name in variants}
    for k in range(repeats):
        for name, call in variants.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            seconds[name][k] = time.perf_counter() - start[0], time.process_time() - start[1]
    return seconds


def show(what: str, seconds: dict[str, np.ndarray], count: int, unit: str) -> None:
    """A line for each variant, with its time by that of the first."""
    first = np.median(next(iter(seconds.values())), axis=0)
    for name, found in seconds.items():
        clock, cpu = np.median(found, axis=0)
        print(
            f"{what}, {name:<24} {count / clock:9,.1f} {unit}/s  median {clock * 1e3:9,.1f} ms, "
            f"least {found[:, 0].min() * 1e3:9,.1f}, CPU {cpu * 1e3:9,.1f}  "
            f"x {clock / first[0]:.2f} the first's time ({cpu / first[1]:.2f} of CPU)",
            flush=True,
        )


def extraction(root: Path, repeats: int, images: int) -> None:
    import torch
    from safetensors.torch import load_file

    from benchmarks.lite import Graph, Lite0

    torch.set_num_threads(THREADS)
    pixels = np.random.default_rng(0).integers(0, 256, (images, SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels[0]).save(root / "one.png")
    content = Content([str(root / "one.png")], np.zeros((1, 1), np.int32))
    settings = encoding.Settings("mean", normalize=False, precision="float32", random_weights=None)
    folder = known.folder_of(NAME)
    encoder = encoding.image_encoder(folder, content, settings, image_size=None, batch_size=BATCH)
    encode, params = jax.jit(encoder.encode), jax.device_put(encoder.params)
    parts = [pixels[start : start + BATCH] for start in range(0, images, BATCH)]
    # As the checkpoint's own processor has it: (x - 127) / 128.
    floats = [((part.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy() for part in parts]
    tensors = load_file(folder / "model.safetensors")
    usual, last = Lite0(tensors), Lite0(tensors).to(memory_format=torch.channels_last)
    theirs = [torch.from_numpy(part) for part in floats]
    theirs_last = [part.to(memory_format=torch.channels_last) for part in theirs]
    session = Graph(tensors, SIDE).session(root, THREADS)

    def of_torch(net: torch.nn.Module, given: list[torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([net(part).numpy() for part in given])

    variants: dict[str, Callable[[], object]] = {
        "ours": lambda: np.concatenate([np.asarray(encode(params, part)[0][:, 0]) for part in parts]),
        "torch, eager": lambda: of_torch(usual, theirs),
        "torch, channels last": lambda: of_torch(last, theirs_last),
        "onnxruntime": lambda: np.concatenate([session.run(None, {"images": part})[0] for part in floats]),
    }
    ours = variants["ours"]()
    for name, call in variants.items():
        print(f"extract, {name:<24} differs from ours by {np.abs(call() - ours).max():.1e}", flush=True)
    show("extract", in_turns(variants, repeats), images, "images")


class OfImpressions(BatchBuilder):
    """Batches with a row for each impression's picture; past items are read where they come first."""

    def _items(self, item, event_index, mask, buckets):
        block = super()._items(item, event_index, mask, buckets)
        past = block["item_id"][block["history_position"]]
        names, first = np.unique(item, return_index=True)
        place = np.minimum(np.searchsorted(names, past), len(names) - 1)
        own = np.arange(len(item), dtype=np.int32)
        position = np.where(names[place] == past, first[place], own[:, None]).astype(np.int32)
        is_first = np.zeros(len(item), bool)
        is_first[first] = True
        return {
            "item_id": item.astype(np.int32), "item_mask": is_first,
            "item_position": own, "history_position": position,
        }  # fmt: skip


class Steps:
    """A state, and the batch of the first rows to step on."""

    def __init__(self, config, builder: type[BatchBuilder] = BatchBuilder):
        self.parts = experiment.build(config.to_dict())
        made = builder(
            self.parts.work.dataset,
            history_length=config.data.history_length,
            unknown_alpha=config.data.unknown_alpha,
            unknown_floor=dict(config.data.unknown_floor),
            encode=self.parts.work.source.builder.encode,
        )
        source = self.parts.work.source
        batch = made(np.asarray(source.rows)[: config.data.batch_size], buckets=source.buckets)
        self.items = len(batch["item_id"])
        self.batch = jax.device_put(batch, sharding.batch_shardings(self.parts.program.mesh, batch))
        self.state = self.parts.program.init()
        self.step = self.parts.program.train_step.compile(self.state, self.parts.work.constants, self.batch)

    def __call__(self):
        self.state, aux = self.step(self.state, self.parts.work.constants, self.batch)
        return aux


def of_system(name: str, data: Path, length: int):
    """The recipe of a system, on the set `pictures` of other data, rows in the order of the log."""
    config = pictures.get_config(name)
    config.data.root, config.data.features, config.data.history_length = str(data), ("pictures",), length
    config.data.batch_size, config.data.order, config.data.items_per_batch = IMPRESSIONS, "shuffled", 0
    return config


def deepctr(root: Path, repeats: int) -> None:
    data, folder = root / "deepctr", root / "pictures"
    dataset = synthetic(data, interactions=20_000, users=1_000, items=PICTURES, cold_share=0.0)
    folder.mkdir()
    for k, item in enumerate(dataset.item_table.column("id").to_pylist()):
        pixels = np.random.default_rng(k).integers(0, 256, (SMALL, SMALL, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{item}.png")
    extract(data, modality="image", encoder=NAME, name="pictures", images=folder, image_size=SMALL, raw=True)
    config = of_system("deepctr", data, 0)
    config.model.encoders = {"pictures": "cnn:deepctr"}
    variants = {"a picture once": Steps(config), "once an impression": Steps(config, OfImpressions)}
    for name, one in variants.items():
        print(f"deepctr, {name}: {one.items:,} pictures encoded for {IMPRESSIONS:,} impressions", flush=True)
    show("deepctr", in_turns(variants, repeats), IMPRESSIONS, "impressions")


def dicm(root: Path, repeats: int) -> None:
    data = root / "dicm"
    dataset = synthetic(data, interactions=40_000, users=1_000, items=10_000, choices=400.0)
    vectors = np.random.default_rng(0).standard_normal((dataset.num_items, VECTORS)).astype(np.float16)
    facts = {"kind": "array", "encoder": "random"}
    present = np.ones((len(vectors), 1), bool)
    write_features(data, "pictures", vectors, present, facts, dataset.meta["item_hash"])
    variants = {}
    for name, length, parts in (
        ("no history", 0, ("item",)),
        (f"T {PAST}, IDs", PAST, ("item",)),
        (f"T {PAST}, pictures", PAST, ("item", "user")),
    ):
        config = of_system("dicm", data, length)
        config.model.encoders, config.model.content_parts = {"pictures": "cnn:dicm"}, parts
        variants[name] = Steps(config)
        print(f"dicm, {name}: {variants[name].items:,} distinct items", flush=True)
    show("dicm", in_turns(variants, repeats), IMPRESSIONS, "impressions")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="extract,deepctr,dicm", help="of the three, by commas")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=64, help="of extract")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only.split(","):
            if name == "extract":
                extraction(Path(folder), args.repeats, args.images)
            else:
                {"deepctr": deepctr, "dicm": dicm}[name](Path(folder), args.repeats)


if __name__ == "__main__":
    main()
