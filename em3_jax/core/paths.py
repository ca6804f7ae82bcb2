"""Paths as people give them: `~` is a home, and the address of a bucket is refused before anything is made."""

import re
from pathlib import Path

from em3_jax.core.errors import UserError

_ADDRESS = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib has made gs:/ of gs:// where it came first


def local(path: str | Path) -> Path:
    """The path with `~` and `~user` expanded.

    Every path that a command, a config or a mapping file names goes through here. Columns and features are memory-mapped
    and a run's folder is locked, renamed in and appended to, all of which object stores do not have.

    Raises:
      UserError: it is the address of a bucket or of a page, or there is no such user.
    """
    text = str(path)
    if address := _ADDRESS.match(text):
        raise UserError(
            f"{text.replace(':/', '://', 1) if '://' not in text else text}: {address[1]}:// addresses are not read or "
            "written; mount the bucket (gcsfuse, s3fs) or copy it, and give the local folder"
        )
    if not text.startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user; write the folder out") from None
