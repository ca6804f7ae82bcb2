"""The error a user can act on, and a hint for a name that is wrong."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    Commands print it without a stack trace and exit with code 2.

    >>> import em3_jax as em3
    >>> try:
    ...     em3.load_config("em3_synthetic", {"model.fusoin": "mean"})
    ... except em3.UserError as error:
    ...     print(error)
    config.model.fusoin: unknown key; did you mean 'fusion'?
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name nearest to `name`, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
