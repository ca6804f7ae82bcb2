"""Image files of every kind, against transformers' own processing and against plain arithmetic."""

import json

import numpy as np
import pytest
from PIL import Image

from em3_jax.data.images import ImageBatches, load_processor, open_image, read_image
from tests.conftest import user_error

SIDE = 8
CONFIG = {
    "do_resize": True, "size": SIDE, "resample": 3, "do_normalize": True, "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip


def write_processor(folder, **changes):
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIG | changes))
    return folder


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return load_processor(write_processor(tmp_path_factory.mktemp("processor")))


def noise(mode: str, size=(12, 20), seed=0) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


@pytest.mark.parametrize("changes", [{}, {"do_normalize": False}, {"do_rescale": False}, {"resample": 2}])
def test_pixels_are_those_of_transformers(tmp_path, changes):
    from transformers import ViTImageProcessorPil

    image = noise("RGB")
    processor = load_processor(write_processor(tmp_path, **changes))
    got = (processor(image).astype(np.float64) * processor.scale - processor.mean) / processor.std
    expected = ViTImageProcessorPil.from_pretrained(str(tmp_path))(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(got, expected.transpose(1, 2, 0), atol=2e-6)


@pytest.mark.parametrize("kind", ["DeiT", "Bit", "CLIP", "Siglip", "ConvNext", "MobileNetV2"])
@pytest.mark.parametrize("ending", ["ImageProcessor", "FeatureExtractor"])
def test_pixels_are_those_of_every_processor_that_is_known(tmp_path, kind, ending):
    import transformers

    original = getattr(transformers, f"{kind}ImageProcessorPil")()
    original.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    written = json.loads(path.read_text()) | {"image_processor_type": f"{kind}{ending}"}
    path.write_text(json.dumps(written))
    image, processor = noise("RGB", (50, 70)), load_processor(tmp_path)
    got = (processor(image).astype(np.float64) * processor.scale - processor.mean) / processor.std
    expected = original(image, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(got, expected.transpose(1, 2, 0), atol=2e-6)
    assert load_processor(tmp_path, image_size=30).shape() == (30, 30, 3)


@pytest.mark.parametrize("std", [[0.2, 0, 0.2], [0.2, -0.2, 0.2], [0.2, float("nan"), 0.2]])
def test_a_processor_that_divides_by_no_positive_number_is_refused(tmp_path, std):
    folder = write_processor(tmp_path, image_std=std)
    refused = user_error(load_processor, folder)
    assert f"image_std is {std}, by which pixels are divided" in refused
    assert load_processor(write_processor(tmp_path, image_std=std, do_normalize=False)).std == (1, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (5000, 4000)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_any_size(tmp_path, processor, size, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.new("RGB", size, (10, 200, 30)).save(path)
    pixels, _, problem = read_image(str(path), processor)
    assert problem == "" and pixels.shape == (SIDE, SIDE, 3)
    assert np.abs(pixels.astype(int) - (10, 200, 30)).max() <= 3  # JPEG is lossy


@pytest.mark.parametrize(
    ("mode", "suffix", "colour", "expected"),
    [
        ("L", "png", 90, (90, 90, 90)),
        ("1", "png", 1, (255, 255, 255)),
        ("RGBA", "png", (0, 0, 0, 0), (255, 255, 255)),  # transparent is white
        ("RGBA", "png", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", "png", (0, 0), (255, 255, 255)),
        ("CMYK", "jpg", (0, 0, 0, 255), (0, 0, 0)),
        ("CMYK", "tif", (255, 0, 0, 0), (0, 255, 255)),
        ("P", "gif", 0, (0, 0, 0)),
        ("I;16", "png", 32896, (128, 128, 128)),
        ("RGB", "webp", (200, 200, 200), (200, 200, 200)),
    ],
)
def test_any_mode(tmp_path, processor, mode, suffix, colour, expected):
    path = tmp_path / f"image.{suffix}"
    Image.new(mode, (9, 11), colour).save(path)
    pixels, _, problem = read_image(str(path), processor)
    assert problem == ""
    assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_a_turned_photograph_is_turned_back(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees clockwise to show
    image.save(tmp_path / "turned.png", exif=exif)
    opened = open_image((tmp_path / "turned.png").read_bytes())
    assert opened.size == (2, 4) and opened.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "file missing"),
        (b"", "empty file"),
        (b"this is no image but a text", "not an image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not an image"),
    ],
)
def test_files_that_are_no_image(tmp_path, processor, content, problem):
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    assert read_image(str(path), processor)[::2] == (None, problem)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_half_a_file_is_damaged(tmp_path, processor, suffix):
    path = tmp_path / f"image.{suffix}"
    noise("RGB", (200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pixels, digest, problem = read_image(str(path), processor)
    assert pixels is None and problem.startswith("damaged image (") and "\n" not in problem
    assert digest.any()  # so that an update sees when the file is mended


def test_a_decompression_bomb_is_refused(tmp_path, processor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (100, 100)).save(tmp_path / "image.png")
    assert "megapixels" in read_image(str(tmp_path / "image.png"), processor)[2]


def test_batches_keep_their_order_and_mask_what_failed(tmp_path, processor):
    paths = [str(tmp_path / f"{k}.png") for k in range(5)]
    for k in (0, 1, 3, 4):
        Image.new("RGB", (5, 5), (k, k, k)).save(paths[k])
    source = ImageBatches(paths, np.array([4, 2, 1, 0, 3]), 2, processor)
    assert [source.members(k).tolist() for k in range(len(source))] == [[4, 2], [1, 0], [3]]
    for k in range(len(source)):
        batch = source[k]
        pixels, members = batch["inputs"][0], source.members(k)
        values = [None if batch["problems"][row] else int(pixels[row, 0, 0, 0]) for row in range(len(members))]
        assert values == [None if member == 2 else member for member in members]
        assert pixels.shape == (2, SIDE, SIDE, 3) and pixels.dtype == np.uint8


def test_processors_that_cannot_be_used(tmp_path):
    assert "file missing" in user_error(load_processor, tmp_path)
    for changes, word in (
        ({"feature_extractor_type": "EfficientNetImageProcessor"}, "'EfficientNetImageProcessor' is not supported"),
        ({"do_flip_channel_order": True}, "images are read as RGB"),
        ({"do_resize": False}, "--image-size"),
        ({"size": {"shortest_edge": 8}}, "preprocessor_config.json"),
    ):
        assert word in user_error(load_processor, write_processor(tmp_path, **changes))
    (tmp_path / "preprocessor_config.json").write_text("{")
    assert "preprocessor_config.json" in user_error(load_processor, tmp_path)


def test_another_size(tmp_path):
    assert load_processor(write_processor(tmp_path, do_resize=False), image_size=12).shape() == (12, 12, 3)
