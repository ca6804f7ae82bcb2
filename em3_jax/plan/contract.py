"""What a training step promises on every device, read from its compiled program.

A step costs what its batch names, however long tables are; it adds in f32; nobody queues for one row;
it speaks to no host and knows no f64; what it is given it gives back in place. `breaches` says where
a program breaks that, a line each with the line of the source, and none if it keeps it.

How often a scatter names its most frequent row no program tells: `contention` traces a step on a real
batch and counts.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

from em3_jax.core.precision import MANY
from em3_jax.plan import cost
from em3_jax.plan.program import Operation, Program, exchanged

SHARE = 0.01  # of the updates of a scatter, that one row may take at most
FEWEST = 256  # updates from which on that is asked
_SLACK = 1.05
_SUMS = ("reduce", "scatter", "all-reduce", "reduce-scatter", "reduce-window", "select-and-scatter")
_NARROW = ("bf16", "f16")
_HOST = ("callback", "infeed", "outfeed", "MoveToHost", "MoveToDevice", "SendToHost", "RecvFromHost")


class Breach(NamedTuple):
    """Where a program breaks the contract.

    Attributes:
      rule: in a word or two.
      source: "file:line".
      what: in words.
    """

    rule: str
    source: str
    what: str

    def __str__(self) -> str:
        return f"{self.source or 'added by XLA'}: {self.rule}: {self.what}"


def breaches(program: Program, longer: Program | None = None, *, donated: int | None = None) -> list[Breach]:
    """The breaches of a compiled step.

    Args:
      program: of the step.
      longer: the same step with tables several times as long; None leaves out what only two tell.
      donated: how many arrays it should give back in place; None leaves that out.
    """
    found = [*_narrow_sums(program), *_host(program), *_f64(program)]
    if longer is not None:
        found += [*_growing(program, longer), *_growing_exchange(program, longer)]
    if donated is not None:
        found += _lost(program, donated)
    return list(dict.fromkeys(found))


def _narrow_sums(program: Program) -> Iterator[Breach]:
    """Sums of many addends in 16 bits."""
    for one in program:
        opcode = one.opcode.removesuffix("-start")
        if opcode not in _SUMS or program.combiner(one) != "add":
            continue
        for k, array in enumerate(one.results):
            if array.dtype in _NARROW and (opcode != "reduce" or _addends(program, one, k) >= MANY):
                yield Breach("narrow sum", one.source, f"{opcode} adds up {array.dtype}{list(array.sizes)}")


def _addends(program: Program, one: Operation, k: int) -> float:
    """How many numbers a reduction adds up for each of its results."""
    given = program.operand(one, k).results[0]
    return given.elements / max(one.results[k].elements, 1)


def _host(program: Program) -> Iterator[Breach]:
    for one in program:
        is_call = one.opcode == "custom-call" and any(word in one.rest for word in _HOST)
        is_transfer = one.opcode in ("infeed", "outfeed", "send", "recv") and "is_host_transfer=true" in one.rest
        if is_call or is_transfer or one.opcode in ("infeed", "outfeed"):
            yield Breach("host transfer", one.source, f"{one.opcode} waits for the host in each step")


def _f64(program: Program) -> Iterator[Breach]:
    for one in program:
        for array in one.results:
            if array.dtype in ("f64", "c128") and one.opcode not in ("parameter", "get-tuple-element"):
                yield Breach("f64", one.source, f"{one.opcode} gives {array.dtype}{list(array.sizes)}")


def _moved(program: Program) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(opcode, source, trace) -> (bytes moved, bytes of new results) of the kernels of that kind."""
    totals: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for one, times in program.kernels():
        inner = list(program.within(one))
        last = next((op for op in reversed(inner) if op.source), one)
        total = totals[one.opcode, one.source or last.source, one.traced or last.traced]
        total[0] += times * cost.bytes_moved(program, one)
        total[1] += 0 if any(op.opcode in ("scatter", "dynamic-update-slice") for op in inner) else one.bytes
    return {key: (moved, new) for key, (moved, new) in totals.items()}


def _growing(program: Program, longer: Program) -> Iterator[Breach]:
    """Kernels that move more, or make more, where tables are longer."""
    now, then = _moved(program), _moved(longer)
    for key, (moved, new) in then.items():
        before = now.get(key, (0, 0))
        opcode, source, traced = key
        if new > _SLACK * before[1] + 4096:
            what = f"{opcode} makes {before[1]:,} bytes, {new:,} with longer tables ({_last(traced)})"
            yield Breach("grows with the table", source, what)
        elif moved > _SLACK * before[0] + 4096:
            what = f"{opcode} moves {before[0]:,} bytes, {moved:,} with longer tables ({_last(traced)})"
            yield Breach("grows with the table", source, what)


def _growing_exchange(program: Program, longer: Program) -> Iterator[Breach]:
    def totals(one: Program) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = defaultdict(int)
        for collective in one.collectives():
            found[collective.collective, collective.source] += exchanged(collective)
        return found

    now = totals(program)
    for (kind, source), size in totals(longer).items():
        if size > _SLACK * now.get((kind, source), 0) + 4096:
            before = now.get((kind, source), 0)
            what = f"{kind} exchanges {before:,} bytes, {size:,} with longer tables"
            yield Breach("exchange grows with the table", source, what)


