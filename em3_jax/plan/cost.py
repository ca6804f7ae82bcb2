"""What a compiled program costs by its own text: bytes that its kernels move, FLOPs of its products.

Where a compiler counts itself, that is what `em3 plan` shows. XLA counts nothing for CUDA, and of
no compiler can it be learnt which lines of the source the bytes belong to.
"""

import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from em3_jax.plan.program import FREE, Operation, Program

_ROWS = ("gather", "dynamic-slice", "slice")  # read of their first operand what they give
_IN_PLACE = ("scatter", "dynamic-update-slice")  # write into their first operand
_VIEWS = ("bitcast", "reshape")


class Item(NamedTuple):
    """What a line of the source costs.

    Attributes:
      source: "file:line"; of what XLA has added, "".
      traced: what JAX called the largest operation of it.
      bytes, flops: moved and computed by one device in one step.
    """

    source: str
    traced: str
    bytes: int
    flops: int


def items(program: Program) -> list[Item]:
    """The lines of the source by the bytes they move, the largest first."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    largest: dict[str, tuple[int, str]] = defaultdict(lambda: (-1, ""))
    for one, times in program.kernels():
        moved, products, place = times * bytes_moved(program, one), times * flops(program, one), _place(program, one)
        totals[place][0] += moved
        totals[place][1] += products
        largest[place] = max(largest[place], (moved, one.traced))
    found = [Item(place, largest[place][1], *both) for place, both in totals.items()]
    return sorted(found, key=lambda item: -item.bytes)


def _place(program: Program, one: Operation) -> str:
    """Where a kernel comes from: its own line, or that of the last operation in it which has one."""
    return one.source or next((op.source for op in reversed(list(program.within(one))) if op.source), "")


def bytes_moved(program: Program, one: Operation) -> int:
    """Bytes that a kernel reads and writes; of what it gathers from or writes into, the rows alone."""
    read = 0
    for k, name in enumerate(one.operands):
        given = program.by_name.get((one.computation, name))
        if given is not None and given.opcode != "constant":
            read += _read(program, one, k, given.bytes)
    updates = [op for op in program.within(one) if op.opcode in _IN_PLACE]
    replaced = [array for op in updates for array in op.results]
    written = sum(program.operand(op, _update(op)).bytes for op in updates)
    return read + written + sum(array.bytes for array in one.results if array not in replaced)


def _update(one: Operation) -> int:
    return 1 if one.opcode == "dynamic-update-slice" else len(one.operands) - 1


def _read(program: Program, one: Operation, k: int, whole: int) -> int:
    """Bytes that an operation reads of its k-th operand, which has `whole`."""
    if one.opcode in _ROWS and k == 0:
        return one.bytes
    if one.opcode in _IN_PLACE and k == 0:
        return program.operand(one, _update(one)).bytes
    if one.opcode != "fusion":
        return whole
    inner = program.computations[one.called[0]]
    parameter = next((op for op in inner if op.opcode == "parameter" and op.number == k), None)
    if parameter is None:
        return whole
    names, total = {parameter.name}, 0
    for op in inner:
        for place, name in enumerate(op.operands):
            if name in names and op.opcode in _VIEWS:
                names.add(op.name)
            elif name in names:
                total += _read(program, op, place, whole)
    return min(whole, total)


def flops(program: Program, one: Operation) -> int:
    """Multiplications and additions of the products in a kernel, and one for each other number it computes."""
    return sum(_flops(program, op) for op in program.within(one))


def _flops(program: Program, one: Operation) -> int:
    if one.opcode in FREE:
        return 0
    if one.opcode in ("dot", "convolution") or (one.opcode == "custom-call" and "matmul" in one.rest):
        return 2 * one.results[0].elements * _summed(program, one)
    return sum(array.elements for array in one.results)


def _summed(program: Program, one: Operation) -> int:
    """Length of what a product sums over."""
    left, right = (program.operand(one, k).results[0] for k in (0, 1))
    if one.opcode == "convolution":
        # dim_labels=bf_io->bf: all axes of the kernel but "o", its output features.
        labels = re.search(r"dim_labels=\w+_(\w+)->", one.rest)
        outputs = right.sizes[labels[1].index("o")] if labels else 1
        return max(right.elements // max(outputs, 1), 1)
    found = re.search(r"lhs_contracting_dim(?:s|ension|ensions)\"?[=:][\[{]([^\]}]*)", one.rest)
    axes = [int(text) for text in re.findall(r"\d+", found[1])] if found else [len(left.sizes) - 1]
    return int(np.prod([left.sizes[axis] for axis in axes], dtype=np.int64))
