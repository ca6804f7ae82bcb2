"""The category of an item, which encoders may read beside its pictures: a table of numbers like those of features."""

import numpy as np

from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import FIRST_KNOWN, columns
from em3_jax.data.format import Dataset, FeatureSet

PRIOR = "encoder_prior"
"""The name under which it stands among a batch's tokens, [S, 1, 1] i32, until encoders have read it."""
LABELS = "category_labels"
"""The same of what a task that learns categories is to find."""


def prior(dataset: Dataset, field: str) -> FeatureSet | None:
    """The values of an item field as content of all items, [I, 1, 1] i32: 0 = unknown, or of no item that training shows.

    Its mask says that no item has content of that kind: it is none by itself.

    Args:
      field: name of the field; "" gives None.

    Raises:
      UserError: the items have no such field, or several values of it each.
    """
    if not field:
        return None
    ids, size = _values(dataset, field, f"config.model.encoder_prior={field}")
    shown = np.bincount(ids, dataset.counts["item"] + dataset.counts["item_history"], size)
    values = np.where(shown[ids] > 0, np.maximum(ids - FIRST_KNOWN + 1, 0), 0).astype(np.int32)
    return FeatureSet(PRIOR, values[:, None, None], np.zeros((len(values), 1), bool), {"raw": {"field": field}})


def categories(dataset: Dataset, field: str) -> int:
    """How many numbers `prior` has, 0 among them; 0 without a field."""
    return next((one.size - FIRST_KNOWN + 1 for one in dataset.fields.item if one.name == field), 0)


def labels(dataset: Dataset, field: str) -> FeatureSet:
    """The same values as labels of all items, [I, 1, 1] i32, under the name `LABELS`: 0 = none that is known.

    Args:
      field: name of the field.

    Raises:
      UserError: the items have no such field, or several values of it each.
    """
    ids, _ = _values(dataset, field, f"config.pretraining.category_field={field}")
    values = np.maximum(ids - FIRST_KNOWN + 1, 0).astype(np.int32)
    return FeatureSet(LABELS, values[:, None, None], np.zeros((len(values), 1), bool), {"raw": {"field": field}})


def _values(dataset: Dataset, field: str, where: str) -> tuple[np.ndarray, int]:
    """([I] i32 ids of an item field with one value an item, its size); `where` begins what is refused."""
    known = {one.name: one for one in dataset.fields.item[1:]}  # the first is the item itself
    single = [name for name, one in known.items() if one.length == 1]
    if field not in known:
        hint = nearest(field, single) if single else "its items have none"
        raise UserError(f"{where}: {dataset.root} has no such item field; {hint}")
    if field not in single:
        raise UserError(
            f"{where}: an item has several values of it; {nearest(field, single) if single else 'leave it out'}"
        )
    return dataset.item_field_ids[:, columns(dataset.fields.item)[field].start], known[field].size
