"""Tables as hypothesis draws them: rows in = rows out + rows named; a dataset or one line, and nothing else."""

import csv
import io
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from untidy import ENCODINGS, ENDS, NUMBERS, as_type, dataset_or_one_line, encoded, generated, lines

from em3_jax.core.values import canonical
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

ROWS = 14
NAMES = ["user", "item", "label", "time", "query"]
WORDS = ["hat", "red shoes", '"hat', 'hat"', '5" nail', '"Weird" Al', "Café", "東京", "a,b", "a\tb", "", "5.0", "nan", "TRUE",
         " x ", "a;b", "'", '""', "a\nb", "\\N", "#1", "=1+1"]  # fmt: skip
CELL = st.one_of(st.sampled_from(WORDS), st.text(max_size=5))
DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}


@st.composite
def logs(draw) -> dict[str, list]:
    """Interactions that a dataset can be made of, but for what is spoilt of them."""

    def whole(most):
        return st.lists(st.integers(0, most), min_size=ROWS, max_size=ROWS)

    log = {"user": draw(whole(3)), "item": draw(whole(4)), "label": [k % 2 for k in range(ROWS)],
           "time": sorted(draw(whole(10**9))), "query": draw(st.lists(CELL, min_size=ROWS, max_size=ROWS))}  # fmt: skip
    if draw(st.integers(0, 3)) == 0:
        name, row = draw(st.sampled_from(NAMES)), draw(st.integers(0, ROWS - 1))
        bad = st.sampled_from([None, "nan", "x", "-1", "1.5", 1e30, "2020-13-45", '"', "\x00", "0x1f", "1e3", " 7"])
        log[name] = [draw(bad) if k == row else value for k, value in enumerate(log[name])]
    return log


def written(rows: list[list], delimiter: str, end: str, style: str) -> str:
    if style == "bare":
        return lines(rows, delimiter, end)
    out = io.StringIO()
    quotes = csv.QUOTE_ALL if style == "all" else csv.QUOTE_MINIMAL
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quotes).writerows(rows)
    return out.getvalue()


TEXT = st.fixed_dictionaries({
    "log": logs(), "order": st.permutations(NAMES), "suffix": st.sampled_from(list(DELIMITERS)), "encoding": ENCODINGS,
    "end": ENDS, "style": st.sampled_from(["bare", "minimal", "all"]), "header": st.sampled_from(["yes", "no", "blanks"]),
    "spare": st.sampled_from(["", "", "columns", "cells"]), "tell": st.booleans(),
    "quoting": st.sampled_from(["auto"] * 4 + ["on", "off"]),
})  # fmt: skip


def check(made: Dataset | str, rows: int, name: str) -> None:
    if isinstance(made, Dataset):
        account = made.meta["rows"][name]
        assert account["read"] == rows, (account, rows)
        assert account["kept"] + sum(account["dropped"].values()) == rows
        assert made.meta["counts"]["interactions"] == account["kept"]


def words_of(made: Dataset, rows: int) -> list[str | None]:
    words = [None, None, *made.meta["vocabularies"]["context"]["query"]]
    return [words[k] for k in made.interactions["context_query"]]


@generated(150)
@given(TEXT)
def test_text(draw):
    log, delimiter = draw["log"], DELIMITERS[draw["suffix"]]
    rows = [[log[name][k] for name in draw["order"]] for k in range(ROWS)]
    header = [[f" {name}" if draw["header"] == "blanks" else name for name in draw["order"]]]
    rows = [*(header if draw["header"] != "no" else []), *rows]
    if draw["spare"]:
        rows = [[*row, *([""] * 3 if draw["spare"] == "columns" or k else [])] for k, row in enumerate(rows)]
    text = written(rows, delimiter, draw["end"], draw["style"])
    options = {"quoting": draw["quoting"]}
    if draw["tell"]:
        options["encoding"] = draw["encoding"]
        if draw["header"] == "no":
            options["column_names"] = tuple(draw["order"])
    with tempfile.TemporaryDirectory() as folder:
        path = encoded(Path(folder) / f"clicks{draw['suffix']}", text, draw["encoding"])
        made = dataset_or_one_line(
            lambda: table(Path(folder) / "out", interactions=path, context_fields=("query",), **options)
        )
        plain = all(not set(str(cell)) & set('\r\n"') for row in rows for cell in row)
        if plain or (draw["quoting"] == "auto" and draw["style"] != "bare"):
            check(made, ROWS, path.name)
        if (
            isinstance(made, Dataset)
            and draw["style"] != "bare"
            and draw["quoting"] == "auto"
            and draw["header"] == "yes"
        ):
            order = sorted(range(ROWS), key=lambda k: int(float(log["time"][k])))
            read_back = [
                str(log["query"][k]).encode(draw["encoding"], "replace").decode(draw["encoding"]) for k in order
            ]
            assert words_of(made, ROWS) == [canonical(value) for value in read_back]


PARQUET = st.fixed_dictionaries({
    "log": logs(), "kinds": st.fixed_dictionaries({name: st.sampled_from(NUMBERS) for name in NAMES[:4]}),
    "nulls": st.one_of(st.none(), st.sampled_from(NAMES)), "order": st.permutations(NAMES), "parts": st.integers(1, 3),
    "field": st.sampled_from([pa.int64(), pa.float64(), pa.date32(), pa.timestamp("ns"), pa.timestamp("ms", "UTC"),
                              pa.time64("us"), pa.bool_(), pa.list_(pa.int64()), pa.map_(pa.string(), pa.int64()),
                              pa.duration("us"), pa.struct([("a", pa.int64()), ("b", pa.int64())])]),
})  # fmt: skip


def a_field(kind: pa.DataType) -> pa.Array:
    if pa.types.is_map(kind):
        return pa.array([[("a", k)] for k in range(ROWS)], kind)
    if pa.types.is_nested(kind):
        return pa.array([[k] if pa.types.is_list(kind) else {"a": k, "b": k} for k in range(ROWS)], kind)
    numbers = pa.array([k * 1_000 if k % 3 else None for k in range(ROWS)], pa.int64())
    return numbers.cast(pa.int32()).cast(kind) if kind == pa.date32() else numbers.cast(kind)


@generated(50)
@given(PARQUET)
def test_parquet(draw):
    log = draw["log"]
    try:
        numbers = {name: [None if v is None else int(v) for v in log[name]] for name in NAMES[:4]}
        columns = {name: as_type(values, draw["kinds"][name]) for name, values in numbers.items()}
    except (ValueError, OverflowError, pa.ArrowException):  # spoilt with what is no number
        return
    columns["query"] = a_field(draw["field"])
    if draw["nulls"]:
        column = columns[draw["nulls"]]
        columns[draw["nulls"]] = pa.concat_arrays([pa.nulls(1, column.type), column[1:]])
    content = pa.table({name: columns[name] for name in draw["order"]})
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "clicks.parquet"
        root.mkdir()
        for part in range(draw["parts"]):
            share = ROWS // draw["parts"] + 1
            pq.write_table(content.slice(part * share, share), root / f"part-{part}.parquet")
        made = dataset_or_one_line(lambda: table(Path(folder) / "out", interactions=root, context_fields=("query",)))
        check(made, ROWS, root.name)
        if isinstance(made, Dataset):
            known = made.user_table.column("id").to_pylist()
            order = sorted(range(ROWS), key=lambda k: numbers["time"][k])
            users = [known[user] for user in made.interactions["user"]]
            assert users == [str(numbers["user"][k]) for k in order]
