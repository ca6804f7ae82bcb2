"""Tables that are no files here: in a bucket (fsspec's memory, which needs no network), and frames of Python."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv

from em3_jax.core import addresses
from em3_jax.data import prepare
from em3_jax.data.readers.table import table
from tests.conftest import user_error
from tests.data.test_table_streamed import ROWS, assert_same, log


@pytest.fixture
def bucket(tmp_path):
    """(a folder, the same files at memory://shop)."""
    folder, system = tmp_path / "shop", fsspec.filesystem("memory")
    for k in range(3):
        (folder / "log" / f"day={k}").mkdir(parents=True)
        pq.write_table(log().slice(k * 250, 250), folder / "log" / f"day={k}" / "part.parquet")
    (folder / "log" / "_SUCCESS").touch()
    items = pa.table(
        {"item": [f"i{k}" if k % 5 else str(k) for k in range(60)], "brand": [f"b{k % 7}" for k in range(60)]}
    )
    with pa.output_stream(folder / "items.csv.gz", compression="gzip") as file:
        write_csv(items, file)
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/shop/{path.relative_to(folder)}", path.read_bytes())
    yield folder, "memory://shop"
    system.rm("/shop", recursive=True)


@pytest.mark.parametrize("engine", ["memory", "duckdb"])
def test_the_same_bytes_from_a_bucket(tmp_path, bucket, engine, capsys):
    """A folder of hive partitions, a pattern, and files, on the command line."""
    given = {
        "folder": "{}/log",
        "pattern": "{}/log/day=*/*.parquet",
        "file": "{0}/log/day=0/part.parquet,{0}/log/day=2/part.parquet",
    }
    for name, paths in given.items():
        made = []
        for where in bucket:
            out = tmp_path / f"{name}-{len(made)}"
            options = f"--engine {engine} --interactions {paths.format(where)} --items {where}/items.csv.gz --item-fields brand"
            options += " --context-fields day" * (name == "folder")
            prepare.main(["table", *options.split(), "--out", str(out)])
            made.append(prepare.open_dataset(out))
        assert_same(*made)
    assert "fetched 3 files" in capsys.readouterr().out


def test_errors_about_a_bucket_name_the_address(tmp_path, bucket, monkeypatch):
    def said(address, **options):
        message = user_error(lambda: table(tmp_path / "x", interactions=address, **options))
        assert not list(tmp_path.glob("*x*"))
        return message

    assert (
        said("memory://nobody/log.parquet")
        == "memory://nobody/log.parquet: there is no such bucket, folder or file; check the address"
    )
    assert said("memory://shop/log/*.csv") == "memory://shop/log/*.csv: no file has such a name; check the address"
    assert "no such kind of address is known" in said("nowhere://shop/log.parquet")
    signed = said("https://host/log.csv?X-Signature=secret")
    assert signed.startswith("https://host/log.csv?...: an address with a query") and "secret" not in signed
    assert said(f"file://{tmp_path}/none.csv").startswith(f"file://{tmp_path}/none.csv: there is no such")
    assert addresses.listed(addresses.written_out(Path(f"file://{bucket[0]}/items.csv.gz")))[0].size > 0
    fsspec.filesystem("memory").pipe_file("/shop/odd.csv", b"user,item,label,time\n1,2,0,3\n1,2,7,3\n")
    assert said("memory://shop/odd.csv").startswith("memory://shop/odd.csv line 3: label")
    assert said("memory://shop/odd.csv", engine="duckdb").startswith("memory://shop/odd.csv line 3: label")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert said("s3://shop/log.parquet") == "s3://shop/log.parquet: needs s3fs; pip install 'em3_jax[buckets]'"

    class NoCredentialsError(Exception):
        """As botocore has it."""

    for error in (NoCredentialsError("Unable to locate credentials"), PermissionError("Forbidden")):
        monkeypatch.setattr(addresses, "_opened", lambda address, error=error: (_ for _ in ()).throw(error))
        assert "may not be read" in (message := said("s3://shop/log.parquet")) and "AWS_PROFILE" in message
    assert "addresses are not read or written" in user_error(
        lambda: prepare.main(["table", "--interactions", "memory://shop/log", "--out", "s3://shop/x"])
    )


def frames():
    """Name -> what makes a frame of an Arrow table."""

    def of_pandas(read):
        return pytest.importorskip("pandas", minversion="2.2").DataFrame(read.to_pydict())

    def of_polars(read):
        return pytest.importorskip("polars").from_arrow(read)

    def some_rows_at_a_time(read):
        return pa.RecordBatchReader.from_batches(read.schema, read.to_batches(100))

    return {"arrow": lambda read: read, "reader": some_rows_at_a_time, "pandas": of_pandas, "polars": of_polars}


@pytest.mark.parametrize("engine", ["memory", "duckdb"])
@pytest.mark.parametrize("kind", frames())
def test_the_same_bytes_from_frames(tmp_path, kind, engine):
    read = log().drop_columns(["slot", "seconds", "bought"])
    make = frames()[kind]
    items = pa.table({"item": pa.array([f"i{k}" if k % 5 else str(k) for k in range(60)]), "price": np.arange(60.0)})
    pq.write_table(read, tmp_path / "interactions.parquet")
    pq.write_table(items, tmp_path / "items.parquet")
    of_files = {"interactions": tmp_path / "interactions.parquet", "items": tmp_path / "items.parquet"}
    options = {"engine": engine, "item_numbers": ("price",), "context_fields": ("device",), "overwrite": True}
    made = [table(tmp_path / name, **given, **options) for name, given in (
        ("files", of_files), ("frames", {"interactions": make(read), "items": make(items)})
    )]  # fmt: skip
    if kind != "arrow":  # rows are grouped otherwise in the file that is written, and so it hashes otherwise
        for one in made:
            text = (one.root / "dataset.json").read_text()
            (one.root / "dataset.json").write_text(text.replace(one.meta["source_hash"], ""))
    assert_same(*made)


def test_errors_about_a_frame_name_it(tmp_path):
    read = log(label=pa.array([0, 1, 2] + [0] * (ROWS - 3)))
    said = user_error(lambda: table(tmp_path / "x", interactions=read))
    assert said.startswith("the frame of interactions row 2") and "label 'label' is 2" in said
    assert not list(tmp_path.iterdir()) or [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_what_is_neither_paths_nor_a_frame_is_told(tmp_path):
    class Broken:
        def __arrow_c_stream__(self, requested_schema=None):
            raise ValueError("not now")

    assert user_error(lambda: table(tmp_path / "x", interactions={"user": [1]})).startswith("a dict: is neither paths")
    assert "the frame of interactions" in user_error(lambda: table(tmp_path / "x", interactions=Broken()))
