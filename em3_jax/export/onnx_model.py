"""The ranking model as one ONNX file, by jax2onnx: what `export.scorer` computes, parameters and ID table within.

    inputs   the arrays of a request, see `core.batch.REQUEST`, for `CANDIDATES` candidates; "candidate.<name>" and
             "history.<name>" of what is looked up. A shorter request is padded with row 0. Or for any number of candidates,
             and of a model of several histories for any number of events that these read ("history_slot")
    output   logit [candidates] f32, of a model of several labels [candidates, 1 + H], the first one's before the further ones'

The rows of ids and what is looked up of items are those of the store's version that the file lies in.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from em3_jax.core import trees
from em3_jax.core.batch import REQUEST
from em3_jax.core.errors import UserError
from em3_jax.export import scorer
from em3_jax.tasks import Task

FILE = "ranker.onnx"
CANDIDATES = 64
OPEN = {"B": "candidates", "T": "events"}
"""Axes of a request that may be open -> their names in the file."""
PACKAGES = "jax2onnx onnx-ir sympy mpmath"
_NEARLY = 1e-4  # of the logits' size; f32 sums in another order differ by less
_INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr",
}  # fmt: skip
"""Primitives that hold a program -> the parameter that it is."""


def write_onnx(
    path: Path, task: Task, params: Any, table: np.ndarray, request: dict[str, Any], opened: Sequence[str] = ()
) -> dict[str, Any]:
    """Writes the model to a file, and compares it with the run where onnxruntime is there.

    Args:
      params: of the task.
      table: [V, W] f32 the ID embedding table.
      request: of `scorer.request_shapes`, for `CANDIDATES` candidates.
      opened: axes of `OPEN`, which are of any length in the file.

    Returns:
      {"candidates": how many, or its name where that is open, "inputs": {name: [shape, dtype]}}, and
      "largest_difference" of a drawn request's logits where it was compared, where axes are open of
      shorter and longer ones, too.

    Raises:
      UserError: the packages are missing; the converter does not know an operation, which is named;
        the file gives other logits.
    """
    _require()
    structure, names = jax.tree.structure(params), list(trees.named_leaves(params))
    flat = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(params).items()}
    score = scorer.scorer(task, lambda flat: jax.tree.unflatten(structure, [flat[name] for name in names]))
    given = trees.named_leaves(request)
    shapes = [shape for shape in given.values() if 0 not in shape.shape]
    inputs = [name.replace("/", ".") for name, shape in given.items() if 0 not in shape.shape]
    of_request = jax.tree.structure(request)

    def logits(*arrays: Any) -> jax.Array:
        left = iter(arrays)
        every = [np.zeros(one.shape, one.dtype) if 0 in one.shape else next(left) for one in given.values()]
        result: jax.Array = score(flat, table, jax.tree.unflatten(of_request, every))
        return result

    of_file = _opened(shapes, inputs, opened)
    _convert(path, jax.make_jaxpr(logits)(*of_file), of_file, inputs)
    facts: dict[str, Any] = {
        "candidates": OPEN["B"] if "B" in opened else CANDIDATES,
        "inputs": {
            name: [[one if isinstance(one, int) else str(one) for one in of.shape], of.dtype.name]
            for name, of in zip(inputs, of_file, strict=True)
        },
    }
    if importlib.util.find_spec("onnxruntime") is None:
        return facts
    run = jax.jit(logits)
    compared = [shapes, *([_scaled(shapes, inputs, opened, *one) for one in ((1, 64), (3, 2))] if opened else [])]
    return facts | {"largest_difference": max(_compared(path, run, one, inputs, len(table)) for one in compared)}


def _axes(name: str) -> list[str]:
    """The letters of an input's axes."""
    return REQUEST[name.partition(".")[0]].axes


def _opened(shapes: Sequence[Any], inputs: Sequence[str], opened: Sequence[str]) -> list[Any]:
    """`shapes` with symbols for the axes that are open."""
    if not opened:
        return list(shapes)
    named = dict(zip(opened, jax.export.symbolic_shape(", ".join(OPEN[axis] for axis in opened)), strict=True))

    def one(shape: Any, name: str) -> jax.ShapeDtypeStruct:
        sizes = zip(_axes(name), shape.shape, strict=True)
        return jax.ShapeDtypeStruct(tuple(named.get(axis, size) for axis, size in sizes), shape.dtype)

    return [one(shape, name) for shape, name in zip(shapes, inputs, strict=True)]


