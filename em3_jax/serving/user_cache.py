"""What a request says of its user, resolved and looked up once for all its candidates, and kept for the next request.

An entry is of one version, so it holds until the version or anything that the request says of the user changes.
Letters: m known events of a history.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Past(NamedTuple):
    """The user's side of a request.

    Attributes:
      user: row of the user, -1 = not known.
      item: [m] i64 rows of the events' items.
      fields: event field -> [m] ids, of a number that is read as a value f32.
      unknown: how many ids and values the store does not know, by where they stand.
      side: what the compiled program takes of it, on the device; None where that depends on the candidate.
    """

    user: int
    item: np.ndarray
    fields: dict[str, np.ndarray]
    unknown: dict[str, int]
    side: dict[str, Any] | None


def key_of(*parts: Any) -> str:
    """What is asked, as text: 1, 1.0, True and "1" are different."""
    return repr([_plain(part) for part in parts])


def _plain(part: Any) -> Any:
    if isinstance(part, np.ndarray):
        return part.tolist()
    if isinstance(part, Mapping):
        return sorted((name, _plain(one)) for name, one in part.items())
    return part


class UserCache:
    """The most recently used entries; calls may come from several threads.

    Args:
      most: entries; 0 = none are kept.

    Attributes:
      hits, misses: counted since it was made.
    """

    def __init__(self, most: int):
        self._most, self._entries, self._lock = most, OrderedDict[str, Past](), threading.Lock()
        self.hits = self.misses = 0

    def get(self, key: str) -> Past | None:
        """The entry of a key, which becomes the newest."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return found

    def put(self, key: str, past: Past) -> None:
        """Keeps an entry; the one that was not asked for longest goes where there is no room."""
        with self._lock:
            if self._most:
                self._entries[key] = past
                while len(self._entries) > self._most:
                    self._entries.popitem(last=False)

    def __len__(self) -> int:
        return len(self._entries)
