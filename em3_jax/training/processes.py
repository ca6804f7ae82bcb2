"""Several processes that train together: how they meet, agree, and leave when one is lost.

JAX carries everything: its coordination service, which process 0 runs, and XLA's collectives. A process that misses the others is
ended by JAX from within, without a chance to say why; so each runs under a supervisor, which says it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from em3_jax import cli
from em3_jax.config import sections
from em3_jax.config.schema.course import Mesh
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock

AUTO = "auto"
_SUPERVISED = "EM3_JAX_SUPERVISED"
_LOST = 75  # exit code of a process that another one left alone
_SIGNS_OF_LOSS = (
    "gloo",
    "nccl",
    "coordination",
    "connection",
    "heartbeat",
    "unavailable",
    "deadline",
    "socket",
    "peer",
)


def check(mesh: Mesh) -> None:
    """Refuses a config.mesh whose processes could not meet."""
    if mesh.coordinator == AUTO:
        return
    if not mesh.coordinator:
        if mesh.processes != 1:
            raise UserError(
                f"config.mesh.processes={mesh.processes} but config.mesh.coordinator is empty; give host:port of process 0"
            )
        return
    host, colon, port = mesh.coordinator.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise UserError(f"config.mesh.coordinator='{mesh.coordinator}' is not host:port; give e.g. 10.0.0.1:1234")
    if not 0 <= mesh.process_id < mesh.processes:
        raise UserError(
            f"config.mesh.process_id={mesh.process_id} is not below config.mesh.processes={mesh.processes}; count from 0"
        )


def _called(mesh: Mesh) -> str:
    return "this process" if mesh.coordinator == AUTO else f"process {mesh.process_id} of {mesh.processes}"


def supervised(own: Mesh, run: Callable[[], int], after_loss: Callable[[], str]) -> int:
    """The exit code of `run`, in a process of its own where there are several.

    Args:
      own: config.mesh.
      run: trains; what it raises because another process is gone is told apart from what is wrong here.
      after_loss: what is left to go on from, in words.

    Raises:
      UserError: the others were not found, or one was lost.
    """
    if not own.coordinator:
        return run()
    if _SUPERVISED in os.environ:
        return _among_others(own, run)
    from_child, to_supervisor = os.pipe()
    from_supervisor, to_child = os.pipe()
    child = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:]],
        env=os.environ | {_SUPERVISED: f"{from_supervisor},{to_supervisor}"},
        pass_fds=(from_supervisor, to_supervisor),
    )
    os.close(from_supervisor)
    os.close(to_supervisor)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    code = child.wait()
    os.close(to_child)
    with os.fdopen(from_child, "rb") as pipe:
        connected = pipe.read() == b"connected"
    if code not in (_LOST, -signal.SIGABRT):
        return code if code >= 0 else 128 - code
    if not connected:
        raise UserError(
            f"{_called(own)}: not all processes met at config.mesh.coordinator={own.coordinator} within {own.connect_seconds} s; "
            "start all of them, and check the address and that its port is open"
        )
    raise UserError(f"{_called(own)}: another process was lost; {after_loss()}")


def _among_others(own: Mesh, run: Callable[[], int]) -> int:
    """`run`, in the process that a supervisor has started."""
    from_supervisor, to_supervisor = map(int, os.environ[_SUPERVISED].split(","))

    def follow() -> None:
        os.read(from_supervisor, 1)  # returns when the supervisor is no more
        _leave(_LOST)

    threading.Thread(target=follow, daemon=True).start()
    try:
        _connect(own)
        os.write(to_supervisor, b"connected")
        code = run()
        barrier("end")
        return code
    except UserError as error:
        cli.show_error(error)
        _leave(2)
    except Exception as error:
        if is_loss(error):
            _leave(_LOST)
        traceback.print_exc()
        _leave(1)


def _connect(own: Mesh) -> None:
    """Meets the other processes; before the first use of a device."""
    where: tuple[str | None, int | None, int | None] = (None, None, None)  # JAX finds out itself
    if own.coordinator != AUTO:
        where = (own.coordinator, own.processes, own.process_id)
    try:
        jax.distributed.initialize(
            *where, initialization_timeout=own.connect_seconds, heartbeat_timeout_seconds=own.heartbeat_seconds
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"config.mesh.coordinator={own.coordinator}: {str(error).splitlines()[0]}; check the address, and that every process "
            "has a number of its own"
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process; all have to ask."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


class Interrupts:
    """Remembers SIGTERM and SIGINT, so that a loop can save and leave between two steps."""

    def __enter__(self):
        self.received = None
        self._old = {s: signal.signal(s, self._receive) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name

    def agreed(self) -> str | None:
        """The signal that some process has received; all have to ask."""
        return (self.received or "SIGTERM") if any_of(self.received is not None) else None

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held_by_first(lock: Lock) -> Iterator[None]:
    """`lock`, held by the process that writes, for all of them.

    Raises:
      UserError: in every process, what taking it raised in the first.
    """
    with contextlib.ExitStack() as stack:
        problem = ""
        if is_first():
            try:
                stack.enter_context(lock)
            except UserError as error:
                problem = str(error)
        if problem := _everyones(problem)[0]:
            raise UserError(problem)
        yield


def check_agree(what: str, mine: Mapping[str, Any]) -> None:
    """Refuses nested values that are not those of process 0.

    Args:
      what: the name of the values, for the message.
      mine: plain values.
    """
    first, *others = map(json.loads, _everyones(json.dumps(mine, sort_keys=True)))
    for number, other in enumerate(others, start=1):
        if lines := sections.differences(first, other, what):
            raise UserError(
                f"process {number} differs from process 0 ({'; '.join(lines[:3])}); start all with the same"
            )


def _everyones(text: str) -> list[str]:
    """The texts of all processes, in their order; all have to ask."""
    if jax.process_count() == 1:
        return [text]
    mine = np.frombuffer(text.encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(len(mine)))
    padded = np.zeros(max(int(lengths.max()), 1), np.uint8)
    padded[: len(mine)] = mine
    texts = multihost_utils.process_allgather(padded)
    return [bytes(row[:size]).decode() for row, size in zip(texts, lengths, strict=True)]


def _leave(code: int) -> NoReturn:
    """Ends the process at once: the usual way out would wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_loss(error: BaseException) -> bool:
    """Whether an error of one of several processes says that another is gone."""
    if jax.process_count() == 1:
        return False
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in _SIGNS_OF_LOSS)
