"""The unit in which a dataset counts time: stated by its reader, or read from the size of the numbers.

`dataset.json` has it as `time_unit`: the name of a unit, or `order`, where times say which row comes first and nothing else.
Where times are counted, they count from the start of 1970 (UTC), or from wherever the user's own clock starts.
"""

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset

NANOSECONDS = {
    "nanoseconds": 1,
    "microseconds": 10**3,
    "milliseconds": 10**6,
    "seconds": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3600 * 10**9,
    "days": 86400 * 10**9,
}
"""Unit -> how many nanoseconds it is."""
ORDER = "order"
UNITS = (*NANOSECONDS, ORDER)
UNTIMED = -1
"""The time of events that have none: histories that came with the rows."""
PLAUSIBLE = (315_532_800, 4_102_444_800)
"""1980 to 2100 in seconds since 1970. A thousand times as large, the range begins beyond where this one ends."""


BY_SIZE = ("seconds", "milliseconds", "microseconds", "nanoseconds")
"""Units that the size of a date tells apart."""


def is_plausible(time: np.ndarray, unit: str) -> np.ndarray:
    """[n] bool: the numbers [n] i64 that lie between 1980 and 2100 in a unit."""
    per_second = NANOSECONDS["seconds"] // NANOSECONDS[unit]
    return (time >= PLAUSIBLE[0] * per_second) & (time < PLAUSIBLE[1] * per_second)


def inferred(time: np.ndarray) -> str:
    """The unit of whole numbers [n] i64 that all lie between 1980 and 2100 in just one unit; `order` where there is none.

    That is, numbers of ten digits (nine before 2001) are seconds, 13 milliseconds, 16 microseconds, 19 nanoseconds.
    """
    if len(time):
        ends = np.array([time.min(), time.max()])
        for unit in BY_SIZE:
            if is_plausible(ends, unit).all():
                return unit
    return ORDER


def unit_of(dataset: Dataset) -> str:
    """The unit of a dataset's times, `UNITS`.

    One made before datasets said so has it by the size of its times; where that tells nothing, seconds, as all took them then.
    """
    stated = dataset.meta.get("time_unit")
    if stated is None:
        unit = inferred(dataset.interactions["time"])
        return "seconds" if unit == ORDER else unit
    if stated not in UNITS:
        raise UserError(
            f"{dataset.root}/dataset.json: time_unit is '{stated}', must be one of {', '.join(UNITS)}; "
            "prepare the dataset again"
        )
    return stated


def seconds_per_tick(dataset: Dataset) -> float:
    """How many seconds a dataset's times count by; not of an `order`."""
    return NANOSECONDS[unit_of(dataset)] / NANOSECONDS["seconds"]


def ticks(count: int, unit: str, of: str) -> int | None:
    """How many `of` (a unit of times) `count` `unit`s are; None where that is no whole number, or times are only an order."""
    if of == ORDER:
        return None
    whole, rest = divmod(count * NANOSECONDS[unit], NANOSECONDS[of])
    return None if rest else whole


def seconds(time: int, unit: str) -> int | float:
    """A time in seconds, whole where it is whole; of an `order`, as it is."""
    if unit == ORDER:
        return time
    whole, rest = divmod(time * NANOSECONDS[unit], NANOSECONDS["seconds"])
    return whole if not rest else whole + rest / NANOSECONDS["seconds"]


def shown(time: int, unit: str) -> str:
    """A time for people: "2024-05-01 12:00:00" where the number is such a moment, else the number as it is."""
    at = None if unit == ORDER else seconds(time, unit)
    if at is None or not PLAUSIBLE[0] <= at < PLAUSIBLE[1]:
        return str(time)
    precision = "s" if isinstance(at, int) else "ms"
    return str(np.datetime64(round(at * 1000), "ms").astype(f"datetime64[{precision}]")).replace("T", " ")
