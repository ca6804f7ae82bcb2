"""The nouns every floor shares: the training state, the batch, and the error a user can act on."""

import dataclasses
from typing import Any

import flax.struct
import jax

from em3_jax.core.errors import UserError as UserError  # a service needs it alone, without what is here
from em3_jax.core.messages import Messages

Batch = dict[str, Any]
"""One batch: name -> array of a static shape, of numpy or of jax. `core.batch` lists the names."""


@dataclasses.dataclass(frozen=True)
class Shards:
    """The part of every batch that a process builds: `count` of its `total` shards, which follow each other, from `first` on.

    A shard is the examples of a device and what these name; see `core.exchange`.

    Attributes:
      messages: of the pass over batches that is read, where other processes build parts of them.
    """

    first: int = 0
    count: int = 1
    total: int = 1
    messages: Messages | None = None

    @property
    def in_blocks(self) -> bool:
        """Whether there are several: what they name is sorted by owner."""
        return self.total > 1

    @property
    def are_apart(self) -> bool:
        """Whether other processes build the rest."""
        return self.count < self.total

    @property
    def all(self) -> "Shards":
        """The shards of all processes."""
        return dataclasses.replace(self, first=0, count=self.total)

    def slices(self, size: int) -> list[slice]:
        """Where the process's shards lie in an array of all `size` examples."""
        length = size // self.total
        return [slice(k * length, (k + 1) * length) for k in range(self.first, self.first + self.count)]


WHOLE = Shards()
"""Every process builds the whole batch."""


@flax.struct.dataclass
class State:
    """Everything a run needs to go on, and nothing else.

    Attributes:
      step: [] i32, number of steps done. With the seed it fixes all randomness and the next batch.
      params: dense Linen parameters.
      opt_state: optax state of `params`.
      tables: ID embedding tables and their row-wise optimizer slots (see `tables.id_table`).
      memory: the memory bank; empty for models without one.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    tables: Any
    memory: Any
