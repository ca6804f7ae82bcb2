"""Python's garbage collector, out of the way while a process starts."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Nothing is collected within, and what is made stays for good, so it is never looked through: for imports.

    They make a million objects; going through them again and again is a tenth of a start.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
