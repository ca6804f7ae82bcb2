"""Fits what turns a run's logits into calibrated ones, and measures before and after. Letter: n rows."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from em3_jax import metrics
from em3_jax.core import strict_json, terminal
from em3_jax.core.calibration import METHODS, NONE, Calibration, Calibrations
from em3_jax.core.errors import UserError

FILE = "calibration.json"
"""In the folder of a run."""
DECILES = 10
MOST_KNOTS = 200  # of an isotonic fit; more say nothing, and a service reads them at each request


def check(method: str, kept_negatives: float) -> None:
    """Refuses a method that is none, and a share that is none."""
    if method not in METHODS:
        raise UserError(f"--calibrate {method}: choose {' or '.join(METHODS)}")
    if not 0 < kept_negatives <= 1:
        raise UserError(
            f"--kept-negatives {kept_negatives:g}: give the share of the negatives that was kept, above 0 to 1"
        )


def fitted(
    labels: np.ndarray,
    logits: np.ndarray,
    method: str,
    kept_negatives: float = 1.0,
    name: str = "clicks",
    log_kept: np.ndarray | None = None,
) -> Calibration:
    """The calibration of rows.

    Args:
      labels: [n] 0/1, with both.
      logits: [n].
      method: "platt" is a logistic regression on the logit (Platt 1999); "isotonic" the non-decreasing
        rates that are the likeliest (Zadrozny and Elkan 2002), with lines between them in logits.
      kept_negatives: see `Calibration`; it moves what is fitted and takes no part in it.
      name: what the labels are, for messages.
      log_kept: [n] what the rows' logits are lower by than those of the whole log, by item; with "platt".

    Raises:
      UserError: see `check`; "isotonic" with `log_kept`, or a share of negatives besides; one class
        alone, or a slope that is not above 0.
    """
    check(method, kept_negatives)
    labels, logits = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    if not len(labels) or labels.min() == labels.max():
        raise UserError(f"--calibrate: the validation rows have one class of {name} alone, and both are needed")
    if log_kept is not None and (method == "isotonic" or kept_negatives < 1):
        what = "--calibrate isotonic" if method == "isotonic" else "--kept-negatives"
        raise UserError(
            f"{what}: the run corrects for how often each item is drawn (data.log_q); give --calibrate platt"
        )
    if method == "isotonic":
        return _isotonic(labels, logits, kept_negatives)
    slope, intercept = metrics.calibration_line(labels, logits, log_kept)
    if not slope > 0:
        raise UserError(
            f"--calibrate platt: on validation {name} do not rise with the score (slope {slope:.3g}); "
            "there is nothing to calibrate, train the run further"
        )
    at = (0.0, 1.0)
    return Calibration(method, at, tuple(intercept + slope * x for x in at), slope, kept_negatives)


def _isotonic(labels: np.ndarray, logits: np.ndarray, kept_negatives: float) -> Calibration:
    """Knots at the means of the blocks; n rows with c clicks have the rate (c + 1/2) / (n + 1), never 0 or 1."""
    order = np.argsort(logits, kind="stable")
    x, y = logits[order], labels[order]
    x, first, count = np.unique(x, return_index=True, return_counts=True)  # ties are one point
    clicks = np.add.reduceat(y, first)
    blocks = scipy.optimize.isotonic_regression(clicks / count, weights=count).blocks
    starts = _joined(blocks, count)
    rows, of_block = np.add.reduceat(count, starts), np.add.reduceat(clicks, starts)
    place = np.add.reduceat(x * count, starts) / rows
    rate = (of_block + 0.5) / (rows + 1.0)
    value = np.maximum.accumulate(
        np.log(rate) - np.log1p(-rate)
    )  # what keeps it off 0 and 1 may turn neighbours around
    return Calibration("isotonic", tuple(place.tolist()), tuple(value.tolist()), 1.0, kept_negatives)


def _joined(blocks: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Where blocks start, neighbours put together until each has its share of the rows."""
    least = count.sum() / MOST_KNOTS
    starts, rows = [int(blocks[0])], 0
    for start, stop in itertools.pairwise(blocks):
        if rows >= least:
            starts.append(int(start))
            rows = 0
        rows += int(count[start:stop].sum())
    return np.array(starts)


def measured(labels: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """How calibrated logits are: 1 is right of `calibration` and `calibration_slope`, 0 of `calibration_error`."""
    probability = 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))
    return {
        "logloss": metrics.logloss(labels, logits),
        "calibration": metrics.calibration(labels, probability),
        "calibration_error": metrics.expected_calibration_error(labels, probability),
        "calibration_slope": metrics.calibration_line(labels, logits)[0],
    }


def deciles(labels: np.ndarray, logits: np.ndarray) -> list[dict[str, float]]:
    """Of each tenth of the rows by their score: {"rows", "predicted", "clicked"}, means."""
    order = np.argsort(logits, kind="stable")
    probability = 1.0 / (1.0 + np.exp(-np.asarray(logits, np.float64)))
    return [
        {"rows": len(part), "predicted": float(probability[part].mean()), "clicked": float(np.mean(labels[part]))}
        for part in np.array_split(order, DECILES)
        if len(part)
    ]


def write(folder: Path, found: Calibrations, facts: dict[str, Any]) -> None:
    """Keeps calibrations with their run, and `facts` of what they were fitted on; a reader sees the old or the new ones."""
    temporary = folder / f"{FILE}.tmp"
    temporary.write_text(strict_json.dumps(found.to_json() | {"fitted_on": facts}, indent=1), encoding="utf-8")
    temporary.replace(folder / FILE)


def read(folder: str | Path, step: int) -> Calibrations:
    """The calibrations of a run; `NONE` where there are none.

    Args:
      step: that is scored.

    Raises:
      UserError: the file is damaged, or was fitted on another step.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return Calibrations(NONE, {})
    again = "fit it again with `em3 eval --calibrate`, or delete it"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        found, fitted_at = Calibrations.from_json(facts), int(facts["fitted_on"]["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from None
    if fitted_at != step:
        raise UserError(f"{path}: was fitted on step {fitted_at:,}, and this is step {step:,}; {again}")
    return found


def table(before: dict[str, float], after: dict[str, float], of_deciles: list[dict[str, float]]) -> str:
    """Before and after as text, and the deciles after."""
    rows = [[name.replace("_", " "), f"{before[name]:.4f}", f"{after[name]:.4f}"] for name in before]
    tenths = [[str(k), f"{one['predicted']:.4f}", f"{one['clicked']:.4f}"] for k, one in enumerate(of_deciles, 1)]
    first = terminal.table(["", "as trained", "calibrated"], rows)
    return f"{first}\n\n{terminal.table(['tenth by score', 'predicted', 'clicked'], tenths)}"
