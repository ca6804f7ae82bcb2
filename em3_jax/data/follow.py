"""A log that somebody appends to, as a dataset that grows."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from em3_jax.core import paths, publish
from em3_jax.core.errors import UserError
from em3_jax.data import prepare

SNAPSHOT = "followed"
_AT_ONCE = 1 << 22  # bytes that are compared at once


class Follower:
    """Makes a dataset of a CSV or TSV file, again whenever the file has grown by whole lines; a half-written last line waits.

    Args:
      mapping: file of options for `prepare table`, see there; "" = nothing is followed, the dataset is there.
      root: dataset folder to make.
      poll_seconds: between two looks.
      idle_seconds: without growth after which `wait` gives up; 0 = never.
    """

    def __init__(self, mapping: str, root: str | Path, poll_seconds: float, idle_seconds: float):
        self.grows = bool(mapping)
        self._root, self._poll, self._idle, self._size = Path(root), poll_seconds, idle_seconds, 0
        if not self.grows:
            return
        self._options: dict[str, Any] = prepare.read_mapping(paths.local(mapping), prepare.READERS["table"])
        named = self._options.pop("interactions", "")
        if not isinstance(named, str | Path):
            raise UserError(f"{mapping}: interactions names {len(named)} files; one log is followed")
        self._log = Path(named)
        if self._log.suffix not in (".csv", ".tsv"):
            raise UserError(f"{mapping}: interactions is '{self._log}'; a log that is followed is a .csv or .tsv file")

    def prepare(self) -> None:
        """Makes the dataset of the lines that are complete, if there are more than before."""
        if not self.grows:
            return
        size = self._complete()
        if size == self._size:
            return
        root = publish.resolved(self._root)
        beside = Path(tempfile.gettempdir()) if publish.is_mount(root) else root.parent
        snapshot = beside / f"{root.name}.{SNAPSHOT}{self._log.suffix}"
        snapshot.parent.mkdir(parents=True, exist_ok=True)
        # That of a mount lies where one of another dataset of this name may have lain.
        before = self._same_so_far(snapshot) if root.exists() and beside == root.parent else 0
        with open(self._log, "rb") as source, open(snapshot, "wb") as target:
            target.write(source.read(size))
        # The reader would sort by time, and a late line would move what was trained on.
        options = self._options | {"in_order": True, "overwrite": True}
        try:
            prepare.READERS["table"](self._root, interactions=snapshot, **options)
        except UserError as error:
            os.truncate(snapshot, before)  # what the dataset is made of, as before; the lines beyond may be mended
            raise UserError(str(error).replace(str(snapshot), str(self._log))) from None
        self._size = size

    def _same_so_far(self, snapshot: Path) -> int:
        """Bytes of the lines that the dataset was made of, with which the log has to begin; 0 where they were not kept."""
        if not snapshot.exists():
            return 0
        with open(self._log, "rb") as log, open(snapshot, "rb") as before:
            while block := before.read(_AT_ONCE):
                if log.read(len(block)) != block:
                    raise UserError(
                        f"{self._log}: does not begin with the lines that {self._root} was made of, which are in {snapshot}; a "
                        "followed log may only be appended to: restore it, name the one followed so far in the mapping, or "
                        "begin with another config.data.root and --workdir"
                    )
        return snapshot.stat().st_size

    def _complete(self) -> int:
        """Bytes up to the last line end; what was complete before is not read again."""
        try:
            with open(self._log, "rb") as file:
                length = file.seek(0, os.SEEK_END)
                file.seek(self._size)
                added = file.read()
        except OSError as error:
            raise UserError(f"{self._log}: {error.strerror}; name the log in the mapping as `interactions`") from None
        if length < self._size:
            raise UserError(
                f"{self._log}: has become shorter, from {self._size:,} to {length:,} bytes; a followed log may only be "
                "appended to"
            )
        return self._size + added.rfind(b"\n") + 1

    def wait(self, interrupts) -> str:
        """Returns "" when the log has grown, or why there is nothing more to wait for."""
        if not self.grows:
            return "end"
        began = time.monotonic()
        while not interrupts.received:
            if self._complete() > self._size:
                return ""
            if self._idle and time.monotonic() - began > self._idle:
                return f"no growth of {self._log} for {self._idle:g} s"
            time.sleep(self._poll)
        return interrupts.received
