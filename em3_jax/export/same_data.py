"""Whether a run's dataset is the one that a store serves, or has come of it.

A service takes the next version up by itself, so a run of another dataset in a store would answer
for ids that mean something else. A manifest says which rows its dataset had, by a sample of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.training import trained_rows

SAMPLE = 64
"""Rows that a manifest tells of."""
LEAST = 0.5
"""Share of them that a later dataset still has; one that forgets old rows keeps the later ones."""


def sample(dataset: Dataset) -> list[str]:
    """`SAMPLE` interactions of the whole log, evenly spaced, each as 16 hexadecimal digits.

    They are `trained_rows.fingerprints`: of original ids and times, whatever rows they have.
    """
    number = dataset.meta["counts"]["interactions"]
    rows = np.unique(np.linspace(0, number - 1, SAMPLE).astype(np.int64)) if number else np.zeros(0, np.int64)
    return [f"{one:016x}" for one in trained_rows.fingerprints(dataset, rows).tolist()]


def check(
    out: str | Path,
    served: Mapping[str, Any] | None,
    record: Mapping[str, Any],
    dataset: Dataset,
    permitted: bool,
    hint: str = "choose another --out, or --other-data to serve this one from now on",
) -> None:
    """Refuses to publish a run of another dataset in a store.

    The dataset is the same where the store's is among those that the run was trained on, or where
    at least half of the store's sampled rows (`LEAST`) are in it and no field of requests is gone.

    Args:
      served: the manifest of the version served; None = there is none that can be read.
      record: of the run, see `rundir.read`.
      dataset: the one in use, which may have grown since training.
      permitted: the store may go over to another dataset.
      hint: what can be done where it may not.

    Raises:
      UserError: it is another one, and that is not permitted.
    """
    if permitted or served is None:
        return
    here, there = dataset.meta["data_hash"], served.get("data_hash", "")
    if there in (here, record["data_hash"], *record.get("grown_from", ())):
        return
    if problem := _difference(served, dataset):
        raise UserError(
            f"{out}: version {served['version']} is of another dataset (hash {there[:12]}, that in {dataset.root} has "
            f"{here[:12]}): {problem}; {hint}"
        )


def _difference(served: Mapping[str, Any], dataset: Dataset) -> str:
    """What tells that a dataset did not come of the one served; "" where nothing does."""
    rows = served.get("rows")
    if rows is None:
        return "it was exported before stores said which rows they are of"
    number = dataset.meta["counts"]["interactions"]
    every = trained_rows.fingerprints(dataset, range(number))
    found = int(np.isin(np.array([int(one, 16) for one in rows], np.uint64), every).sum())
    if found < LEAST * len(rows):
        return f"of {len(rows)} rows sampled of it, {found} are in this one"
    for group in ("context", "event"):
        names = [one.name for of in (dataset.fields, dataset.numbers) for one in getattr(of, group)]
        served_names = [name for name, *_ in served["serving"]["fields"][group]]
        for name in [*served_names, *served["serving"].get("values", {}).get(group, [])]:
            if name not in names:
                return f"its {group} field '{name}', which requests may name, is not in this one"
    return ""
