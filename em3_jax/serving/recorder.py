"""Records what a service was asked and what it answered, for `em3 replay`: a line of JSON a request.

    {"version", "checksum", "asked": the request, "inputs": what the model was asked, a piece of the candidates each,
     "logits": [b]}

Of what was looked up of an item stands a hash of its bytes, 16 hexadecimal digits. Letters: b candidates.
"""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import strict_json
from em3_jax.core.batch import REQUEST
from em3_jax.core.errors import UserError
from em3_jax.serving.requests import ScoreRequest
from em3_jax.serving.served_model import Asked, Model
from em3_jax.serving.vectors import hash_rows

BEGIN = b'{"version"'
"""What a line begins with."""


def written(asked: Asked) -> dict[str, Any]:
    """What a program was asked, without the candidates that only fill it."""
    found: dict[str, Any] = {}
    for name, value in asked.request.items():
        of_candidates, end = REQUEST[name].axes[0] == "B", asked.candidates
        if isinstance(value, dict):
            hashed = {of: hash_rows(np.asarray(one)) for of, one in value.items()}
            found |= {f"{name}.{of}": one[:end] if of_candidates else one for of, one in hashed.items()}
        else:
            found[name] = np.asarray(value)[: end if of_candidates else None].tolist()
    return found


def _mend(path: Path) -> None:
    """Cuts off what a killed service has left of a line, or the next request would stand behind it."""
    if not path.is_file():
        return
    with open(path, "rb+") as file:
        size, take, tail = file.seek(0, os.SEEK_END), 1 << 16, b""
        while b"\n" not in tail and len(tail) < size:
            file.seek(max(size - take, 0))
            tail, take = file.read(), take * 2
        half = tail.rpartition(b"\n")[2]
        if half.startswith(BEGIN[: len(half)]):
            file.truncate(size - len(half))


class Recorder:
    """Appends to a file; calls may come from several threads.

    Raises:
      UserError: it cannot be written.
    """

    def __init__(self, path: Path):
        try:
            _mend(path)
            self._file = open(path, "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--record {path}: cannot be written ({error.strerror}); choose another file") from None
        self._lock = threading.Lock()

    def __call__(self, model: Model, asked: ScoreRequest, logits: np.ndarray, seen: Sequence[Asked]) -> None:
        """Records one request."""
        line = {
            "version": model.name,
            "checksum": model.checksum,
            "asked": asked.model_dump(exclude_defaults=True),
            "inputs": [written(one) for one in seen],
            "logits": np.asarray(logits, np.float64).tolist(),
        }
        text = strict_json.dumps(line) + "\n"
        with self._lock:
            self._file.write(text)
            self._file.flush()

    def close(self) -> None:
        self._file.close()
