"""How a command ends: user errors are one line on stderr and exit code 2."""

import sys
import warnings
from collections.abc import Callable

from em3_jax.types import UserError


def run(command: Callable[[], int | None]) -> None:
    """Runs `command` and exits with its code; a `UserError` is printed as one line, with exit code 2."""
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
