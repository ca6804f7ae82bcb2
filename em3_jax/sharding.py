"""The mesh ("data", "model") and where arrays lie on it."""

import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from em3_jax import trees
from em3_jax.types import UserError

BY_EXAMPLE = ("label", "weight", "item_position", "history_position", "history_mask", "history_row", "user_row",
              "context_row", "user", "positive", "negative")  # fmt: skip
AXES = ("data", "model")
BY_ROWS = PartitionSpec(AXES)  # the first axis over all devices


class Layout(NamedTuple):
    """config.mesh: the devices, and what of the state is cut by rows over all of them; the rest is on each.

    Attributes:
      mesh: the devices.
      by_rows: regexes, each of which has to match the whole name of some leaf of the state, e.g. "tables/.*".
    """

    mesh: Mesh
    by_rows: tuple[str, ...]

    def shardings(self, state: Any) -> Any:
        """The tree of shardings of a state, or of its shapes.

        Raises:
          UserError: a pattern matches no leaf, or the rows of a leaf do not divide.
        """
        names = trees.named_leaves(state)
        for pattern in self.by_rows:
            if not any(re.fullmatch(pattern, name) for name in names):
                raise UserError(
                    f"config.mesh.by_rows: '{pattern}' matches nothing of the state; there are: {', '.join(names)[:400]}"
                )

        def one(name: str, leaf) -> NamedSharding:
            if not any(re.fullmatch(pattern, name) for pattern in self.by_rows):
                return replicated(self.mesh)
            if leaf.ndim == 0 or len(leaf) % self.mesh.size:
                raise UserError(
                    f"config.mesh.by_rows: {name} of shape {list(leaf.shape)} does not divide by rows over {self.mesh.size} "
                    "devices; leave it out"
                )
            return NamedSharding(self.mesh, BY_ROWS)

        return trees.map_named(one, state)


def make_layout(data: int, model: int, by_rows: tuple[str, ...]) -> Layout:
    """The layout of config.mesh; see `make_mesh` and `Layout`."""
    for pattern in by_rows:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.mesh.by_rows: '{pattern}' is no regular expression ({error})") from error
    return Layout(make_mesh(data, model), tuple(by_rows))


def padded(rows: int, mesh: Mesh) -> int:
    """`rows` made up to a multiple of the devices: the same for all meshes whose size divides 1,024."""
    unit = math.lcm(1024, mesh.size)
    return math.ceil(rows / unit) * unit


def make_mesh(data: int, model: int) -> Mesh:
    """A mesh of data x model devices; data = 0 takes all devices that `model` leaves."""
    devices = jax.devices()
    data = data or len(devices) // max(model, 1)
    if data * model > len(devices) or data < 1 or model < 1:
        raise UserError(
            f"config.mesh: {data} x {model} does not fit, this machine has {len(devices)} devices; give two positive sizes "
            "whose product fits"
        )
    return jax.make_mesh((data, model), AXES, (AxisType.Auto,) * 2, devices=devices[: data * model])


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
