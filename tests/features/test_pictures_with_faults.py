"""Pictures of every kind that people have, by both ways in: raw pixels, and through an encoder."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from em3_jax.core.errors import UserError
from em3_jax.data import images
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.table import table
from em3_jax.features import extract, raw, raw_encoders
from tests import raw_items

pytestmark = pytest.mark.filterwarnings("ignore:features .* will come from random weights")

RED, BLUE, GREY = (220, 30, 20), (20, 40, 220), (128, 128, 128)


def deep_png(colour: tuple[int, int, int]) -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + struct.pack(">3H", *(257 * one for one in colour)) * 8 for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def moving(path: Path) -> None:
    frames = [Image.new("RGB", (12, 10), colour) for colour in (RED, BLUE, BLUE)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50, lossless=True)


def turned(path: Path) -> None:
    """Red above blue to whoever looks at it: in the file red is on the left, and EXIF says to turn it."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter clockwise
    Image.fromarray(pixels).save(path, exif=exif, quality=95)


def inverted_cmyk(path: Path) -> None:
    Image.new("CMYK", (9, 9), (0, 220, 230, 30)).save(path, quality=95)


FILES = {
    "dot.png": (lambda path: Image.new("RGB", (1, 1), RED).save(path), RED),
    "huge.png": (lambda path: Image.new("RGB", (8_000, 5_000), RED).save(path, compress_level=1), RED),
    "moving.gif": (moving, RED),
    "moving.webp": (moving, RED),
    "moving.png": (moving, RED),
    "grey16.png": (lambda path: Image.new("I;16", (9, 9), 32_896).save(path), GREY),
    "deep.png": (lambda path: path.write_bytes(deep_png(RED)), RED),
    "cmyk.jpg": (inverted_cmyk, (225, 31, 22)),
}
MISSING = ["gone-a.jpg", "gone-b.jpg", "gone-c.jpg", "gone-d.jpg"]
ALL = [*FILES, "turned.jpg", *MISSING]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A dataset whose items have one of these pictures each, some of which go away after it was made."""
    root = tmp_path_factory.mktemp("shop")
    for name, (write, _) in FILES.items():
        write(root / name)
    turned(root / "turned.jpg")
    for name in MISSING:
        Image.new("RGB", (4, 4)).save(root / name)
    pq.write_table(pa.table({"item": ALL, "photo": ALL}), root / "items.parquet")
    log = {"user": [k % 3 for k in range(60)], "item": [ALL[k % len(ALL)] for k in range(60)]}
    log |= {"time": list(range(60)), "label": [k // 2 % 2 for k in range(60)]}
    pq.write_table(pa.table(log), root / "log.parquet")
    table(root / "data", interactions=root / "log.parquet", items=root / "items.parquet", item_image="photo")
    for name in MISSING:
        (root / name).unlink()
    return root


@pytest.fixture(scope="module", params=["raw", "extract"])
def way(request, shop) -> tuple[np.ndarray, np.ndarray, dict, Path, str]:
    """(pixels [I, H, W, 3], mask [I], manifest, folder, what was printed) of either command."""
    data, name = shop / "data", request.param
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        if name == "raw":
            raw.main(["--data", str(data), "--image-size", "16", "--name", name])
        else:
            swin = raw_items.write_swin(shop / "swin")
            options = ["--encoder", str(swin), "--random-weights", "0", "--batch-size", "4", "--image-size", "16"]
            extract.main(["--data", str(data), "--modality", "image", "--raw", "--name", name, *options])
    features = open_dataset(data).features(name)
    pixels = np.asarray(features.tokens).reshape(len(ALL), *features.manifest["raw"]["shape"])
    return pixels, np.asarray(features.mask)[:, 0], features.manifest, data / "features" / name, "\n".join(printed)


@pytest.mark.parametrize("name", FILES)
def test_each_kind_is_read_as_people_see_it(way, name):
    pixels, mask = way[:2]
    row = ALL.index(name)
    assert mask[row]
    assert np.abs(pixels[row].astype(int) - FILES[name][1]).max() <= 4


def test_rotation_is_applied(way):
    picture = way[0][ALL.index("turned.jpg")].astype(int)
    assert np.abs(picture[:6] - RED).max() <= 16 and np.abs(picture[-6:] - BLUE).max() <= 16


def test_missing_files_are_masked_named_and_listed(way):
    _, mask, manifest, folder, printed = way
    assert np.flatnonzero(~mask).tolist() == [ALL.index(name) for name in MISSING]
    assert manifest["counts"]["unusable"] == len(MISSING)
    listed = (folder / "report.tsv").read_text("utf-8")
    for name in MISSING:
        assert f"{name}\tfile missing" in listed
    assert all(f"{name}: file missing" in printed for name in MISSING[:3])
    assert MISSING[3] not in printed and "and 1 more" in printed and "report.tsv" in printed


def test_the_manifest_says_what_the_pixels_are(way):
    manifest = way[2]
    assert manifest["channels"] == "RGB" and manifest["raw"]["shape"] == [16, 16, 3]
    assert manifest["preprocessing"]["size"] == {"height": 16, "width": 16}


def processor(**changed) -> dict:
    """As that with which `way` made its set, in a checkpoint's words."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return {"image_processor_type": "ViTImageProcessor", "size": 224, "image_mean": mean, "image_std": std} | changed


