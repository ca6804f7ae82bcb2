"""What an event is to the row that reads it, in ranges: how long ago it was, and which it is, counted from the newest.

HSTU reads both so (Zhai et al., Actions Speak Louder than Words, ICML 2024, section 3.1: relative time and position,
in ranges that grow by a factor). Ids are those of a field (`core.fields`): 2 is the first range.
"""

from collections.abc import Sequence

import numpy as np

from em3_jax.core.fields import FIRST_KNOWN

RECENCY, POSITION = "recency", "position"
NAMES = (RECENCY, POSITION)
OCTAVES = 32  # ranges of time: below a second, and then doubling up to 34 years and beyond
EXACT, LAST = 16, 14  # positions up to EXACT have a range each, then a doubling has four, up to 2^LAST


def recency(seconds: np.ndarray) -> np.ndarray:
    """Ids [*] i32 of times since events [*], in seconds; what is less than 0 counts as 0."""
    return FIRST_KNOWN + np.clip(np.frexp(np.maximum(seconds, 0.0))[1], 0, OCTAVES - 1)  # x = m 2^e, 0.5 <= m < 1


def position(place: np.ndarray) -> np.ndarray:
    """Ids [*] i32 of places [*] of events, counted from the newest, which is 1."""
    mantissa, exponent = np.frexp(np.minimum(np.maximum(place, 1), 1 << LAST).astype(np.float64))
    quarter = (8 * mantissa - 4).astype(np.int64)
    beyond = EXACT - 1 + 4 * (exponent - 5) + quarter
    return (FIRST_KNOWN + np.where(place < EXACT, np.maximum(place, 1) - 1, beyond)).astype(np.int32)


def ranges(name: str) -> list[str]:
    """What the ids of a feature stand for, from the first known one on."""
    if name == RECENCY:
        return ["less than 1 s ago", *(f"{2**k} s ago" for k in range(OCTAVES - 1))]
    starts = [
        *range(1, EXACT),
        *(2**k + 2 ** (k - 2) * quarter for k in range(4, LAST) for quarter in range(4)),
        1 << LAST,
    ]
    return [f"{start} from the newest" for start in starts]


def ids(names: Sequence[str], seconds: np.ndarray | None, place: np.ndarray) -> dict[str, np.ndarray]:
    """Feature -> ids [*] of events.

    Args:
      names: of `NAMES`.
      seconds: [*] since them; None where no recency is asked for.
      place: [*] of them from the newest.
    """
    found = {}
    if RECENCY in names:
        assert seconds is not None  # who asks for it has times
        found[RECENCY] = recency(seconds)
    if POSITION in names:
        found[POSITION] = position(place)
    return found
