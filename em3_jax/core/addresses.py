"""Files at the address of a bucket (s3://, gs://, az://, https://, whatever fsspec knows): listed, and fetched to read them here.

A log is read several times (its values, ids, times, rows, and its hash), by libraries that know files; so each is
fetched once. fsspec and what it needs for a kind of bucket are the extra `buckets`.
"""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.core.errors import UserError

_ADDRESS = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")  # pathlib has made gs:/ of gs:// where it came first
_MAGIC = re.compile(r"[*?\[]")
_AT_ONCE = 4
CREDENTIALS = (
    "give them as its own tools take them (AWS_PROFILE, gcloud auth, AZURE_STORAGE_...), or FSSPEC_S3_ANON=true"
)


class Remote(NamedTuple):
    """A file that lies elsewhere.

    Attributes:
      address: as it is to be named.
      path: as its file system calls it.
      system: an fsspec file system.
      size: bytes; 0 = not known.
    """

    address: str
    path: str
    system: Any
    size: int


def kind_of(path: object) -> str:
    """ "s3" of an address; "" of a path."""
    found = _ADDRESS.match(str(path))
    return found[1] if found else ""


def written_out(path: object) -> str:
    """An address as it was given, before pathlib took a slash out of it; a path as it is."""
    text = str(path)
    if "://" in text or not (kind := kind_of(path)):
        return text
    return text.replace(":/", ":///" if kind == "file" else "://", 1)  # file:///home has no host, but a folder


def has_magic(address: str) -> bool:
    """Whether it is a pattern."""
    return bool(_MAGIC.search(address))


def listed(address: str) -> list[Remote]:
    """The files that an address stands for, in the order of their names: of a folder all that lie in it.

    Args:
      address: of a file, a folder, or a pattern with *, ? or [...].

    Raises:
      UserError: there are none, they may not be read, or the extra is missing; or it has a query.
    """
    if kind_of(address).startswith("http") and "?" in address:
        # What signs an address would stand in messages, and in what a dataset keeps of its source.
        raise UserError(
            f"{address.partition('?')[0]}?...: an address with a query, as signed ones have, is not read; fetch the file, "
            "and give its path"
        )
    try:
        system, path = _opened(address)
        found = sorted(map(str, system.glob(path))) if has_magic(path) else [path]
        files = [file for one in found for file in _below(system, one, address)]
    except Exception as error:  # of libraries of their own, each with its own kinds
        raise _refused(address, error) from None
    if not files:
        hint = "no file has such a name" if has_magic(path) else "a folder without a file"
        raise UserError(f"{address}: {hint}; check the address")
    return files


def _opened(address: str) -> tuple[Any, str]:
    import fsspec

    system, path = fsspec.core.url_to_fs(address)
    system.invalidate_cache()  # what has come since
    return system, path


def _below(system: Any, path: str, address: str) -> list[Remote]:
    """The file at a path, or all in the folder there, in the order of their names."""
    before = address.partition("://")[0] + "://"

    def remote(name: str, facts: dict) -> Remote:
        shown = name if "://" in name else before + name.lstrip("/")
        return Remote(shown, name, system, int(facts.get("size") or 0))

    facts = system.info(path)
    if facts["type"] != "directory":
        return [remote(path, facts)]
    found = system.find(path, detail=True)
    return [remote(name, one) for name, one in sorted(found.items()) if one["type"] != "directory"]


def _refused(address: str, error: Exception) -> UserError:
    """What to say of what a library has said."""
    kind, said = type(error).__name__, (str(error).splitlines() or [""])[0][:160]
    if isinstance(error, ImportError):
        named = getattr(error, "name", None) or getattr(error.__cause__, "name", None) or "another package"
        return UserError(f"{address}: needs {named.split('.')[0]}; pip install 'em3_jax[buckets]'")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{address}: there is no such bucket, folder or file; check the address")
    if isinstance(error, ValueError) and "rotocol" in said:
        return UserError(f"{address}: no such kind of address is known; give s3://, gs://, az:// or https://")
    if isinstance(error, PermissionError) or "redential" in kind + said or "nonymous" in said:
        return UserError(f"{address}: may not be read ({kind}: {said}); {CREDENTIALS}")
    return UserError(f"{address}: cannot be read ({kind}: {said}); check the address and the network")


def fetch(files: dict[Path, Remote]) -> None:
    """Writes remote files to local paths, some at a time, with a progress bar of their megabytes.

    Raises:
      UserError: one cannot be read, or came in part.
    """
    from em3_jax.core.progress import Progress  # every command imports this file, and few fetch anything

    if not files:
        return
    from fsspec.callbacks import Callback

    total = sum(one.size for one in files.values())
    progress, turn, come = Progress(total >> 20, unit="MB", doing="fetching"), threading.Lock(), 0

    class Counted(Callback):
        """Tells the bar of bytes that have come."""

        def relative_update(self, inc: int = 1) -> None:
            nonlocal come
            with turn:
                before, come = come, come + inc
                if moved := (come >> 20) - (before >> 20):
                    progress.advance(moved)

    def bring(path: Path, one: Remote) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            one.system.get_file(one.path, str(path), callback=Counted())
        except Exception as error:
            raise _refused(one.address, error) from None
        if one.size and path.stat().st_size != one.size:
            raise UserError(f"{one.address}: {path.stat().st_size:,} of {one.size:,} bytes came; try again")

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for done in [threads.submit(bring, path, one) for path, one in files.items()]:
            done.result()
    progress.close()
    many = f"{len(files)} files" if len(files) > 1 else next(iter(files.values())).address
    print(f"fetched {many}, {total / 1e6:,.1f} MB")
