"""A compiled program, read from its text: its operations, and where in the source they come from.

XLA prints a program as computations, lists of operations, each with a name of its own. The one that
runs is ENTRY; a `fusion` calls another as one kernel, a `while` runs one several times.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import em3_jax

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "ragged-all-to-all")
FREE = frozenset(
    "parameter constant bitcast tuple get-tuple-element after-all partition-id replica-id opt-barrier domain "
    "copy-done all-reduce-done all-gather-done collective-permute-done async-update async-done".split()
)
"""Operations that move nothing, or whose start has been counted."""

_PACKAGE = str(Path(em3_jax.__file__).parent)
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d[a-z0-9]*)\[([\d,<=]*)\]")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOPS = ("while", "conditional", "call", "async-start")


@dataclasses.dataclass(frozen=True)
class Array:
    """A shape in a program: element type, such as "f32", and sizes."""

    dtype: str
    sizes: tuple[int, ...]

    @property
    def elements(self) -> int:
        return int(np.prod(self.sizes, dtype=np.int64))

    @property
    def bytes(self) -> int:
        bits = {"pred": 8, "token": 0}.get(self.dtype) or int((re.findall(r"\d+", self.dtype) or [0])[0])
        return -(-self.elements * bits // 8)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a computation.

    Attributes:
      name, opcode: its own name, and what it does, such as "fusion" or "scatter".
      results: the arrays that it gives.
      operands: names of the operations it reads.
      computation: the one it stands in.
      is_root: whether it is that computation's result.
      traced: what JAX called it, such as "jit(step)/jvp(RankingModel)/gather".
      source: "file:line" in the caller's own code; "" where XLA has made it up.
      rest: the line from the operands on.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    computation: str
    is_root: bool
    traced: str
    source: str
    rest: str

    @property
    def bytes(self) -> int:
        """Of the results."""
        return sum(array.bytes for array in self.results)

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it runs, but for those that say how to combine two numbers."""
        names = [name for kind, name in _CALLS.findall(self.rest) if kind != "to_apply" or self.opcode == "call"]
        branches = _BRANCHES.search(self.rest)
        return (*names, *(re.findall(r"[\w.\-]+", branches[1]) if branches else ()))

    @property
    def number(self) -> int:
        """Of a parameter, which one it is."""
        return int(self.rest[1 : self.rest.index(")")])

    @property
    def collective(self) -> str:
        """Which of `COLLECTIVES` it starts; "" for none."""
        opcode = self.opcode.removesuffix("-start")
        return opcode if opcode in COLLECTIVES else ""

    @property
    def channel(self) -> str:
        """What tells a collective from others; parts of one may stand in several computations."""
        found = re.search(r"channel_id=(\d+)", self.rest)
        # Those of a `shard_map` have one channel, and perhaps one name; their frames differ.
        frame = re.search(r"stack_frame_id=(\d+)", self.rest)
        if not found:
            return self.name
        return f"{self.collective} {found[1]} {self.traced} {frame[1] if frame else ''}"


@dataclasses.dataclass(frozen=True)
class Program:
    """The operations of a compiled program.

    Attributes:
      computations: name -> its operations, in order.
      entry: name of the computation that runs.
      aliases: numbers of the outputs that take the place of a donated argument.
    """

    computations: Mapping[str, tuple[Operation, ...]]
    entry: str
    aliases: frozenset[int]

    def __iter__(self) -> Iterator[Operation]:
        """All operations, those within fusions too."""
        for operations in self.computations.values():
            yield from operations

    @functools.cached_property
    def by_name(self) -> dict[tuple[str, str], Operation]:
        """(computation, name) -> the operation."""
        return {(one.computation, one.name): one for one in self}

    def operand(self, one: Operation, k: int) -> Operation:
        """The operation that gives the k-th operand."""
        return self.by_name[one.computation, one.operands[k]]

    def combiner(self, one: Operation) -> str:
        """What a reduction, a scatter or an all-reduce combines two numbers by, such as "add"; "" where it sets."""
        found = re.search(r"to_apply=%?([\w.\-]+)", one.rest)
        inside = self.computations.get(found[1], ()) if found else ()
        kinds = [op.opcode for op in inside if op.opcode not in FREE | {"convert", "copy"}]
        return kinds[-1] if kinds else ""

    def kernels(self) -> Iterator[tuple[Operation, int]]:
        """(operation, how often it runs) of those that run by themselves; loops are entered."""
        yield from self._kernels(self.entry, 1)

    def _kernels(self, computation: str, times: int) -> Iterator[tuple[Operation, int]]:
        for one in self.computations.get(computation, ()):
            if one.opcode in _LOOPS:
                trips = _TRIPS.search(one.rest)
                for name in one.called:
                    yield from self._kernels(name, times * (int(trips[1]) if trips else 1))
            elif one.opcode not in FREE:
                yield one, times

    def within(self, one: Operation) -> Iterator[Operation]:
        """The operations of a kernel: those of a fusion, and of fusions in it; else itself."""
        if one.opcode != "fusion":
            yield one
        else:
            for name in one.called:
                for op in self.computations[name]:
                    yield from self.within(op)

    def collectives(self) -> list[Operation]:
        """The exchanges between devices, each once."""
        return list({one.channel: one for one in self if one.collective}.values())


