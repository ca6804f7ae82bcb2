"""Tables of metrics as text: a first column of names, and a column a metric."""

from collections.abc import Mapping, Sequence

from em3_jax.core import terminal


def table(title: str, names: Sequence[str], rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line for each of `rows`; whole numbers are counts.

    Args:
      title: of the first column.
      names: of the metrics.
      rows: name -> metric -> value.
    """
    cells = [[name, *(_cell(values[metric]) for metric in names)] for name, values in rows.items()]
    return terminal.table([title, *names], cells)


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
