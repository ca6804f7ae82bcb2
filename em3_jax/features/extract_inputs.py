"""What an extraction reads, and by which encoder: the images or the texts of a dataset's items."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from em3_jax.data import content as content_
from em3_jax.data.content import Content
from em3_jax.data.format import Dataset
from em3_jax.features import encoding, sentences


class Job(NamedTuple):
    """What is encoded, and how.

    Attributes:
      content: the images or texts of the items.
      inputs: what the manifest says of them.
      encoder: reads them.
      layout: of the batches: what differs here gives other batches, with which no extraction goes on.
    """

    content: Content
    inputs: dict[str, Any]
    encoder: encoding.Encoder
    layout: dict[str, int]


def of_images(
    dataset: Dataset,
    folder: Path,
    settings: encoding.Settings,
    *,
    frames: int,
    images: str | Path | None,
    image_size: int | None,
    batch_size: int,
    below: str,
    dtype: str,
) -> Job:
    """The items' images; a batch has the next multiple of the devices, over which its rows go.

    Args:
      dataset: whose items they are of.
      folder: of the encoder.
      settings: of the encoder.
      frames, images, image_size, batch_size, below, dtype: see `extract`; "" = nothing is cut.
    """
    devices = len(jax.local_devices())
    content = content_.images(dataset, frames, images)
    layout = {"batch_size": -(-batch_size // devices) * devices}
    options: dict[str, Any] = {"image_size": image_size, "below": below, "dtype": dtype, **layout}
    encoder = encoding.image_encoder(folder, content, settings, **options)
    return Job(content, {"frames": frames}, encoder, layout)


def of_texts(
    dataset: Dataset,
    use: sentences.Use,
    settings: encoding.Settings,
    *,
    fields: tuple[str, ...],
    join: str | None,
    batch_tokens: int,
) -> Job:
    """The items' texts; a batch has a multiple of the devices, over which its rows go.

    Args:
      dataset: whose items they are of.
      use: the encoder and how it is used.
      settings: of the encoder.
      fields, join, batch_tokens: see `extract`.
    """
    content = content_.texts(dataset, fields, join)
    layout = {"batch_tokens": batch_tokens, "multiple": len(jax.local_devices())}
    encoder = encoding.text_encoder(use, content, settings, **layout)
    inputs = {"fields": list(fields) or dataset.meta["text_columns"], "join": join}
    return Job(content, inputs, encoder, layout)
