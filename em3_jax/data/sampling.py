"""How likely an item is drawn: as a negative of a click, or into a batch. What log-Q corrections take off logits.

Letters: I items, n training rows, B batch, T history.
"""

import warnings

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.mapped import parts
from em3_jax.data.format import CLICK, LOGGED, Dataset


def check_drawn(dataset: Dataset, label: str) -> None:
    """Refuses config.data.log_q where negatives are known not to be drawn, and warns where nothing says how they came about.

    Args:
      label: config.data.label; further labels say nothing of what was drawn, whose values were never observed.
    """
    how = dataset.meta.get("negatives")
    if how is None:
        warnings.warn(
            f"config.data.log_q: nothing in {dataset.root} says how its negatives came about; it is right only where they were "
            "drawn item by item, of a log as it was shown it takes popularity off all scores",
            stacklevel=2,
        )
    elif how == LOGGED or label != CLICK:
        what = f"rows without '{label}'" if label != CLICK else "negatives"
        raise UserError(
            f"config.data.log_q: is of drawn negatives, and the {what} of {dataset.root} were not drawn, the log has them; leave "
            "it out"
        )


def log_kept(dataset: Dataset, rows: np.ndarray | range, label: str) -> np.ndarray:
    """[I] f32 log of how often an item stands as a negative against a click, of the training rows and one more.

    Of a log whose negatives were drawn, by popularity say, a row of item i is a click with q_i times
    smaller odds than in a log that sets all items against each click, q_i the times that i is drawn
    for a click (King and Zeng 2001, eq. 7, by item; Gutmann and Hyvarinen, Noise-contrastive
    estimation, 2010). Items never drawn have q of one draw in all.

    Args:
      rows: [n] the run's training rows.
      label: of 0 and 1.
    """
    rows = np.asarray(rows)
    values = np.asarray(dataset.label(label)[rows])
    drawn = np.bincount(dataset.interactions["item"][rows[values == 0]], minlength=dataset.num_items)
    return np.log((drawn + 1.0) / max(int((values == 1).sum()), 1)).astype(np.float32)


def log_expected(dataset: Dataset, rows: np.ndarray | range, batch_size: int) -> np.ndarray:
    """[I] f32 log of how many candidates of a batch are an item, on average; of one that is none, as if of one row."""
    shown = np.bincount(dataset.interactions["item"][np.asarray(rows)], minlength=dataset.num_items)
    return np.log(np.maximum(shown, 1) * (batch_size / max(len(rows), 1))).astype(np.float32)


def log_present(dataset: Dataset, rows: np.ndarray | range, batch_size: int, history_length: int) -> np.ndarray:
    """[I] f32 log of how likely a batch names an item, as a candidate or among the last T events of its examples.

    As if the slots of a batch were drawn one by one: 1 - exp(-what is expected of the item).
    """
    columns = dataset.interactions
    shown = np.bincount(columns["item"][np.asarray(rows)], minlength=dataset.num_items).astype(np.float64)
    change = np.zeros(len(dataset.events["item"]) + 1, np.int64)  # +1 where ranges start, -1 where they end
    for part in parts(rows, columns["history_start"], columns["history_end"]):
        end = columns["history_end"][part]
        start = np.maximum(columns["history_start"][part], end - history_length)
        one = np.ones(len(start), np.int64)
        np.add.at(change, start, one)
        np.add.at(change, end, -one)
    slots = np.cumsum(change)[:-1]
    shown += np.bincount(dataset.events["item"], slots, minlength=dataset.num_items)
    return np.log(-np.expm1(-np.maximum(shown, 1) * (batch_size / max(len(rows), 1)))).astype(np.float32)
