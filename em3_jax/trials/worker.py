"""How a process of `runs` begins. It imports little: what it sets has to be there before numpy and jax are."""

import os
import signal
from typing import Any

from em3_jax.core import allocator, compilation_cache


def begin(started: Any, parallel: int) -> None:
    """Makes this process one that trains; called before numpy and jax are imported.

    Args:
      started: shared number of the workers that have begun.
      parallel: how many there are.
    """
    allocator.keep_large_blocks()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    cores = sorted(os.sched_getaffinity(0))
    if 1 < parallel <= len(cores):  # else the threads of one run wait for cores that another's are using
        os.sched_setaffinity(0, cores[number % parallel :: parallel])
    compilation_cache.keep()  # which the seeds of a run share; by the cores that are left
    # Ctrl-C reaches the whole group; the parent passes it on as SIGTERM, which training knows and all else may outlast.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
