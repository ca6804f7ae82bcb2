"""Short messages between the processes of a run, beside its programs: JAX's coordination service carries them.

A batch in blocks depends on what the examples of other processes name. Batches are built ahead, by
threads, and not everywhere in one order, so a message is asked for by the number of its batch.
"""

import collections
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax._src import distributed  # no public name has the service's client

_KEPT = 128
"""Batches whose messages stay; more than processes can be apart, which run the same programs."""

_opened = itertools.count()
_closed: collections.deque["Messages"] = collections.deque()


class Messages:
    """The messages of one pass over batches. All processes open their passes in one order.

    They stay with the service, which is process 0's, until those of 128 batches later are sent.
    """

    def __init__(self) -> None:
        self._name = f"em3/{next(_opened)}"
        self._is_closed = threading.Event()

    def exchange(self, number: int, about: str, own: Sequence[bytes]) -> list[bytes]:
        """What each process has sent this one about a batch, in their order; waits for all of them.

        Args:
          number: of the batch.
          about: what the messages are about; once a batch.
          own: for each process, not empty; its own comes back to it.

        Raises:
          RuntimeError: the pass was closed while this waited.
        """
        client, me = _client(), jax.process_index()
        for to, message in enumerate(own):
            if to != me:
                client.key_value_set_bytes(f"{self._of(me, number)}/{about}/{to}", message)
        self._forget(number - _KEPT)
        others = range(len(own))
        return [own[me] if k == me else self._wait(f"{self._of(k, number)}/{about}/{me}") for k in others]

    def close(self) -> None:
        """Ends the waiting of this process's threads. What others still ask for stays for two passes."""
        self._is_closed.set()
        _closed.append(self)
        if len(_closed) > 2:
            _client().key_value_delete(f"{_closed.popleft()._name}/{jax.process_index()}")

    def _of(self, process: int, number: int) -> str:
        return f"{self._name}/{process}/{number}"

    def _forget(self, number: int) -> None:
        if number >= 0:
            _client().key_value_delete(self._of(jax.process_index(), number))

    def _wait(self, key: str) -> bytes:
        while not self._is_closed.is_set():
            try:
                found: bytes = _client().blocking_key_value_get_bytes(key, 1000)
                return found
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        raise RuntimeError(f"the pass over batches that waits for {key} has ended")


@contextlib.contextmanager
def opened() -> Iterator[Messages]:
    """The messages of a pass, closed with it."""
    messages = Messages()
    try:
        yield messages
    finally:
        messages.close()


def _client() -> Any:
    return distributed.global_state.client
