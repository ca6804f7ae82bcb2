"""The nouns every floor shares: the training state, a categorical field, and the error a user can act on."""

import dataclasses
from typing import Any

import flax.struct
import jax

Batch = dict[str, Any]
"""One batch: name -> array, static shapes (numpy on the host, jax on the device). `data/batches.py` lists the keys."""


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    Commands print it without a stack trace and exit with code 2.
    """


@dataclasses.dataclass(frozen=True)
class Field:
    """A categorical field.

    Attributes:
      name: column name.
      size: number of ids, counting 0 = padding and 1 = unknown.
      length: values per record; 1 for a plain field, more for a multi-valued one (padded with 0).
    """

    name: str
    size: int
    length: int = 1


@flax.struct.dataclass
class State:
    """Everything a run needs to go on, and nothing else.

    Attributes:
      step: [] i32, number of steps done. With the seed it fixes all randomness and the next batch.
      params: dense Linen parameters.
      opt_state: optax state of `params`.
      tables: ID embedding tables and their row-wise optimizer slots (see `tables.py`).
      memory: the memory bank; empty for models without one.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    tables: Any
    memory: Any
