"""Places ahead for ids to come, in tables and in batches of rows that are appended."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from em3_jax.core.fields import Fields
from em3_jax.data.buckets import Buckets

LEAST_PLACES = 64  # of a field whose table rows are made ahead


def places_of(sizes: Mapping[str, int], spare: float) -> dict[str, int]:
    """Field -> how many ids a table is made for.

    Args:
      sizes: field -> ids that there are.
      spare: config.stream.spare.
    """
    return {name: max(math.ceil(size * (1 + spare)), LEAST_PLACES) if spare else size for name, size in sizes.items()}


def roomier(buckets: Buckets) -> Buckets:
    """The next larger ones: batches of rows to come name more, and each size is compiled by itself."""
    sizes = dataclasses.asdict(buckets)
    unit = sizes.pop("unit")
    return Buckets(**{name: size and buckets.fit(size, size + 1) for name, size in sizes.items()}, unit=unit)


def place_of_rows(before: Fields, after: Fields) -> np.ndarray:
    """[table rows of `before`] i64: the rows of the same ids in tables of `after`, whose fields are as long or longer."""
    place = np.zeros(before.num_rows, np.int64)
    was, now = before.offsets(), after.offsets()
    for group, fields in before.groups():
        for field in fields:
            rows = np.arange(field.size - 1)
            place[was[group][field.name] + rows] = now[group][field.name] + rows
    return place