@pytest.mark.parametrize(
    "changed,words",
    [
        ({"image_mean": [0.5] * 3}, "wants other pixels .*image_mean .0.5, 0.5, 0.5. instead of .0.485"),
        ({"do_normalize": False}, "wants other pixels .*do_normalize False instead of True"),
        ({"rescale_factor": 1.0}, "wants other pixels .*rescale_factor 1.0 instead of 0.0039"),
        ({"do_flip_channel_order": True}, "images are read as RGB"),
    ],
)
def test_a_set_for_another_processor_is_refused(way, shop, changed, words, tmp_path):
    swin, features = tmp_path / "swin", open_dataset(shop / "data").features(way[3].name)
    shutil.copytree(raw_items.write_swin(tmp_path / "made"), swin)
    file = swin / "preprocessor_config.json"
    if features.name == "raw":
        words = "for encoders that train from scratch; .* make the set again with `em3 extract --raw"
    else:
        file.write_text(json.dumps(processor()))
        raw_encoders.load({"extract": str(swin)}, [features])  # another size is no other processor
    file.write_text(json.dumps(processor(**changed)))
    with pytest.raises(UserError, match=words):
        raw_encoders.load({features.name: str(swin)}, [features])


def test_each_file_is_decoded_once_though_many_items_show_it(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20), RED).save(tmp_path / "one.png")
    Image.new("RGB", (30, 20), BLUE).save(tmp_path / "two.png")
    photo = [["one.png", "two.png"][k % 2] for k in range(150)]
    pq.write_table(pa.table({"item": list(range(150)), "photo": photo}), tmp_path / "items.parquet")
    log = {"user": [k % 3 for k in range(60)], "item": list(range(60)), "time": list(range(60))}
    pq.write_table(pa.table(log | {"label": [k // 2 % 2 for k in range(60)]}), tmp_path / "log.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in ("items",)}
    table(tmp_path / "data", interactions=tmp_path / "log.parquet", item_image="photo", **paths)
    decoded = []
    open_image = images.open_image
    monkeypatch.setattr(images, "open_image", lambda content: decoded.append(0) or open_image(content))
    manifest = raw.raw(tmp_path / "data", image_size=8)
    pixels = open_dataset(tmp_path / "data").features("image").tokens.reshape(150, -1, 3)
    assert len(decoded) == 2 == manifest["counts"]["distinct"]
    for k in range(150):
        assert (pixels[k] == (RED, BLUE)[k % 2]).all()


def test_pixels_that_are_half_written_are_gone_on_with(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for k in range(7):
        Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8)).save(tmp_path / f"{k}.png")
    items = {"item": list(range(7)), "photo": [f"{k}.png" for k in range(7)]}
    pq.write_table(pa.table(items), tmp_path / "items.parquet")
    log = {"user": [k % 3 for k in range(60)], "item": [k % 7 for k in range(60)], "time": list(range(60))}
    pq.write_table(pa.table(log | {"label": [k // 2 % 2 for k in range(60)]}), tmp_path / "log.parquet")
    data, options = tmp_path / "data", {"items": tmp_path / "items.parquet", "item_image": "photo"}
    table(data, interactions=tmp_path / "log.parquet", **options)
    monkeypatch.setattr(raw, "BATCH", 2)
    whole = raw.raw(data, image_size=8, name="whole")
    open_image, decoded = images.open_image, []

    def stopping(content):
        if len(decoded) == 5:
            raise KeyboardInterrupt
        decoded.append(0)
        return open_image(content)

    monkeypatch.setattr(images, "open_image", stopping)
    with pytest.raises(KeyboardInterrupt):
        raw.raw(data, image_size=8, name="stopped")
    assert not (data / "features" / "stopped").exists()
    monkeypatch.setattr(images, "open_image", open_image)
    assert raw.raw(data, image_size=8, name="stopped")["hash"] == whole["hash"]
