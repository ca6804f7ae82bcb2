"""How a rival speaks with the race: lines of JSON on stdout, an answer to each on stdin.

A rival is a script of two commands, run in an environment of its own, where nothing of em3_jax is:

    prepare <rows folder> <work folder>                              the library's own encoding of the rows
    train <work folder> <name> <seed> <threads>                      its own loader, model, loop

Whoever trains reports at each evaluation the scores of all rows of valid.csv in their order; the race counts the AUC, the
same for all, and says whether to go on. Needs Python and numpy.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def main(prepare: Callable[[Path, Path], None], train: Callable[..., None]) -> None:
    """Runs the command that the race asks for.

    Args:
      prepare: of (rows folder, work folder).
      train: of (work folder, name, seed, threads).
    """
    command, folder, *rest = sys.argv[1:]
    if command == "prepare":
        prepare(Path(folder), Path(rest[0]))
    else:
        name, seed, threads = rest
        train(Path(folder), name, int(seed), int(threads))


class Reports:
    """Reports of a training run.

    Args:
      work: folder for the scores.
    """

    def __init__(self, work: Path):
        self._work, self._training, self._since = work, 0.0, None
        # The libraries print on stdout what is no report.
        self._out, sys.stdout = sys.stdout, sys.stderr

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time in here is not the training loop's."""
        self._pause()
        yield
        self.training()

    def training(self) -> None:
        """From here on the loop trains."""
        self._since = time.perf_counter()

    def _pause(self) -> None:
        if self._since is not None:
            self._training += time.perf_counter() - self._since
        self._since = None

    def valid(self, scores, examples: int) -> bool:
        """Whether to go on.

        Args:
          scores: [rows of valid.csv] in their order; probabilities or logits.
          examples: trained on since the last report.
        """
        self._pause()
        np.save(self._work / "scores.npy", np.asarray(scores, np.float64).reshape(-1))
        line = {"event": "valid", "examples": examples, "training_seconds": self._training}
        print(json.dumps(line), file=self._out, flush=True)
        self._training = 0.0
        answer = sys.stdin.readline().strip()
        self.training()
        return answer == "go on"


class Shares:
    """A loader that hands on an epoch of another in several passes, for trainers that evaluate after each pass.

    Args:
      loader: whose batches these are; its attributes are this one's too.
      passes: of which an epoch is made.
      count: examples of a batch.

    Attributes:
      examples: handed on in the last pass.
    """

    def __init__(self, loader, passes: int, count: Callable[[Any], int]):
        self.loader, self.examples, self._count = loader, 0, count
        self._length, self._batches = -(-len(loader) // passes), iter(())

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator:
        self.examples = 0
        for _ in range(self._length):
            batch = next(self._batches, None)
            if batch is None:
                self._batches = iter(self.loader)
                batch = next(self._batches)
            self.examples += self._count(batch)
            yield batch
