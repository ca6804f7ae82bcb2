"""How a command ends: user errors are one line on stderr and exit code 2."""

import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable

from em3_jax.types import UserError


def run(command: Callable[[], int | None]) -> None:
    """Runs `command` and exits with its code; a `UserError` is printed as one line, with exit code 2."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # Orbax's own, after an error that is reported
    # What fails in a thread of Orbax or Grain is raised again where its result is asked for: once is enough.
    threading.excepthook = sys.excepthook = sys.unraisablehook = lambda *_: None
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        code = command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that end with the process repeat the error in full
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except Exception:
        traceback.print_exc()
        code = 1
    sys.exit(code or 0)
