"""From image files to batches of pixels, as the checkpoint's image processor wants them."""

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from em3_jax.core.errors import UserError
from em3_jax.data.content import DIGEST_BYTES, digest

PROCESSOR_FILE = "preprocessor_config.json"
_PROCESSORS = ("ViT", "DeiT", "Bit", "CLIP", "Siglip", "ConvNext", "MobileNetV2")  # of transformers
_ENDINGS = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")

# Between Pillow's warning and its error lie images of 90 to 180 megapixels, which are decoded like any other.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Processor(NamedTuple):
    """A checkpoint's image processor: Pillow resizes here, the arithmetic is left to the device.

    Attributes:
      resize: transformers' processor.
      scale, mean, std: pixels become (scale * u8 - mean) / std, per channel.
      settings: all of it, for the manifest.
    """

    resize: Any
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    settings: dict

    def __call__(self, image: Image.Image) -> np.ndarray:
        """[H, W, 3] u8 pixels of an RGB image."""
        pixels = self.resize(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        return pixels.transpose(1, 2, 0)

    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3) of every image."""
        return self(Image.new("RGB", (8, 8))).shape


class Square(NamedTuple):
    """Pictures of one size as they are, for encoders that train from scratch: nothing is cut off or normalised.

    Attributes:
      side: rows and columns, in pixels.
    """

    side: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        """[side, side, 3] u8 pixels of an RGB image."""
        return np.asarray(image.resize((self.side, self.side), Image.Resampling.BICUBIC))

    def shape(self) -> tuple[int, int, int]:
        """(side, side, 3)."""
        return self.side, self.side, 3


def arithmetic(settings: dict) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """(scale, mean, std) of a processor's settings."""
    scale = float(settings["rescale_factor"]) if settings["do_rescale"] else 1.0
    if not settings["do_normalize"]:
        return scale, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return scale, tuple(settings["image_mean"]), tuple(settings["image_std"])


def load_processor(folder: str | Path, image_size: int | None = None, default_size: int | None = None) -> Processor:
    """The image processor of a checkpoint folder.

    Args:
      folder: holds preprocessor_config.json.
      image_size: rows and columns to resize to instead of those it names.
      default_size: without that file, ImageNet's usual processing at this size; None refuses.

    Raises:
      UserError: no such file, one of another kind, or one that divides by 0.
    """
    import transformers  # a second to import, which only extraction pays

    path = Path(folder) / PROCESSOR_FILE
    size: dict[str, Any] = {}  # settings of a processor, as JSON has them
    if image_size is not None:
        sides = {"height": image_size, "width": image_size}
        size = {"size": sides, "do_resize": True, "do_center_crop": False}
    try:
        if path.is_file():
            kind = _class(path)
            if size and kind.startswith("ConvNext"):  # it crops to a square of its own accord
                size["size"] = {"shortest_edge": image_size}
            processor = getattr(transformers, kind).from_pretrained(str(folder), **size)
        elif default_size is not None:
            size = size or {"size": {"height": default_size, "width": default_size}}
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
            processor = transformers.ViTImageProcessorPil(image_mean=mean, image_std=std, resample=3, **size)
        else:
            raise UserError(f"{path}: file missing; copy it from the checkpoint")
        settings = {key: value for key, value in processor.to_dict().items() if key != "image_processor_type"}
        numbers = arithmetic(settings)
        if not all(0 < one < math.inf for one in numbers[2]):
            raise ValueError(f"image_std is {list(numbers[2])}, by which pixels are divided: numbers above 0")
        _try(processor)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; mend it or copy it again") from None
    return Processor(processor, *numbers, settings=json.loads(json.dumps(settings, default=str)))


def unlike(folder: Path, settings: dict) -> list[str]:
    """What a checkpoint folder's image processor does to pixels otherwise than the `settings` of a stored set.

    Sizes are left out: a set may have been made at another one on purpose.

    Returns:
      "image_mean [0.5, 0.5, 0.5] instead of [0.485, 0.456, 0.406]" and the like; [] where there is no such file.

    Raises:
      UserError: the file is no processor that is known.
    """
    path = Path(folder) / PROCESSOR_FILE
    if not path.is_file():
        return []
    try:
        _class(path)
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}; mend it or copy it again") from None
    names = [name for name in ("do_rescale", "do_normalize", "resample") if name in config and name in settings]
    for switch, numbers in (("do_rescale", ("rescale_factor",)), ("do_normalize", ("image_mean", "image_std"))):
        is_on = config.get(switch, True) and settings.get(switch, True)
        names += [name for name in numbers if is_on and name in config and name in settings]
    return [f"{name} {config[name]} instead of {settings[name]}" for name in names if config[name] != settings[name]]


