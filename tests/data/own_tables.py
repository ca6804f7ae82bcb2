"""A log of clicks in own tables, written as files, read as a dataset: what the tests of reading share."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

ROWS, USERS, ITEMS = 40, 4, 6
LOG = {
    "user": [k % USERS for k in range(ROWS)],
    "item": [k * 5 % ITEMS for k in range(ROWS)],
    "label": [int(k % 3 == 0) for k in range(ROWS)],
    "time": [1_600_000_000 + k for k in range(ROWS)],
    "query": [["hat", "red shoes", "coat"][k % 3] for k in range(ROWS)],
}


def text(columns: dict, delimiter: str = ",", header: bool = True) -> str:
    rows = [*([list(columns)] if header else []), *zip(*columns.values(), strict=True)]
    return "".join(delimiter.join("" if v is None else str(v) for v in row) + "\n" for row in rows)


def clicks(root: Path, content: str | bytes, name: str = "clicks.csv") -> Path:
    path = root / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def made(root: Path, path, **options) -> Dataset:
    return table(root / "out", interactions=path, **options)


def refused(root: Path, path, **options) -> str:
    """The one line that `table` refuses the file with; nothing is left of the dataset."""
    with pytest.raises(UserError) as error:
        made(root, path, **options)
    assert "\n" not in str(error.value) and not (root / "out").exists()
    return str(error.value)


def queries(dataset: Dataset) -> list[str | None]:
    words = [None, None, *dataset.meta["vocabularies"]["context"]["query"]]
    return [words[k] for k in dataset.interactions["context_query"]]


def ids(dataset: Dataset, kind: str) -> list[str]:
    known = (dataset.user_table if kind == "user" else dataset.item_table).column("id").to_pylist()
    return [known[k] for k in dataset.interactions[kind]]


CONTEXT = {"context_fields": ("query",)}


def parquet(root: Path, columns: dict, name: str = "clicks.parquet") -> Path:
    pq.write_table(pa.table(columns), root / name)
    return root / name


def texts(values) -> list[str]:
    return [str(value) for value in values]
