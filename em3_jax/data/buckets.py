"""The few padded sizes of a batch's distinct blocks."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Few padded sizes for the distinct blocks, so that few shapes are compiled.

    Attributes:
      items, rows: the usual sizes of the two blocks; a batch that needs more takes the next, a quarter larger.
      encode: the same of the items to encode.
      own_items, own_rows: in blocks, how many of the two a device may own, see `core.exchange`.
      unit: of which all sizes are multiples, so that the blocks divide over the devices.
    """

    items: int
    rows: int
    encode: int = 64
    own_items: int = 0
    own_rows: int = 0
    unit: int = 64

    def fit(self, usual: int, need: int) -> int:
        """The smallest size of the series usual, 1.25 usual, ... that holds `need`."""
        size = usual
        while size < need:
            size = round_up(int(size * 1.25) + 1, self.unit)
        return size


def round_up(size: int, unit: int) -> int:
    """The smallest multiple of `unit` from `size` up."""
    return -(-size // unit) * unit
