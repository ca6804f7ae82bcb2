"""What the devices exchange in one run of a compiled program, read from its text."""

import re
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"\b(pred|bf16|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One exchange.

    Attributes:
      kind: one of `KINDS`.
      elements: of its largest array.
      bytes: of all arrays that a device holds afterwards.
    """

    kind: str
    elements: int
    bytes: int


def collectives(program: str) -> list[Collective]:
    """The exchanges in the text of a compiled program, in its order."""
    found = []
    for shapes, kind, started in _CALL.findall(program):
        arrays = [(_width(dtype, bits), _size(shape)) for dtype, bits, shape in _SHAPE.findall(shapes)]
        if started:  # (operands, results): half of them come out
            arrays = arrays[len(arrays) // 2 :]
        total = sum(width * size for width, size in arrays)
        found.append(Collective(kind, max((size for _, size in arrays), default=0), total))
    return found


def bytes_by_kind(program: str) -> dict[str, int]:
    """Kind -> bytes that a device holds after all exchanges of the kind; kinds that do not occur are left out."""
    totals = {}
    for one in collectives(program):
        totals[one.kind] = totals.get(one.kind, 0) + one.bytes
    return totals


def _width(dtype: str, bits: str) -> int:
    return 1 if dtype == "pred" else 2 if dtype == "bf16" else max(int(bits) // 8, 1)


def _size(shape: str) -> int:
    return int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
