"""How a command ends: user errors are one line on stderr and exit code 2."""

import sys
import threading
import warnings
from collections.abc import Callable

from em3_jax.types import UserError


def run(command: Callable[[], int | None]) -> None:
    """Runs `command` and exits with its code; a `UserError` is printed as one line, with exit code 2."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # Orbax's own, after an error that is reported
    # What fails in a thread of Orbax or Grain is raised again where its result is asked for: once is enough.
    threading.excepthook = lambda arguments: None
    show = sys.excepthook
    sys.excepthook = lambda *error: show(*error) if threading.current_thread() is threading.main_thread() else None
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        code = command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code or 0)
