"""Memory of XLA's CPU programs: kept mapped between steps."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def keep_large_blocks() -> bool:
    """Tells glibc to keep large freed blocks; returns whether it took the advice (False: not glibc, nothing changed).

    XLA takes all temporaries of a program as one block per call. glibc maps a block above 32 MB afresh each time and gives
    it back, so each step faults all its pages in again: for 300 MB that was 100 of 276 ms (benchmarks/NOTES.md). The freed
    memory stays with the process, which is what a training run wants.

    To be called before numpy or jax are imported. They start threads, the second thread's first block fixes for good how many
    heaps there are, and only the first heap holds large blocks. With a single one the threads of a small step queue for it.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    options = ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST))
    return all([mallopt(name, value) for name, value in options])
