"""How tables are written in the world: quotes, encodings, headers, packed and many files."""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.readers import delimited, quoting
from em3_jax.data.readers.files import read_ids
from tests.data.own_tables import CONTEXT, ITEMS, LOG, ROWS, USERS, clicks, ids, made, queries, refused, text, texts


def with_query(changes: dict[int, str]) -> dict:
    return LOG | {"query": [changes.get(k, value) for k, value in enumerate(LOG["query"])]}


@pytest.mark.parametrize(
    "changes",
    [{4: '"hat', 20: '"coat'}, {4: '"hat', 20: 'coat"'}, {4: '5" nail'}, {7: '"Weird" Al'}],
    ids=["two that begin", "one that begins, one that ends", "in the middle", "around a part"],
)
def test_a_stray_quote_in_a_tsv_is_part_of_its_value(tmp_path, changes):
    path = clicks(tmp_path, text(with_query(changes), "\t"), "clicks.tsv")
    dataset = made(tmp_path, path, **CONTEXT)
    assert queries(dataset) == with_query(changes)["query"]
    assert dataset.meta["rows"] == {"clicks.tsv": {"read": ROWS, "kept": ROWS, "dropped": {}}}


def test_quotes_around_values_are_none_of_theirs(tmp_path):
    quoted = with_query({4: '"a, ""b"" c"', 5: '"two\nlines"', 6: '""'})
    dataset = made(tmp_path, clicks(tmp_path, text(quoted)), **CONTEXT)
    assert queries(dataset)[4:7] == ['a, "b" c', "two\nlines", None]
    assert dataset.meta["rows"]["clicks.csv"]["read"] == ROWS


def test_line_ends_in_quotes_stay_whole_where_the_parser_cuts(tmp_path, monkeypatch):
    monkeypatch.setattr(delimited, "_BLOCK", 128)
    for before in range(128):
        values = ["." * before, "two\r\nlines", "\r\n" * 40, "\r\r\n", *["plain"] * 20]
        lines = [f'{k},"{value}"\r\n' for k, value in enumerate(values)]
        path = clicks(tmp_path, "item,query\r\n" + "".join(lines))
        read = delimited.TextFile(path, delimited.AS_USUAL).read(["query"], {"query"})
        assert read.column("query").to_pylist() == [value or None for value in values]


def test_quotes_of_a_tsv_that_a_table_program_wrote(tmp_path):
    quoted = with_query({k: f'"{value}"' for k, value in enumerate(LOG["query"])} | {4: '"a\tb"', 5: '"x\ny"'})
    dataset = made(tmp_path, clicks(tmp_path, text(quoted, "\t"), "clicks.tsv"), **CONTEXT)
    assert queries(dataset)[:6] == ["hat", "red shoes", "coat", "hat", "a\tb", "x\ny"]


def test_a_csv_whose_quotes_can_be_read_two_ways_is_refused(tmp_path):
    path = clicks(tmp_path, text(with_query({4: '"hat', 20: 'coat"'})))
    assert "line 6: a value in quotes runs over several lines" in refused(tmp_path, path, **CONTEXT)
    assert queries(made(tmp_path, path, quoting="off", **CONTEXT))[4] == '"hat'


def test_a_stray_quote_beside_true_ones_is_named(tmp_path):
    path = clicks(tmp_path, text(with_query({3: '"a, b"', 20: '"coat" long'})))
    message = refused(tmp_path, path, **CONTEXT)
    assert "line 22: a stray double quote" in message and "--quoting off" in message


def test_a_stray_quote_in_a_csv_without_quotes_is_read_as_it_stands(tmp_path):
    path = clicks(tmp_path, text(with_query({4: '"hat', 9: '5" nail'})))
    dataset = made(tmp_path, path, **CONTEXT)
    assert queries(dataset)[4] == '"hat' and queries(dataset)[9] == '5" nail'
    assert any("part of the values" in note for note in dataset.meta["notes"])