def _scaled(shapes: Sequence[Any], inputs: Sequence[str], opened: Sequence[str], times: int, parts: int) -> list[Any]:
    """`shapes` whose open axes are times / parts as long, 1 at least."""

    def one(shape: Any, name: str) -> jax.ShapeDtypeStruct:
        sizes = zip(_axes(name), shape.shape, strict=True)
        return jax.ShapeDtypeStruct(
            tuple(max(size * times // parts, 1) if axis in opened else size for axis, size in sizes), shape.dtype
        )

    return [one(shape, name) for shape, name in zip(shapes, inputs, strict=True)]


def _require() -> None:
    if importlib.util.find_spec("jax2onnx") is None:
        raise UserError(
            f"--format onnx: needs jax2onnx, which asks for older versions of other packages: "
            f"pip install --no-deps {PACKAGES}"
        )


def _convert(path: Path, program: core.ClosedJaxpr, shapes: Sequence[Any], inputs: Sequence[str]) -> None:
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)  # of parts that are not there it would tell at length
    from jax2onnx import to_onnx  # an optional package, which patches jax.numpy when it is imported

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    try:
        to_onnx(
            lambda *arrays: evaluated(program.jaxpr, program.consts, arrays)[0],
            list(shapes),
            model_name="em3_jax",
            return_mode="file",
            output_path=str(path),
            input_names=list(inputs),
            output_names=["logit"],
        )
    except NotImplementedError as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--format onnx: jax2onnx cannot write an operation of this model ({said})") from None


def evaluated(program: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The outputs of a program on CPUs, its operations called one by one.

    What it calls is inlined, and of what depends on the platform that of CPUs is taken: converters
    know neither.
    """
    known: dict[core.Var, Any] = dict(zip([*program.constvars, *program.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    for equation in _needed(program):
        name, values = equation.primitive.name, [read(one) for one in equation.invars]
        is_known = bool(values) and isinstance(values[0], int | np.integer)
        if name == "platform_index":
            groups = equation.params["platforms"]
            found = [next((k for k, one in enumerate(groups) if one is None or "cpu" in one), len(groups) - 1)]
        elif name == "cond" and is_known:
            branch = equation.params["branches"][int(values[0])]
            found = evaluated(branch.jaxpr, branch.consts, values[1:])
        elif name in ("convert_element_type", "clamp") and all(isinstance(one, int | np.integer) for one in values):
            found = [values[0] if name == "convert_element_type" else min(max(values[1], values[0]), values[2])]
        elif name in _INLINED:
            inner = equation.params[_INLINED[name]]
            found = evaluated(inner.jaxpr, inner.consts, values)
        else:
            found = equation.primitive.bind(*values, **equation.params)
            found = list(found) if equation.primitive.multiple_results else [found]
        known.update(zip(equation.outvars, found, strict=True))
    return [read(one) for one in program.outvars]


def _needed(program: core.Jaxpr) -> list[core.JaxprEqn]:
    """The operations that outputs come of: others may be what a converter does not know, such as arrays of nothing."""
    wanted, kept = {one for one in program.outvars if isinstance(one, core.Var)}, []
    for equation in reversed(program.eqns):
        if not wanted.isdisjoint(equation.outvars):
            kept.append(equation)
            wanted |= {one for one in equation.invars if isinstance(one, core.Var)}
    return kept[::-1]


def _compared(path: Path, logits: Callable, shapes: Sequence[Any], inputs: Sequence[str], rows: int) -> float:
    """The largest difference of the logits of a drawn request.

    Args:
      rows: V, of the table.
    """
    import onnxruntime

    random = np.random.default_rng(0)
    arrays: list[np.ndarray] = []
    events = dict(zip(inputs, shapes, strict=True))["history_row"].shape[0] if "history_row" in inputs else 0
    for name, shape in zip(inputs, shapes, strict=True):
        if shape.dtype == np.bool_:
            arrays.append(random.random(shape.shape) < 0.7)
        elif name == "history_slot":
            arrays.append(random.integers(-1, events, shape.shape).astype(shape.dtype))
        elif np.issubdtype(shape.dtype, np.integer):
            arrays.append(random.integers(0, rows, shape.shape).astype(shape.dtype))
        else:
            arrays.append(random.standard_normal(shape.shape).astype(shape.dtype))
        key = REQUEST.get(name, REQUEST["candidate"])
        if key.given and key.dtype == np.float32:  # numbers, some of which are missing
            arrays[-1][random.random(shape.shape) < 0.2] = np.nan
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, dict(zip(inputs, arrays, strict=True)))[0]
    except Exception as error:  # its errors have no class in common
        said = " ".join(str(error).split())[:300]
        raise UserError(f"--format onnx: onnxruntime cannot run what jax2onnx has written ({said})") from None
    expected = np.asarray(logits(*arrays))
    off = float(np.abs(found - expected).max())
    if not off <= _NEARLY * max(float(np.abs(expected).max()), 1.0):
        raise UserError(f"--format onnx: the file's logits are {off:.3g} off those of the run; export without it")
    return off
