"""One writer at a time: a lock on a folder, which goes with the process that holds it, however that ends."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
import warnings
from pathlib import Path

from em3_jax.core.errors import UserError

_HELD = (errno.EAGAIN, errno.EACCES)
_LOOKS = 20  # at a lock whose holder has not written yet who it is


class Lock:
    """Keeps a folder for this process alone; a context manager.

    The kernel holds it (flock), so that a killed process leaves none; between machines the network file system has to
    pass it on, as NFS does. The lock file says who holds it, for the one that comes second, and is gone afterwards.

    Args:
      folder: what is written; made, with its parents, where it is not there, and removed again if it stays empty.
      beside: the folder appears by a rename, so the lock lies beside it as .<name>.lock, and the folder is not made.
      hint: what the second one can do.

    Raises:
      UserError: on entering: another process holds it, or the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path, *, beside: bool = False, hint: str = "wait for it, or choose another folder"
    ):
        self.folder, self._hint = Path(folder), hint
        whole = self.folder.absolute()
        self._path = whole.with_name(f".{whole.name}.lock") if beside else whole / "lock"
        self._made: list[Path] = []
        self._handle = -1

    def __enter__(self) -> "Lock":
        place = self._path.parent
        self._made = [path for path in (place, *place.parents) if not path.exists()]
        try:
            place.mkdir(parents=True, exist_ok=True)
            while not self._take():
                pass
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be written ({error.strerror}); choose another folder") from None
        return self

    def _take(self) -> bool:
        """Opens the file and locks it; False where its last holder removed it in between."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                text = self._holder(handle)
                os.close(handle)
                raise UserError(f"{self.folder}: {text}; {self._hint}") from None
            warnings.warn(
                f"{self.folder}: this file system has no locks ({error.strerror}); see that nothing else writes it",
                stacklevel=4,
            )
        self._handle = handle
        if not self._is_there():
            os.close(handle)
            return False
        os.ftruncate(handle, 0)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "command": command}
        os.pwrite(handle, json.dumps(me).encode(), 0)
        return True

    @staticmethod
    def _holder(handle: int) -> str:
        """Who holds the lock, in words."""
        for _ in range(_LOOKS):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                one = json.loads(os.pread(handle, 4096, 0))
                since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["since"]))
                return f"process {one['pid']} on {one['host']} ({one['command']}) has been writing it since {since}"
            time.sleep(0.05)
        return "another process is writing it"

    def _is_there(self) -> bool:
        """Whether the lock file's name still stands for the file that was locked."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._handle))
        except FileNotFoundError:
            return False

    def __exit__(self, *_) -> None:
        if self._is_there():
            self._path.unlink()
        os.close(self._handle)
        with contextlib.suppress(OSError):  # not empty
            for path in self._made:
                path.rmdir()
