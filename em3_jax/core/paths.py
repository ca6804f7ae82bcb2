"""Paths as people give them: `~` is a home, and the address of a bucket is refused before anything is made."""

from pathlib import Path

from em3_jax.core import addresses
from em3_jax.core.errors import UserError


def local(path: str | Path) -> Path:
    """The path with `~` and `~user` expanded.

    Every path that a command, a config or a mapping file names goes through here, but tables that `em3 prepare table` reads,
    which may lie in a bucket. Columns and features are memory-mapped and a run's folder is locked, renamed in and appended
    to, all of which object stores do not have.

    Raises:
      UserError: it is the address of a bucket or of a page, or there is no such user.
    """
    text = str(path)
    if kind := addresses.kind_of(path):
        raise UserError(
            f"{addresses.written_out(path)}: {kind}:// addresses are not read or written; mount the bucket (gcsfuse, s3fs) or "
            "copy it, and give the local folder"
        )
    if not text.startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: there is no such user; write the folder out") from None
