"""paths: every path that a command takes is local, its home expanded, or refused before anything is made."""

import importlib
import sys
from pathlib import Path

import pytest

from em3_jax import cli
from em3_jax.__main__ import COMMANDS
from em3_jax.core import paths
from em3_jax.data import prepare
from tests.conftest import user_error

BUCKET = "gs://bucket/x"
OPTIONS = {
    "train": ["--config=configs/em3_synthetic.py --workdir={}"],
    "eval": ["--workdir={}", "--workdir=run --data={}"],
    "importance": ["--workdir={}", "--workdir=run --data={}", "--workdir=run --out={}"],
    "missing": ["--workdir={} --modality=x --out=o", "--workdir=run --modality=x --out={}"],
    "coldstart": [
        "--config em3_synthetic --data={} --out=o",
        "--config em3_synthetic --data=d --out={}",
        "--workdir a={} --data=d --out=o",
    ],
    "features": ["--data={}", "image --encoder=efficientnet-lite0 --data={}"],
    "prepare": [
        "synthetic --out={}",
        "movielens --source={} --out=data",
        "mmrec --source={} --out=data",
        "microlens --source={} --out=data",
        "mind --source={} --out=data",
        "mind --train={} --valid=b --out=data",
        "check --data={}",
        "table --interactions=a.csv --out={}",
        "table --interactions=a.csv --items=b.csv --image-root={} --out=data",
        "table --interactions=a.csv --items=b.csv --features=v={} --out=data",
        "table --mapping={} --out=data",
    ],
    "extract": [
        "--data={} --modality=text --encoder=e",
        "--data=data --modality=text --encoder={}",
        "--data=data --modality=image --encoder=e --images={}",
        "--data=data --modality=v --array={}",
        "--data=data --modality=v --array=a.npy --ids={}",
        "--data=data --modality=v --array=a.npy --mask={}",
    ],
    "raw": ["--data={} --text=title=8", "--data=data --text=title=8 --tokenizer-of={}"],
    "vectors": ["--workdir={} --name=v", "--workdir=run --name=v --data={}"],
    "merge": ["--workdir={} --out=merged", "--workdir=run --out={}"],
    "compare": ["{}", "b={} a=run", "run --json={}"],
    "curves": ["{}", "run --out={}"],
    "plot": ["{}", "name={}", "run --out={}"],
    "export": ["--workdir={} --out=store", "--workdir=run --out={}", "--workdir=run --out=store --data={}"],
    "serve": ["--store={}"],
    "analyze": [
        "--workdir={} --baseline=b --out=o",
        "--workdir=a --baseline={} --out=o",
        "--workdir=a --baseline=b --out={}",
        "--workdir=a --baseline=b --out=o --data={}",
        "--workdir=a --baseline=b --out=o --images={}",
    ],
    "reproduce": ["--table=3 --data=data --out={}", "--table=3 --data={} --out=reports"],
}


@pytest.mark.parametrize("address", [BUCKET, "s3://bucket/x", "file:///x", "hf+x://y"])
def test_an_address_is_refused_and_a_way_out_named(address):
    message = user_error(paths.local, address)
    assert message.startswith(f"{address}: ") and "mount the bucket" in message and "give the local folder" in message
    assert user_error(paths.local, Path(address)).count("addresses are not read or written") == 1


def test_homes_are_expanded_and_other_paths_are_themselves(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.local("~/runs/x") == Path("/home/somebody/runs/x") and paths.local("~") == Path("/home/somebody")
    assert paths.local("~root") == Path("~root").expanduser() != Path("~root")
    assert "no such user" in user_error(paths.local, "~no_such_user_here/x")
    for plain in ("data/x", "/data/x", "a~b", "./~", "a:b", "C:x", "org/name", "."):
        assert paths.local(plain) == Path(plain)


@pytest.mark.parametrize(
    ("command", "options"), [(command, options) for command, lines in OPTIONS.items() for options in lines]
)
def test_every_command_refuses_a_bucket_before_it_makes_anything(command, options, tmp_path, monkeypatch):
    module = importlib.import_module(COMMANDS[command].module)
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(root / "configs")
    monkeypatch.setattr(sys, "argv", [command, *options.format(BUCKET).split()])
    before = sorted(tmp_path.rglob("*"))
    message = user_error(module.main)
    assert "gs:// addresses are not read or written" in message and len(message.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_paths_in_a_mapping_file_and_in_dictionaries(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "mapping.toml").write_text(
        'interactions = "~/a.csv"\nfeatures = {v = "~/v.npy"}\nlabel = "~rating>=4"\n'
    )
    read = prepare.read_mapping(tmp_path / "mapping.toml", prepare.READERS["table"])
    home = Path("/home/somebody")
    assert read == {"interactions": home / "a.csv", "features": {"v": home / "v.npy"}, "label": "~rating>=4"}
    given = {"interactions": "~/a.csv", "image_root": "~/images", "label": "~x"}
    assert cli.with_local_paths(prepare.READERS["table"], given) == {
        "interactions": home / "a.csv", "image_root": home / "images", "label": "~x",
    }  # fmt: skip
