"""What a service answers: what the logits of a version's model mean, by its labels and calibrations.

Letters: b candidates, H further labels.
"""

from typing import NamedTuple

import numpy as np

from em3_jax.core import amounts
from em3_jax.core.calibration import NONE, Calibrations, probabilities
from em3_jax.core.errors import UserError
from em3_jax.core.labels import Labels, parted
from em3_jax.serving.store import Version


class Lookup(NamedTuple):
    """What `Model.lookup` found.

    Attributes:
      vectors: [n, D] content embeddings; of an unknown item that of an item without any content.
      known: [n] bool, whether the item is in the store.

    >>> from em3_jax.serving import Service
    >>> with Service("store") as service:
    ...     found = service.model.lookup([4, -1])
    >>> len(found.vectors), found.known.tolist()
    (2, [True, False])
    """

    vectors: np.ndarray
    known: np.ndarray


class Scores(NamedTuple):
    """What `Model.score` gives.

    Attributes:
      probability: [b] f64 of a click, by the run's calibration where it has one; where the first label is an amount
        what is expected.
      logit: [b] f32, as the model gives it.
      further: further label -> [b] f64 its probability, of an amount what is expected; {} of a model of one label.
      known: [b] bool, whether the candidate is in the store; others are scored as an item of which nothing is known.
      user_known: whether the user is.
      history_used: how many events of the history were read: the last T of known items.
      unknown: how many ids and values of the request the store does not know, by where they stand:
        {"history_fields.rating": 3, "candidates": 1}. They are scored as of which nothing is
        known. What is said to be missing (None, NaN, "") is not among them.

    >>> from em3_jax.serving import Service
    >>> with Service("store") as service:
    ...     scores = service.model.score(user=3, history=[1, 2], candidates=[4, -1])
    >>> scores.known.tolist(), scores.history_used, scores.unknown
    ([True, False], 2, {'candidates': 1})
    """

    probability: np.ndarray
    logit: np.ndarray
    further: dict[str, np.ndarray]
    known: np.ndarray
    user_known: bool
    history_used: int
    unknown: dict[str, int]


class Meaning:
    """What a version's logits mean.

    Raises:
      UserError: its calibrations are damaged.
    """

    def __init__(self, version: Version):
        facts = version.manifest["serving"]
        self._labels = Labels.from_json(facts.get("labels", {}))
        self._calibrations = Calibrations(NONE, {})
        if (fitted := facts.get("calibration")) is not None:
            try:
                self._calibrations = Calibrations.from_json(fitted)
            except ValueError as error:
                raise UserError(f"{version.folder}: {error}; export again") from None

    @property
    def nothing(self) -> np.ndarray:
        """The logits of no candidates."""
        further = len(self._labels.names)
        return np.zeros((0, 1 + further) if further else 0, np.float32)

    def __call__(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """`probability`, `logit` and `further` of `Scores`.

        Args:
          logits: [b], or [b, 1 + H].
        """
        first, further = parted(logits, self._labels)
        scored = {name: one for name, one in further.items() if name not in self._labels.amounts}
        found = probabilities(self._calibrations, first, scored)
        probability = found.pop("")
        if self._labels.first:
            probability = amounts.expected(self._labels.first, first)
        expected = {name: amounts.expected(loss, further[name]) for name, loss in self._labels.amounts.items()}
        return probability, first, found | expected
