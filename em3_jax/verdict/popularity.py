"""What needs no model: how often an item was clicked in training."""

import numpy as np

from em3_jax.data.format import CLICK, Dataset

PRIOR = 20.0
"""Rows of the mean rate that each item has besides its own."""


def logits(dataset: Dataset, split: str, label: str = CLICK) -> np.ndarray:
    """[n] f32 log-odds of a click on the candidate of each row of a split, by the item's training rows alone.

    Args:
      dataset: its `PRIOR` rows of the mean rate draw items of few rows, and put new ones, to the mean.
      split: the rows that have the label, in the order in which runs score them.
    """
    train = np.asarray(dataset.split_rows("train", label))
    item, clicked = dataset.interactions["item"], dataset.label(label)
    items = int(np.max(item, initial=0)) + 1
    shown = np.bincount(item[train], minlength=items)
    clicks = np.bincount(item[train], clicked[train], minlength=items)
    mean = float(np.clip(clicks.sum() / max(shown.sum(), 1), 1e-6, 1 - 1e-6))
    rate = (clicks + PRIOR * mean) / (shown + PRIOR)
    of_rows = rate[item[np.asarray(dataset.split_rows(split, label))]]
    return np.log(of_rows / (1 - of_rows)).astype(np.float32)