def exchanged(one: Operation) -> int:
    """Bytes that a device holds after a collective."""
    arrays = one.results
    if one.opcode.endswith("-start") and len(arrays) > 1 and one.opcode != "all-reduce-start":
        arrays = arrays[len(arrays) // 2 :]  # (operands, results)
    return sum(array.bytes for array in arrays)


def exchanges(program: Program) -> dict[str, tuple[int, int]]:
    """Kind of collective -> (how many, bytes that a device holds after them); kinds that do not occur are left out."""
    found: dict[str, tuple[int, int]] = {}
    for one in program.collectives():
        number, total = found.get(one.collective, (0, 0))
        found[one.collective] = number + 1, total + exchanged(one)
    return found


def read(text: str) -> Program:
    """The program that `jax.stages.Compiled.as_text()` prints."""
    sources = _sources(text)
    computations: dict[str, list[Operation]] = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = head[2]
            computations[current] = []
            entry = current if head[1] else entry
        elif current and (found := _LINE.match(line)):
            computations[current].append(_operation(found, current, sources))
    header = text[: text.find("\n")]
    numbers = re.findall(r"\{(\d*)\}: \(\d+, ", header)
    aliases = frozenset(int(number or 0) for number in numbers)
    return Program({name: tuple(ops) for name, ops in computations.items()}, entry, aliases)


def _operation(found: re.Match, computation: str, sources: Mapping[str, str]) -> Operation:
    root, name, line = found.groups()
    end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
    shape, call = line[:end], line[end:].lstrip()
    opcode, _, _ = call.partition("(")
    rest = call[len(opcode) :]
    inside = rest[: _closing(rest, 0) + 1]
    metadata = re.search(r"op_name=\"([^\"]*)\"", rest)
    frame = re.search(r"stack_frame_id=(\d+)", rest)
    return Operation(
        name=name,
        opcode=opcode,
        results=tuple(_array(*one) for one in _SHAPE.findall(shape)),
        operands=() if opcode in ("parameter", "constant") else tuple(re.findall(r"%([\w.\-]+)", inside)),
        computation=computation,
        is_root=bool(root),
        traced=metadata[1] if metadata else "",
        source=sources.get(frame[1], "") if frame else _source_of_line(rest),
        rest=rest,
    )


def _array(dtype: str, sizes: str) -> Array:
    return Array(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` is closed."""
    depth = 0
    for k in range(start, len(text)):
        depth += (text[k] == "(") - (text[k] == ")")
        if depth == 0:
            return k
    return len(text) - 1


def _source_of_line(rest: str) -> str:
    found = re.search(r"source_file=\"([^\"]*)\" source_line=(\d+)", rest)
    return shown(found[1], found[2]) if found else ""


def shown(path: str, line: str) -> str:
    path = path.replace(_PACKAGE, "em3_jax", 1).rpartition("site-packages/")[2]
    return f"{path}:{line}"


def _sources(text: str) -> dict[str, str]:
    """Stack frame -> "file:line" of its innermost frame in the package, or else outside of libraries."""
    parts = {}
    for name in ("FileNames", "FileLocations", "StackFrames"):
        begin = text.find(f"\n{name}\n")
        if begin < 0:
            return {}
        block = text[begin + len(name) + 2 :].split("\n\n", 1)[0]
        parts[name] = dict(line.split(" ", 1) for line in block.splitlines() if " " in line)
    files = {key: value.strip('"') for key, value in parts["FileNames"].items()}
    places = {}
    for key, value in parts["FileLocations"].items():
        found = dict(re.findall(r"(\w+)=(\d+)", value))
        places[key] = files[found["file_name_id"]], found["line"]
    frames = {key: dict(re.findall(r"(\w+)=(\d+)", value)) for key, value in parts["StackFrames"].items()}

    def chain(key: str) -> Iterator[tuple[str, str]]:
        while key in frames:
            yield places[frames[key]["file_location_id"]]
            parent = frames[key].get("parent_frame_id", key)
            if parent == key:
                return
            key = parent

    result = {}
    for key in frames:
        found_frames = list(chain(key))
        own = [place for place in found_frames if place[0].startswith(_PACKAGE)]
        outside = [place for place in found_frames if "site-packages" not in place[0]]
        best = (own or outside or found_frames)[0]
        result[key] = shown(*best)
    return result
