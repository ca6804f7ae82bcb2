"""Files and folders that appear whole: built out of sight, then put in their place, also where that is a link or a mount point.

A rename does it, beside the place. A mount point (the volume of a container) can be neither renamed nor replaced: there a
folder is built within it, and what it holds is replaced entry by entry, the one that says what the folder is taken away first
and put there last. Whoever looks meanwhile, or after a kill, finds a folder that does not say what it is.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

from em3_jax.core.errors import UserError

_MOUNTS = Path("/proc/self/mountinfo")
_NOT_OURS = ("lock", "lost+found")


def resolved(path: str | Path) -> Path:
    """Where a folder lies, or will: absolute, links followed, so that a link is written through and stays."""
    return Path(os.path.realpath(path))


def is_mount(folder: Path) -> bool:
    """Whether something is mounted on this folder, of another file system or of the same (a bind mount)."""
    if os.path.ismount(folder):
        return True
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # no Linux
        return False
    escapes = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}
    points = [line.split()[4] for line in lines]
    for code, letter in escapes.items():
        points = [point.replace(code, letter) for point in points]
    return str(folder) in points


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing of anybody's: what a killed writer left in a mount point does not count."""
    return all(entry.name in _NOT_OURS or entry in leftovers(folder) for entry in folder.iterdir())


def building_place(final: Path) -> Path:
    """Where to build what will lie at `final`, see `resolved`: a name that is free, on the same file system."""
    name = f".{final.name}.tmp-{os.getpid()}"
    return final / name if is_mount(final) else final.with_name(name)


def leftovers(final: Path) -> list[Path]:
    """What killed writers have left within `final`, a mount point."""
    return list(final.glob(f".{final.name}.tmp-*")) if final.is_dir() else []


def abandoned(final: Path) -> list[Path]:
    """What killed writers have left beside `final`; who holds its lock may remove it.

    A folder that was being replaced when its writer was killed is not among it: it is whole.
    """
    return [path for path in final.parent.glob(f".{final.name}.tmp-*") if not path.name.endswith("-old")]


def replace(built: Path, final: Path, last: str) -> None:
    """Puts the folder `built`, see `building_place`, in the place of `final`, whether that is there or not.

    Args:
      last: the entry that says what the folder is.
    """
    old = built.with_name(f"{built.name}-old")
    if built.parent != final:
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            os.replace(final, old)
        os.replace(built, final)
    else:
        old.mkdir()
        kept = {*_NOT_OURS, built.name, old.name}
        for name in _ordered(final, last):
            if name not in kept:
                os.replace(final / name, old / name)
        for name in reversed(_ordered(built, last)):
            os.replace(built / name, final / name)
        shutil.rmtree(built)
    shutil.rmtree(old, ignore_errors=True)


def _ordered(folder: Path, first: str) -> list[str]:
    return sorted(os.listdir(folder), key=lambda name: (name != first, name))


def write_once(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Makes a file of a run's folder where there is none yet; `write` gets it opened.

    Raises:
      UserError: it cannot be written.
    """
    if path.exists():
        return
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another --workdir"
        ) from None
