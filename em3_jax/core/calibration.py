"""From a model's logits to probabilities that are those of the log: what was fitted, and how it is applied.

What is fitted maps logits to logits and never turns an order around. Letters: n rows, k knots.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.labels import given_click

METHODS = ("platt", "isotonic")


class Calibration(NamedTuple):
    """A map of logits, piecewise linear between knots, and what stands for rows that were not kept.

    Attributes:
      method: of `METHODS`; "" where nothing was fitted.
      logits, calibrated: [k] knots, both ascending; a line through two of them for Platt's.
      slope: beyond the first and the last knot.
      kept_negatives: share of the log's negatives that the rows hold; 1 = all.
    """

    method: str
    logits: tuple[float, ...]
    calibrated: tuple[float, ...]
    slope: float = 1.0
    kept_negatives: float = 1.0

    def of_rows(self, logits: np.ndarray) -> np.ndarray:
        """[n] f64 calibrated logits of rows drawn as those that it was fitted on."""
        x = np.asarray(logits, np.float64)
        if not self.logits:
            return x
        first, last = self.logits[0], self.logits[-1]
        inside = np.interp(x, self.logits, self.calibrated)
        return inside + self.slope * (np.minimum(x - first, 0.0) + np.maximum(x - last, 0.0))

    def of_log(self, logits: np.ndarray) -> np.ndarray:
        """[n] f64 the same for the whole log, whose negatives the rows are a share of.

        Where a share r of the negatives is kept, the odds of a click among the rows are 1 / r times
        those of the log (King and Zeng, Logistic Regression in Rare Events Data, 2001, eq. 7).
        """
        return self.of_rows(logits) + np.log(self.kept_negatives)

    def probability(self, logits: np.ndarray) -> np.ndarray:
        """[n] f64 of a click in the whole log."""
        return 1.0 / (1.0 + np.exp(-self.of_log(logits)))

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` reads them."""
        return {**self._asdict(), "logits": list(self.logits), "calibrated": list(self.calibrated)}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Calibration":
        """What `to_json` gives.

        Raises:
          ValueError: it is damaged: something is missing, or the knots do not ascend.
        """
        try:
            logits, calibrated = (tuple(float(one) for one in facts[name]) for name in ("logits", "calibrated"))
            method, slope, kept = str(facts["method"]), float(facts["slope"]), float(facts["kept_negatives"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no calibration ({error})") from None
        ascend = all(np.isfinite(one).all() and (np.diff(one) >= 0).all() for one in (logits, calibrated))
        if len(logits) != len(calibrated) or not (ascend and np.isfinite(slope) and 0 < kept <= 1):
            raise ValueError("no calibration: knots do not ascend, or numbers are out of range")
        return cls(method, logits, calibrated, slope, kept)


NONE = Calibration("", (), ())
"""Logits as they are."""


class Calibrations(NamedTuple):
    """Those of a run: of its first label, and of the further ones by the names of `core.labels.parted`."""

    first: Calibration
    further: Mapping[str, Calibration]

    def of(self, label: str) -> Calibration:
        """That of a further label; `NONE` where nothing was fitted."""
        return self.further.get(label, NONE)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return self.first.to_json() | {"labels": {name: one.to_json() for name, one in self.further.items()}}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Calibrations":
        """What `to_json` gives.

        Raises:
          ValueError: it is damaged.
        """
        further = {name: Calibration.from_json(one) for name, one in facts.get("labels", {}).items()}
        return cls(Calibration.from_json(facts), further)


def probabilities(found: Calibrations, first: np.ndarray, further: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"": [n] of a click in the whole log, further label: [n]}, calibrated.

    What is of a click and something after it is the product of both. Negatives that were not kept are the first label's:
    of other further labels the probabilities are those of rows as they were kept.

    Args:
      first: [n] logits of the first label.
      further: label -> [n] logits, see `core.labels.parted`.
    """
    result = {"": found.first.probability(first)}
    for name, logits in further.items():
        given = given_click(name)
        if given in further:
            result[name] = result[""] * found.of(given).probability(further[given])
        else:
            result[name] = found.of(name).probability(logits)
    return result
