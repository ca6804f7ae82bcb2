"""The content features of a run: which of a dataset's feature sets, which of their token slots, and where they lie."""

import dataclasses
import functools
import os
import re
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from em3_jax.core import sharding
from em3_jax.core.errors import UserError
from em3_jax.data.checks import all_finite, first_not_finite
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.features.tokens import is_raw, standardise
from em3_jax.tables import slabs
from em3_jax.tables.slabs import Table

Features = dict[str, tuple[Table, Table | slabs.Within]]
"""Feature tables on the device: {modality: (standardised or raw tokens [I, N, E], mask [I, N])}."""

NARROWEST = 3  # numbers of a token: of fewer, mean and length, which standardising takes, are all
_BLOCK = 1024  # items standardised at once
_NAME = re.compile(r"(\w+)(?:\[(-?\d*)(:?)(-?\d*)\])?")


def load_features(dataset: Dataset, names: tuple[str, ...]) -> list[FeatureSet]:
    """The feature sets that a config names, in f16 or f32 as stored; refuses NaN and infinity.

    Args:
      names: of feature sets, each with or without token slots as Python has it: "image", "image[0]" (the first frame alone),
        "image[:4]".
    """
    if not names:
        raise UserError(
            "config.data.features is empty but config.model.content uses content; name at least one feature set"
        )
    sets = [_slots(dataset, name) for name in names]
    for features in sets:
        if [other.name for other in sets].count(features.name) > 1:
            raise UserError(
                f"config.data.features: '{features.name}' is named twice; name it once, e.g. {features.name}[:2]"
            )
        if features.manifest.get("random_weights") is not None:
            warnings.warn(f"features '{features.name}' come from an encoder with random weights", stacklevel=2)
        if features.is_raw:
            continue
        for start in range(0, len(features.tokens), 4096):
            block = slice(start, start + 4096)
            if all_finite(features.tokens[block]):
                continue
            kept = np.where(features.mask[block, :, None], features.tokens[block], np.zeros((), features.tokens.dtype))
            row = first_not_finite(kept)
            if row is not None:
                path = dataset.root / "features" / features.name / "tokens.npy"
                raise UserError(f"{path} row {start + row}: NaN or infinity; mend the array or mask the token")
    return sets


def _slots(dataset: Dataset, text: str) -> FeatureSet:
    """The feature set of "image" or "image[0]"."""
    found = _NAME.fullmatch(text)
    if not found:
        raise UserError(f"config.data.features: '{text}' is no feature set; write name, name[slot] or name[first:end]")
    name, first, colon, end = found.groups()
    features = dataset.features(name)
    if first is None:
        return features
    if features.is_raw:
        raise UserError(
            f"config.data.features: '{text}': raw features have no token slots; extract fewer with --frames"
        )
    number = features.tokens.shape[1]
    if colon:
        chosen = slice(int(first) if first else None, int(end) if end else None)
    else:
        chosen = slice(int(first), int(first) + 1 or None) if first else slice(0, 0)
    if len(range(number)[chosen]) == 0:
        raise UserError(f"config.data.features: '{text}' takes no slot; {name} has {number}, counted from 0")
    return dataclasses.replace(features, tokens=features.tokens[:, chosen], mask=features.mask[:, chosen])


def on_device(placement: str, feature_sets: list[FeatureSet], mesh: Mesh) -> bool:
    """Whether features lie on the devices: config.data.placement "device", "host", or "auto", device if they fit.

    They are cut by rows over the mesh, so it is the memory of all devices that counts; the state has half of it.
    """
    if placement not in ("device", "host", "auto"):
        raise UserError(f"config.data.placement '{placement}' is unknown; choose device, host or auto")
    if placement != "auto":
        return placement == "device"
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    memory = stats["bytes_limit"] * mesh.size if "bytes_limit" in stats else host * jax.process_count()
    return sum(slabs.bytes_on(mesh, features.tokens) for features in feature_sets) <= memory / 2