def _lost(program: Program, donated: int) -> list[Breach]:
    """Outputs of the state that are no argument's place."""
    results = program.computations[program.entry][-1]
    root = next((one for one in program.computations[program.entry] if one.is_root), results)
    found = []
    for number in range(donated):
        if number in program.aliases:
            continue
        is_one_of = root.opcode == "tuple" and number < len(root.operands)
        source, name = _origin(program, program.operand(root, number) if is_one_of else root)
        found.append(Breach("lost donation", source, f"{name} is not written in the place of what was donated"))
    return found


def _origin(program: Program, one: Operation) -> tuple[str, str]:
    """(source, shape in words) of what gives an output."""
    name = ", ".join(f"{array.dtype}{list(array.sizes)}" for array in one.results)
    for _ in range(16):
        inner = [op.source for op in program.within(one) if op.source]
        if one.source or inner or not one.operands:
            return one.source or (inner[-1] if inner else ""), name
        one = program.operand(one, 0)
    return "", name


def _last(traced: str) -> str:
    return traced.rsplit("/", 1)[-1] or "by XLA"


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A sum or a write by index of a traced function, on real numbers.

    Attributes:
      source: "file:line".
      updates: how many rows are written, those beyond the target not counted.
      rows: how many rows of the target are.
      most: updates of the row that most name.
      is_promised_unique: whether the program says that no row occurs twice.
    """

    source: str
    updates: int
    rows: int
    most: int
    is_promised_unique: bool

    @property
    def share(self) -> float:
        """Of the updates, those of one row."""
        return self.most / max(self.updates, 1)

    @property
    def breach(self) -> Breach | None:
        """What is wrong with it, if anything is."""
        if self.is_promised_unique and self.most > 1:
            return Breach("repeated index", self.source, f"promised unique, and one row occurs {self.most:,} times")
        if self.updates >= FEWEST and self.most > 1 and self.share > SHARE:
            return Breach(
                "contended scatter", self.source, f"one row takes {self.share:.1%} of {self.updates:,} updates"
            )
        return None


def contention(function: Callable, *arguments: Any, platform: str) -> list[Scatter]:
    """The scatters of a function on real arguments, of the way that it goes on a platform.

    Args:
      function: traced, and what it scatters by computed on this machine, on one device. What it does
        in loops, and on conditions of the data, is not looked at.
      platform: "cpu", "gpu" or "tpu".
    """
    closed = jax.make_jaxpr(function)(*arguments)
    found: list[Any] = []

    def indices(inputs: Sequence[Any]) -> list[jax.Array]:
        _watch(closed.jaxpr, closed.consts, inputs, platform, found)
        return [index for _, index in found]

    # Compiled, as the step is: what the indices do not depend on is left out, and nothing runs by itself.
    real = jax.jit(indices)(jax.tree.leaves(arguments))
    return [_scatter(equation, index) for (equation, _), index in zip(found, real, strict=True)]


_CALLS = ("jaxpr", "call_jaxpr")


def _watch(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], platform: str, found: list[Any]) -> list[Any]:
    """What a jaxpr gives; adds (equation, index) of its scatters to `found`."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))
    read = lambda atom: atom.val if isinstance(atom, core.Literal) else values[atom]  # noqa: E731
    for equation in jaxpr.eqns:
        given = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
        inner = next((params[key] for key in _CALLS if key in params), None)
        if name == "cond" and isinstance(given[0], np.integer):  # of `_platform_index`
            branch = params["branches"][int(given[0])]
            results = _watch(branch.jaxpr, branch.consts, given[1:], platform, found)
        elif name == "platform_index":
            results = [_platform_index(params["platforms"], platform)]
        elif inner is not None and name not in ("scan", "while", "shard_map", "custom_linear_solve"):
            plain = getattr(inner, "jaxpr", inner)
            results = _watch(plain, getattr(inner, "consts", ()), given, platform, found)
        else:
            if name.startswith("scatter"):
                found.append((equation, given[1]))
            results = equation.primitive.bind(*given, **equation.primitive.get_bind_params(params))
            results = results if equation.primitive.multiple_results else [results]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _platform_index(platforms: Sequence[Any], platform: str) -> np.ndarray:
    wanted = {"gpu": ("gpu", "cuda"), "tpu": ("tpu",), "cpu": ("cpu",)}[platform]
    for k, names in enumerate(platforms):
        if names is None or set(names) & set(wanted):
            return np.int32(k)  # type: ignore[return-value]
    raise ValueError(f"no way for {platform} among {platforms}")


def _scatter(equation: Any, given: jax.Array) -> Scatter:
    target, index = equation.invars[0].aval, np.asarray(given)
    numbers = equation.params["dimension_numbers"]
    axes = numbers.scatter_dims_to_operand_dims
    flat = index.reshape(-1, index.shape[-1])
    sizes = np.array([target.shape[axis] for axis in axes])
    inside = ((flat >= 0) & (flat < sizes)).all(axis=1)
    rows = np.ravel_multi_index(tuple(flat[inside].T), tuple(sizes)) if len(axes) else np.zeros(0, np.int64)
    counts = np.unique(rows, return_counts=True)[1]
    most = int(counts.max(initial=0))
    return Scatter(_line(equation), int(inside.sum()), len(counts), most, bool(equation.params["unique_indices"]))


def _line(equation: Any) -> str:
    from jax._src import source_info_util

    from em3_jax.plan import program

    frames = list(source_info_util.user_frames(equation.source_info.traceback))
    own = [frame for frame in frames if "em3_jax" in frame.file_name] or frames
    return program.shown(own[0].file_name, str(own[0].start_line)) if own else ""
