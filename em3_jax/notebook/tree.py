"""A model as a tree of text: modules, the shapes of what they have and give, and how many parameters they have."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from em3_jax.core.batch import KEYS
from em3_jax.tables import packing
from em3_jax.training import step
from em3_jax.training.experiment import Experiment

SIZES = {"B": 100_003, "S": 100_019, "C": 100_043, "R": 100_057}
"""Letter -> the size that stands for it while shapes are found: primes, which nothing else is a multiple of."""
MEANINGS = {
    "B": "examples", "S": "distinct items", "C": "of them with content", "R": "distinct table rows",
}  # fmt: skip
WIDEST = 68  # characters of a line before its number


class Called(NamedTuple):
    """A module as it was called.

    Attributes:
      kind: its class.
      gives: the shape of what it gives, in letters.
    """

    kind: str
    gives: str


Place = tuple[frozenset, tuple[str, ...]]
"""(names of the outermost parts of the model that a module belongs to, its path in that model)."""
Calls = dict[Place, Called]
"""The modules that were called, in this order."""


def model_tree(parts: Experiment) -> str:
    """The model of an experiment as a tree, a line a module: its parameters' shapes, what it gives, how many it has."""
    batch = parts.work.source[0]
    calls = _calls(parts, batch) if parts.program.mesh.size == 1 else {}
    shapes, frozen = parts.program.shapes, parts.program.frozen
    lines = [(f"task {parts.config.task} on {parts.work.dataset.root.name}", "parameters")]
    for part, tree in shapes.params.items():
        lines += _lines(part, tree, part, None, calls, frozen)
    if shapes.tables:
        rows, width = packing.unpacked(shapes.tables)["embedding"].shape
        lines.append((f"tables  a row for each id [{rows:,}, {width}]", f"{rows * width:,}"))
    if shapes.memory:
        rows, width = packing.unpacked(shapes.memory)["vector"].shape
        lines.append((f"memory bank  a vector of each item [{rows:,}, {width}]", ""))
    number = max(len(count) for _, count in lines)
    text = [f"{label:<{WIDEST}} {count:>{number}}".rstrip() for label, count in lines]
    return "\n".join([*text, _letters(batch)])


def _lines(
    name: str, tree: Any, path: str, place: Place | None, calls: Calls, frozen: Mapping[str, bool], before: str = ""
) -> list[tuple[str, str]]:
    """(label, number of parameters) of a module and of those in it; `place` is None outside of what was called."""
    if place is None and (frozenset(tree), ()) in calls:
        place = frozenset(tree), ()
    own = {key: leaf for key, leaf in tree.items() if not isinstance(leaf, Mapping)}
    inside = {key: one for key, one in tree.items() if key not in own}
    called = calls.get(place) if place else None
    label = f"{before}{name}" + (f"  {called.kind}" if called else "")
    end = f" -> {called.gives}" if called and called.gives else ""
    names = [leaf for leaf in frozen if leaf.startswith(f"{path}/")]
    end += "  frozen" if names and all(frozen[leaf] for leaf in names) else ""
    shapes = "".join(f"  {key} {list(leaf.shape)}" for key, leaf in own.items())
    stem, beside = before.replace("├ ", "│ ").replace("└ ", "  "), len(label + shapes + end) <= WIDEST
    result = [(label + (shapes if beside else "") + end, f"{_size(tree):,}")]
    places = {key: (place[0], (*place[1], key)) if place else None for key in inside}
    called_at = {one: k for k, one in enumerate(calls)}
    order = sorted(inside, key=lambda key: called_at.get(places[key], len(calls)))  # type: ignore[arg-type]
    children = [*([] if beside else own), *order]
    for k, key in enumerate(children):
        branch = stem + ("└ " if k == len(children) - 1 else "├ ")
        if key in inside:
            result += _lines(key, inside[key], f"{path}/{key}", places[key], calls, frozen, branch)
        else:
            result.append((f"{branch}{key} {list(own[key].shape)}", f"{_size(own[key]):,}"))
    return result


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _calls(parts: Experiment, batch: Mapping[str, Any]) -> Calls:
    """The modules that a prediction calls; nothing is computed."""
    found: Calls = {}
    sizes = SIZES if "encode_position" in batch else SIZES | {"C": SIZES["S"]}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or module.scope is None:
            return call(*args, **kwargs)
        place = frozenset(module.scope.root.variables().get("params", {})), module.path
        found.setdefault(place, Called(type(module).__name__, ""))
        out = call(*args, **kwargs)
        arrays = [leaf for leaf in jax.tree.leaves(out) if hasattr(leaf, "shape")]
        found[place] = Called(type(module).__name__, _in_letters(arrays[0].shape) if arrays else "")
        return out

    program, shapes = parts.program, parts.program.shapes
    apply = step.make_apply(parts.work.task, parts.work.task.predict, program.mesh, parts.work.shards)
    with nn.intercept_methods(record):
        jax.eval_shape(
            apply, shapes.params, shapes.tables, shapes.memory, parts.work.constants, _of_sizes(batch, sizes)
        )
    return found


def _of_sizes(batch: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The shapes of a batch whose letters have other sizes."""

    def one(name: str, array: Any) -> Any:
        shape = [sizes.get(axis, size) for axis, size in zip(KEYS[name].axes, array.shape, strict=False)]
        return jax.ShapeDtypeStruct((*shape, *array.shape[len(shape) :]), array.dtype)

    return {name: jax.tree.map(lambda array, name=name: one(name, np.asarray(array)), of) for name, of in batch.items()}


def _in_letters(shape: tuple[int, ...]) -> str:
    """ "[S, 64]" of (100019, 64)."""
    return f"[{', '.join(map(_in_letter, shape))}]"


def _in_letter(size: int) -> str:
    for letter, of in SIZES.items():
        if size and size % of == 0:
            return letter if size == of else f"{size // of} {letter}"
    return str(size)


def _letters(batch: Mapping[str, Any]) -> str:
    """What the letters stand for in a batch."""
    sizes: dict[str, int] = {}
    for name, of in batch.items():
        for letter, size in zip(KEYS[name].axes, jax.tree.leaves(of)[0].shape, strict=False):
            sizes.setdefault(letter, size)
    return ", ".join(f"{letter} = {sizes[letter]:,} {said}" for letter, said in MEANINGS.items() if letter in sizes)