def _class(path: Path) -> str:
    """The class of transformers, of those that need Pillow alone, that a processor's file names."""
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("not a JSON object")
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "ViTImageProcessor"
    name = next((name for name in _PROCESSORS for ending in _ENDINGS if kind == name + ending), None)
    if name is None:
        known = ", ".join(f"{name}ImageProcessor" for name in _PROCESSORS)
        raise UserError(f"{path}: image processor {kind!r} is not supported; take a checkpoint with one of {known}")
    if config.get("do_flip_channel_order"):
        raise UserError(f"{path}: do_flip_channel_order is true, images are read as RGB; take another checkpoint")
    return f"{name}ImageProcessorPil"


def _try(processor: Any) -> None:
    """Refuses a processor under which images of other sizes do not come out alike."""
    shapes = [
        processor(Image.new("RGB", size), return_tensors="np")["pixel_values"].shape for size in ((7, 9), (60, 8))
    ]
    if shapes[0] != shapes[1]:
        raise ValueError("images keep different sizes; give one with --image-size")


def open_image(content: bytes) -> Image.Image:
    """The image of a file's bytes as RGB: turned as its EXIF says, transparency on white, the first frame of several.

    Raises:
      OSError, ValueError, SyntaxError and others of Pillow's: it is no image, or a damaged one.
    """
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith(("I", "F")):  # 16 bits and more; Pillow's own conversion would cut at 255
        grey = np.asarray(image, np.float32)
        grey = grey / max(65535.0 if grey.max() > 255 else 255.0, grey.max()) * 255
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def file_digest(path: str) -> np.ndarray:
    """[16] u8 digest of a file; zeros where it cannot be read, as `read_image` gives it."""
    try:
        return digest(Path(path).read_bytes())
    except OSError:
        return np.zeros(DIGEST_BYTES, np.uint8)


def read_image(path: str, processor: Processor | Square) -> tuple[np.ndarray | None, np.ndarray, str]:
    """(pixels [H, W, 3] u8, digest [16] u8, ""), or (None, digest or zeros, what is wrong) of a file."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return None, np.zeros(DIGEST_BYTES, np.uint8), "file missing"
    except OSError as error:
        return None, np.zeros(DIGEST_BYTES, np.uint8), f"cannot be read ({error.strerror})"
    try:
        return processor(open_image(content)), digest(content), ""
    except UnidentifiedImageError:
        return None, digest(content), "not an image" if content else "empty file"
    except Image.DecompressionBombError:
        assert Image.MAX_IMAGE_PIXELS is not None  # without a limit Pillow raises no such error
        return None, digest(content), f"more than {2 * Image.MAX_IMAGE_PIXELS // 10**6} megapixels"
    except Exception as error:  # Pillow's decoders raise what they like on damaged files
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        return None, digest(content), f"damaged image ({reason})"


class ImageBatches:
    """Batch k of the images `order` [n], filled up with black ones; a source for `pipeline.batches`.

    Args:
      paths: files.
      order: [n] which of them, in order.
      batch_size: B.
      processor: of the checkpoint, or one that only resizes.
    """

    def __init__(self, paths: list[str], order: np.ndarray, batch_size: int, processor: Processor | Square):
        self._paths, self._order, self._batch_size, self._processor = paths, order, batch_size, processor
        self._shape = processor.shape()

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._batch_size)

    def members(self, k: int) -> np.ndarray:
        """Which files batch k holds, in order of its rows."""
        return self._order[k * self._batch_size : (k + 1) * self._batch_size]

    def __getitem__(self, k: int) -> dict[str, Any]:
        """{"inputs": (pixels [B, H, W, 3] u8,), "digest": [b, 16] u8, "problems": [b] str, "" where there is none}."""
        members = self.members(k)
        pixels = np.zeros((self._batch_size, *self._shape), np.uint8)
        digests, problems = np.zeros((len(members), DIGEST_BYTES), np.uint8), []
        for row, member in enumerate(members):
            image, digests[row], problem = read_image(self._paths[member], self._processor)
            problems.append(problem)
            if image is not None:
                pixels[row] = image
        return {"inputs": (pixels,), "digest": digests, "problems": problems}