def test_items_behind_a_stray_quote_are_there(tmp_path):
    items = {"item": range(ITEMS), "title": ["a", '"b', "c", "d", '"e', "f"]}
    path = clicks(tmp_path, text(items, "\t"), "items.tsv")
    dataset = made(tmp_path, clicks(tmp_path, text(LOG)), items=path, item_text=("title",))
    assert dataset.item_table.column("title").to_pylist() == items["title"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_are_certain(tmp_path, encoding):
    path = clicks(tmp_path, text(with_query({3: "Café Müller"})).encode(encoding))
    assert queries(made(tmp_path, path, **CONTEXT))[3] == "Café Müller"


def test_another_encoding_is_named_and_can_be_given(tmp_path):
    path = clicks(tmp_path, text(with_query({3: "Café"})).encode("latin-1"))
    assert "clicks.csv line 5: not UTF-8 (byte 0xe9); say what it is with --encoding" in refused(
        tmp_path, path, **CONTEXT
    )
    assert "no such encoding" in refused(tmp_path, path, encoding="latin-0815")
    assert queries(made(tmp_path, path, encoding="latin-1", **CONTEXT))[3] == "Café"


def test_delimiters(tmp_path):
    path = clicks(tmp_path, text(LOG, ";"))
    assert "pass --delimiter ';'" in refused(tmp_path, path)
    for bad in ("\n", '"', "é"):
        assert "--delimiter" in refused(tmp_path, path, delimiter=bad)
    expected = [str(user) for user in LOG["user"]]
    assert ids(made(tmp_path, path, delimiter=";"), "user") == expected
    other = clicks(tmp_path, text(LOG, "::"), "clicks.dat")
    assert "unknown kind of file" in refused(tmp_path / "b", other)
    assert ids(made(tmp_path / "b", other, delimiter="::"), "user") == expected
    third = clicks(tmp_path, text(LOG, "\t"), "clicks.log")
    assert ids(made(tmp_path / "c", third, delimiter="tab"), "user") == expected


def test_a_file_without_a_header(tmp_path):
    path = clicks(tmp_path, text(LOG, header=False))
    message = refused(tmp_path, path)
    assert "its first line is '0,0,1,1600000000,hat', which is no header" in message and "--column-names" in message
    assert "--no-header" in refused(tmp_path, path, header=False)
    assert "has 5 cells, but 2 columns are named" in refused(tmp_path, path, column_names=("user", "item"))
    dataset = made(tmp_path, path, column_names=tuple(LOG), **CONTEXT)
    assert dataset.meta["rows"]["clicks.csv"]["read"] == ROWS and queries(dataset) == LOG["query"]
    headed = clicks(tmp_path, text({f"old {name}": values for name, values in LOG.items()}), "b.csv")
    assert queries(made(tmp_path / "b", headed, column_names=tuple(LOG), header=True, **CONTEXT)) == LOG["query"]


def test_blanks_after_the_commas_and_around_names(tmp_path):
    log = {name: [f" {value}" if k else value for value in values] for k, (name, values) in enumerate(LOG.items())}
    path = clicks(tmp_path, text({f" {name}" if k else name: values for k, (name, values) in enumerate(log.items())}))
    dataset = made(tmp_path, path, **CONTEXT)
    assert queries(dataset) == LOG["query"] and ids(dataset, "item") == [str(item) for item in LOG["item"]]


def test_columns_without_a_name(tmp_path):
    lines = text(LOG).splitlines()
    dataset = made(tmp_path, clicks(tmp_path, "\n".join(line + ",,," for line in lines)), **CONTEXT)
    assert queries(dataset) == LOG["query"] and not dataset.meta["notes"]
    lines = [line + (",,x" if k == 7 else ",,") for k, line in enumerate(lines)]
    dataset = made(tmp_path / "b", clicks(tmp_path, "\n".join(lines)))
    assert dataset.meta["notes"] == ["clicks.csv: column number 7 has no name in the header; it is left out"]


def test_the_line_is_right_behind_empty_lines_and_values_of_two_lines(tmp_path):
    lines = text(with_query({2: '"two\nlines"'})).splitlines()
    bad = clicks(tmp_path, "\n".join([*lines[:2], "", "", *lines[2:], "1,2,5,3,x"]) + "\n")
    assert f"line {len(lines) + 3}: label 'label' is 5" in refused(tmp_path, bad)
    short = clicks(tmp_path, "\n".join([*lines[:2], "", *lines[2:], "1,2"]) + "\n")
    assert f"line {len(lines) + 2}: Expected 5 columns, got 2" in refused(tmp_path, short)


def part(first: int, last: int) -> dict:
    return {name: values[first:last] for name, values in LOG.items()}


def test_several_files_folders_and_patterns(tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    one, two = clicks(root, text(part(0, 15)), "1.csv"), clicks(root, text(part(15, ROWS)), "2.csv")
    for k, given in enumerate((root, root / "*.csv", [one, str(two)], f"{one}, {two}")):
        dataset = made(tmp_path / str(k), given, **CONTEXT)
        assert queries(dataset) == LOG["query"]
        assert dataset.meta["rows"] == {root.name if k == 0 else "*.csv" if k == 1 else "1.csv": {
            "read": ROWS, "kept": ROWS, "dropped": {},
        }}  # fmt: skip
    clicks(root, text(part(15, ROWS)) + "1,1,9,1,x\n", "2.csv")
    assert f"2.csv line {ROWS - 15 + 2}: label 'label' is 9" in refused(tmp_path, root)
    clicks(root, text({"user": [1]}), "2.csv")
    assert "2.csv: no column 'item'" in refused(tmp_path, root)
    assert "no file has such a name" in refused(tmp_path, root / "*.tsv")
    (root / "readme.md").write_text("x")
    assert "a folder of .csv, .md files" in refused(tmp_path, root)


def test_a_folder_of_spark(tmp_path):
    root = tmp_path / "clicks.parquet"
    for day, rows in (("1", part(0, 15)), ("2", part(15, ROWS)), ("__HIVE_DEFAULT_PARTITION__", part(0, 2))):
        folder = root / f"day={day}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table(rows), folder / f"part-0000{len(rows['user'])}.snappy.parquet")
        (folder / ".part-00000.crc").write_bytes(b"x")
    (root / "_SUCCESS").touch()
    dataset = made(tmp_path, root, context_fields=("day",))
    assert dataset.meta["vocabularies"]["context"]["day"] == ["1", "2"]
    assert dataset.meta["rows"] == {"clicks.parquet": {"read": ROWS + 2, "kept": ROWS + 2, "dropped": {}}}


@pytest.mark.parametrize("suffix,pack", [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress),
                                         ("zst", lambda data: pa.Codec("zstd").compress(data, asbytes=True))])  # fmt: skip
def test_packed_text(tmp_path, suffix, pack):
    path = clicks(tmp_path, pack(text(LOG).encode()), f"clicks.csv.{suffix}")
    dataset = made(tmp_path, path, **CONTEXT)
    assert queries(dataset) == LOG["query"] and dataset.meta["name"] == "clicks"
    clicks(tmp_path, b"no such thing at all", f"clicks.csv.{suffix}")
    assert "cannot be read" in refused(tmp_path / "b", path)


def test_rows_that_are_dropped_are_counted_once_and_by_reason(tmp_path):
    log = LOG | {"label": [k // 3 % 2 for k in range(ROWS)], "item": [k % 7 % ITEMS for k in range(ROWS)]}
    items, users = text({"item": range(1, ITEMS)}), text({"user": range(1, USERS)})
    paths = {"items": clicks(tmp_path, items, "items.csv"), "users": clicks(tmp_path, users, "users.csv")}
    dataset = made(tmp_path, clicks(tmp_path, text(log)), **paths, drop_unknown=True)
    no_item = log["item"].count(0)
    no_user = sum(u == 0 and i != 0 for u, i in zip(log["user"], log["item"], strict=True))
    account = dataset.meta["rows"]["clicks.csv"]
    assert account["dropped"] == {"their item is not in items.csv": no_item, "their user is not in users.csv": no_user}
    assert account["read"] == ROWS == account["kept"] + no_item + no_user and no_user > 0


def test_names_that_differ_in_punctuation_alone(tmp_path):
    log = clicks(tmp_path, text(LOG | {"ad slot": LOG["user"], "ad-slot": LOG["item"]}))
    items = {"item": range(ITEMS), "a b": "uvwxyz", "a-b": "zyxwvu", "a_b": "aaaaaa"}
    items = clicks(tmp_path, text(items), "items.csv")
    options = {"items": items, "item_fields": ("a b", "a-b", "a_b"), "context_fields": ("ad slot", "ad-slot")}
    options |= {"event_fields": ("ad-slot", "ad slot")}
    dataset = made(tmp_path, log, **options)
    names = {group: [field.name for field in fields] for group, fields in dataset.fields.groups()}
    assert names["item"] == ["item", "a_x20_b", "a_x2d_b", "a_b"]
    assert names["context"] == ["ad_x20_slot", "ad_x2d_slot"] == names["event"][::-1]
    words = dataset.meta["vocabularies"]["context"]["ad_x2d_slot"]
    assert [words[k - 2] for k in dataset.interactions["context_ad_x2d_slot"]] == texts(LOG["item"])
    assert any("column 'ad-slot' is the field ad_x2d_slot" in note for note in dataset.meta["notes"])
    assert dataset.item_table.column("a_x2d_b").to_pylist() == [7, 6, 5, 4, 3, 2]


def test_a_continuous_number_is_told(tmp_path):
    path = clicks(tmp_path, text(LOG | {"query": [f"{k * 0.37:.2f}" for k in range(ROWS)]}))
    notes = made(tmp_path, path, **CONTEXT).meta["notes"]
    assert len(notes) == 1 and f"column 'query' holds {ROWS} different numbers in {ROWS} values" in notes[0]
    assert not made(tmp_path / "b", clicks(tmp_path, text(LOG)), **CONTEXT).meta["notes"]


def test_options_out_of_range(tmp_path):
    path = clicks(tmp_path, text(LOG))
    assert "--separator" in refused(tmp_path, path, separator="")
    assert "--max-values 0" in refused(tmp_path, path, max_values=0)
    assert "--quoting 'maybe': choose one of auto, on, off" in refused(tmp_path, path, quoting="maybe")
    for rule in ("rating>=4.5.1", "rating>=.", "rating>=-", "rating>=٤"):
        assert f"label rule '{rule}': write" in refused(tmp_path, path, label=rule)


@pytest.mark.parametrize("name,save,message", [
    ("z.npz", lambda path: np.savez(path, a=np.ones((ITEMS, 2)), b=np.ones(1)), "an archive (.npz) of a, b"),
    ("cut.npz", lambda path: path.write_bytes(b"PK\x03\x04 and no more"), "not a readable .npy file"),
    ("words.npy", lambda path: np.save(path, np.array(["a"] * ITEMS)), "dtype is <U1"),
    ("record.npy", lambda path: np.save(path, np.zeros(ITEMS, [("a", float)])), "dtype is [('a'"),
    ("one.npy", lambda path: np.save(path, np.float32(1)), "shape is ()"),
])  # fmt: skip
def test_features_that_are_no_array_of_numbers(tmp_path, name, save, message):
    save(tmp_path / name)
    items = clicks(tmp_path, text({"item": range(ITEMS)}), "items.csv")
    features = {"image": str(tmp_path / name)}
    assert message in refused(tmp_path, clicks(tmp_path, text(LOG)), items=items, features=features)


def test_layouts_of_pieces(monkeypatch):
    """Quotes, line ends and rows are found where they cross the pieces in which a large text is looked at."""
    body = ('1,"a\r\nb",x\r\n\r\n2,"""q""",y\r3,,z\n' * 3).encode()
    data = np.frombuffer(body, np.uint8)
    whole = quoting.examine("f", data, ord(","), 3, "auto", False, 1)
    assert whole == (True, True, 9, "", True) and quoting.line_of(data, ",", whole, 3) == 5
    for size in (1, 2, 7, 40):
        monkeypatch.setattr(quoting, "_CHUNK", size)
        monkeypatch.setattr(quoting, "PIECE", size)
        assert quoting.examine("f", data, ord(","), 3, "auto", False, 1) == whole
        found = [bytes(piece.data) for piece in quoting.pieces(data, ord(","), True)]
        assert b"".join(found) == body and not any(one.count(b'"') % 2 or one[:1] == b"\n" for one in found)


def test_ids_of_rows_are_in_their_canonical_form(tmp_path):
    (tmp_path / "ids.txt").write_text("5.0\n007\nTrue\n", encoding="utf-8-sig")
    assert read_ids(tmp_path / "ids.txt") == ["5", "007", "true"]
    np.save(tmp_path / "ids.npy", np.array([5.0, 1e20, 2.5]))
    assert read_ids(tmp_path / "ids.npy") == ["5", "100000000000000000000", "2.5"]
    (tmp_path / "ids.txt").write_text("5\n\n7\n")
    with pytest.raises(UserError, match=r"ids.txt line 2: the id is empty"):
        read_ids(tmp_path / "ids.txt")
    np.save(tmp_path / "ids.npy", np.array([5.0, np.nan]))
    with pytest.raises(UserError, match=r"ids.npy row 1 \(counted from 0\): the id is empty"):
        read_ids(tmp_path / "ids.npy")
