"""The mesh ("data", "model") and where arrays lie on it."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from em3_jax.core import trees
from em3_jax.core.batch import BY_EXAMPLE, BY_ITEM
from em3_jax.core.errors import UserError
from em3_jax.core.types import WHOLE, Batch, Shards

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


def make_layout(data: int, model: int, by_rows: tuple[str, ...], devices: Sequence[jax.Device] | None = None) -> Layout:
    """The layout of config.mesh; see `make_mesh` and `Layout`."""
    for pattern in by_rows:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.mesh.by_rows: '{pattern}' is no regular expression ({error})") from error
    return Layout(make_mesh(data, model, devices), tuple(by_rows))


def padded(rows: int, mesh: Mesh) -> int:
    """`rows` made up to a multiple of the devices: the same for all meshes whose size divides 1,024."""
    unit = math.lcm(1024, mesh.size)
    return math.ceil(rows / unit) * unit


def make_mesh(data: int, model: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of data x model devices; data = 0 takes all devices that `model` leaves.

    Args:
      devices: those there are; None = the machine's own. Of devices that are only described, see
        `is_described`.
    """
    of, devices = ("this machine has" if devices is None else "there are"), devices or jax.devices()
    data = data or len(devices) // max(model, 1)
    if data * model > len(devices) or data < 1 or model < 1:
        raise UserError(
            f"config.mesh: {data} x {model} does not fit, {of} {len(devices)} devices; give two positive "
            "sizes whose product fits"
        )
    axes, kinds = AXES, (AxisType.Auto,) * 2
    if len({device.process_index for device in devices}) == 1:
        return jax.make_mesh((data, model), axes, kinds, devices=devices[: data * model])
    # JAX follows the wires, and a process's devices may then lie apart; a process builds shards side by side.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))[: data * model]
    return Mesh(np.array(ordered).reshape(data, model), axes, kinds)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def is_described(mesh: Mesh) -> bool:
    """Whether its devices are descriptions, which programs are compiled for and no array lies on."""
    return mesh.devices.flat[0] not in jax.devices()


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Options for XLA of the programs of these devices.

    A TPU's compiler brings into its fast memory what fits there, a table of some millions of rows as
    well, of which a step reads a few thousand, and writes it back whole. And it makes sums in bf16 of
    those in f32 whose result is rounded, or goes into a product.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return {}
    return {
        "xla_msa_max_outstanding_evictions": "0",
        "xla_msa_max_cross_program_prefetches": "0",
        "xla_jf_bf16_propagation": "false",
    }


def put(tree: Any, shardings: Any) -> Any:
    """`jax.device_put`; where the devices are only described, the shapes of the arrays alone.

    Args:
      tree: arrays of numpy or jax.
      shardings: one for all, or a tree of them.
    """
    one = jax.tree.leaves(shardings)[0]
    if not is_described(one.mesh):
        return jax.device_put(tree, shardings)
    shape = lambda sharding, array: jax.ShapeDtypeStruct(  # noqa: E731
        array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=sharding
    )
    if isinstance(shardings, NamedSharding):
        return jax.tree.map(functools.partial(shape, shardings), tree)
    return jax.tree.map(shape, shardings, tree)


def _are_mine(mesh: Mesh) -> np.ndarray:
    """[data, model] bool, the devices of this process; of devices that are only described, all."""
    if is_described(mesh):
        return np.ones(mesh.devices.shape, bool)
    return np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)


def batch_shardings(mesh: Mesh, batch: Batch, shards: Shards = WHOLE) -> dict[str, Any]:
    """Key -> sharding of a batch: examples over the data axis, the block of distinct items over all devices.

    Distinct table rows are on every device. In blocks, all is over all devices.
    """

    def one(name: str, array: np.ndarray) -> NamedSharding:
        if shards.in_blocks or (name in BY_ITEM and len(array) % mesh.size == 0):
            return NamedSharding(mesh, BY_ROWS)
        if name in BY_EXAMPLE:
            return NamedSharding(mesh, PartitionSpec("data"))
        return replicated(mesh)

    return {name: jax.tree.map(functools.partial(one, name), value) for name, value in batch.items()}


def place(mesh: Mesh, shards: Shards, batch: Batch, *, stacked: bool = False) -> Batch:
    """A process's part of a batch as arrays over the mesh.

    Args:
      batch: numpy arrays, of this process's shards.
      stacked: they have a first axis, of steps.
    """
    step = jax.tree.map(lambda array: array[0], batch) if stacked else batch
    shardings = batch_shardings(mesh, step, shards)
    if stacked:
        shardings = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(None, *s.spec)), shardings)
    if jax.process_count() == 1:
        return put(batch, shardings)
    axis = int(stacked)

    def one(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        length = array.shape[axis] // shards.count
        shape = (*array.shape[:axis], length * shards.total, *array.shape[axis + 1 :])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX says of every part where it lies
            start, stop, _ = index[axis].indices(shape[axis])
            mine = slice(start - shards.first * length, stop - shards.first * length)
            return array[(slice(None),) * axis + (mine,)]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(one, batch, shardings)


def device_blocks(mesh: Mesh) -> Shards:
    """A shard for each device, in blocks, of which a process builds those of its own; see `core.exchange`."""
    held = np.flatnonzero(_are_mine(mesh))
    if not len(held) or held[-1] - held[0] + 1 != len(held):
        raise UserError(
            f"config.mesh: process {jax.process_index()} has no devices side by side on the mesh {dict(mesh.shape)}; "
            "use all devices of all processes"
        )
    if mesh.size % len(held):
        raise UserError(
            f"config.mesh: process {jax.process_index()} has {len(held)} of {mesh.size} devices; all "
            "processes need as many, choose sizes that take as many devices of each"
        )
    return Shards(int(held[0]), len(held), mesh.size)


def check_divides(mesh: Mesh, name: str, batch_size: int, parts: int = 0) -> None:
    """Refuses a batch size that the data axis does not divide, or `parts`."""
    axis = "" if parts else " (mesh axis 'data')"
    parts = parts or mesh.shape["data"]
    if batch_size < 1 or batch_size % parts:
        raise UserError(
            f"config.{name}={batch_size} does not divide over {parts} devices{axis}; "
            f"use {batch_size // parts * parts or parts} or another multiple of {parts}"
        )