def to_device(feature_sets: list[FeatureSet], mesh: Mesh, dealt: bool = False) -> Features:
    """The feature tables, standardised, over all devices; items that they lack, to divide evenly, are masked.

    Args:
      dealt: item i lies on device i % n, as `core.exchange` wants it; else each has a run of items.
    """

    def place(array: np.ndarray) -> Table:
        per_device, kind = -(-len(array) // mesh.size), slabs.kind_on(mesh, array)
        lying = functools.partial(kind.of, xp=np) if kind else np.asarray

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # JAX asks for parts alone
            run = index[0]
            if dealt:
                run = slice((run.start or 0) // per_device, None, mesh.size)
            rows = np.asarray(array[run])
            if len(rows) < per_device:
                rows = np.pad(rows, [(0, per_device - len(rows))] + [(0, 0)] * (array.ndim - 1))
            return lying(rows)

        one, where = lying(array[:1]), NamedSharding(mesh, sharding.BY_ROWS)
        shape = (per_device * mesh.size, *one.shape[1:])
        placed: Any
        if sharding.is_described(mesh):
            placed = sharding.put(jax.ShapeDtypeStruct(shape, one.dtype), where)
        else:
            placed = jax.make_array_from_callback(shape, where, part)
        return kind(placed, array.shape[1:]) if kind else placed

    by_rows = sharding.BY_ROWS
    in_place = [
        jax.jit(jax.shard_map(done, mesh=mesh, in_specs=(by_rows,) * 2, out_specs=by_rows), donate_argnums=0)
        for done in (_standardise, functools.partial(_standardise, is_within=True))
    ]
    tables: Features = {}
    for features in feature_sets:
        tokens, mask = place(features.tokens), place(features.mask)
        is_within = slabs.kind_on(mesh, features.mask) is not None and not is_raw(features.tokens)
        if not (is_raw(features.tokens) or sharding.is_described(mesh)):
            tokens = in_place[is_within](tokens, mask)
        tables[features.name] = (tokens, slabs.Within() if is_within else mask)
    return tables


def _standardise(tokens: Table, mask: Table, is_within: bool = False) -> Table:
    """`tokens.standardise` in the memory of `tokens`, a block of items at a time: all at once takes several times as much in f32.

    All blocks are of one size, for what is computed of another number of items may differ in the last bit; the last overlaps.

    Args:
      is_within: whether the mask is to be in the tokens, see `slabs.Within`.
    """
    size = min(_BLOCK, len(slabs.lines(tokens)))
    last = len(slabs.lines(tokens)) - size

    def block(tokens: Table, start: int | jax.Array) -> jax.Array:
        some = lambda array: jax.lax.dynamic_slice_in_dim(array, start, size)  # noqa: E731
        valid = slabs.items(mask, some)
        done = standardise(slabs.items(tokens, some), valid)
        done = slabs.Within.marked(done, valid) if is_within else done
        return tokens.of(done, jnp) if isinstance(tokens, slabs.Slabs) else done

    def write(tokens: Table, done: jax.Array, start: int | jax.Array) -> Table:
        return jax.tree.map(lambda array: jax.lax.dynamic_update_slice_in_dim(array, done, start, axis=0), tokens)

    overlapping = block(tokens, last)
    tokens = jax.lax.fori_loop(0, -(-last // size), lambda k, t: write(t, block(t, k * size), k * size), tokens)
    return write(tokens, overlapping, last)


class Content(NamedTuple):
    """The content features of a run: all of them, those to gather on the host, and the tables on the device.

    What encoders read `beside` them, see `features.prior`, is none of them, but travels as they do.
    """

    sets: list[FeatureSet]
    on_host: tuple[FeatureSet, ...]
    tables: Features
    beside: FeatureSet | None = None


def load_content(
    dataset: Dataset,
    features: tuple[str, ...],
    place: str,
    mesh: Mesh,
    dealt: bool = False,
    beside: FeatureSet | None = None,
) -> Content:
    """The features that config.data names, on the device or on the host as config.data.placement says.

    Args:
      dealt: see `to_device`.
      beside: see `Content`.
    """
    sets = load_features(dataset, features)
    for one in sets:
        width = one.tokens.shape[-1]
        if not one.is_raw and width < NARROWEST:
            left = "nothing" if width == 1 else "two signs"
            raise UserError(
                f"config.data.features: the tokens of '{one.name}' are {width} wide, and {left} would "
                "be left of them once they are standardised over their width, as content is; give "
                f"{NARROWEST} numbers or more, or the number as a field (prepare table --item-fields)"
            )
    every = [*sets, *filter(None, [beside])]
    if on_device(place, sets, mesh):
        return Content(sets, (), to_device(every, mesh, dealt), beside)
    return Content(sets, tuple(every), {}, beside)
