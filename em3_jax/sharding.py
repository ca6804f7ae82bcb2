"""The mesh ("data", "model") and where arrays lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from em3_jax.types import UserError

BY_EXAMPLE = ("label", "weight", "item_position", "history_position", "history_mask", "history_row", "user_row",
              "context_row", "user", "positive", "negative")  # fmt: skip


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of data x model devices; data = 0 takes all devices that `model` leaves."""
    devices = jax.devices()
    data = data or len(devices) // max(model, 1)
    if data * model > len(devices) or data < 1 or model < 1:
        raise UserError(
            f"config.mesh: {data} x {model} does not fit, this machine has {len(devices)} devices; give two positive sizes "
            "whose product fits"
        )
    return jax.make_mesh((data, model), ("data", "model"), (AxisType.Auto,) * 2, devices=devices[: data * model])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def batch_shardings(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, NamedSharding]:
    """Key -> sharding of a batch: examples over the data axis, the distinct blocks on every device."""
    by_example = NamedSharding(mesh, PartitionSpec("data"))
    return {
        name: by_example if name in BY_EXAMPLE else jax.tree.map(lambda _: replicated(mesh), value)
        for name, value in batch.items()
    }


def check_divides(mesh: Mesh, name: str, batch_size: int) -> None:
    """Refuses a batch size that the data axis does not divide."""
    parts = mesh.shape["data"]
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"config.{name}={batch_size} does not divide over {parts} devices (mesh axis 'data'); "
            f"use {batch_size // parts * parts or parts} or another multiple of {parts}"
        )
