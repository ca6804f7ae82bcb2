"""Tables of metrics as text: a first column of names, and a column a metric."""

from collections.abc import Mapping, Sequence

WIDTH = 13


def header(title: str, names: Sequence[str], first: int) -> str:
    """The first line.

    Args:
      title: of the first column.
      names: of the metrics.
      first: width of the first column.
    """
    return f"{title:<{first}}" + "".join(f"{name:>{_width(name)}}" for name in names)


def row(title: str, values: Mapping[str, float], names: Sequence[str], first: int) -> str:
    """A line below a `header` of the same names; whole numbers are counts."""
    cells = [
        f"{values[n]:>{_width(n)},}" if isinstance(values[n], int) else f"{values[n]:>{_width(n)}.4f}" for n in names
    ]
    return f"{title:<{first}}" + "".join(cells)


def _width(name: str) -> int:
    return max(WIDTH, len(name) + 2)
