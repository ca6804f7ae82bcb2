"""Python's garbage collector, out of the way while a process starts."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def paused(lasting: bool = False) -> Iterator[None]:
    """Nothing is collected within: imports and tracing make a million objects, and looking through them is a sixth of it.

    Args:
      lasting: what is made stays for good, as imported modules do, and is not looked through afterwards either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if lasting:
            gc.freeze()
        if was_enabled:
            gc.enable()
