"""`em3 prepare`: what it prints, how it fails, and that it leaves nothing half done."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from em3_jax import cli
from em3_jax.data import prepare
from em3_jax.data.format import open_dataset
from tests.conftest import ROOT

SMALL = ["--interactions", "600", "--users", "30", "--items", "40"]


def run(*arguments) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: prepare.main([str(argument) for argument in arguments]))
    return end.value.code


def command(*arguments, before: str = "") -> subprocess.Popen:
    """The command in a process of its own; `before` is code that runs first."""
    code = f"import sys\n{before}\nfrom em3_jax.__main__ import call\ncall('prepare', sys.argv[1:])"
    process = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(process, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_report_is_printed(tmp_path, capsys):
    assert run("synthetic", "--out", tmp_path / "out", *SMALL, "--seed", "3") == 0
    printed = capsys.readouterr().out
    dataset = open_dataset(tmp_path / "out")
    assert dataset.meta["arguments"]["seed"] == 3
    assert "600 interactions, 30 users, 40 items" in printed
    for split in ("train", "valid", "test"):
        facts = dataset.meta["summary"]["splits"][split]
        line = next(line for line in printed.splitlines() if line.strip().startswith(f"{split} "))
        for value in (f"{facts['rows']:,}", f"{facts['click_rate']:.1%}", f"{dataset.meta['bayes_auc'][split]:.4f}"):
            assert value in line.split()
    assert (
        f"{dataset.meta['summary']['items_without']['features image']:.1%} of the items have no features image"
        in printed
    )


def test_what_is_not_defined_is_left_out_of_a_report(tmp_path, capsys):
    options = *SMALL, "--cold-share", "0", "--arrivals", "0.5"
    assert run("synthetic", "--out", tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    assert "600 interactions" in printed and "cold items" not in printed


def test_texts_that_items_lack_are_told_by_their_names(tmp_path, capsys):
    write_tables(tmp_path)
    files = "--interactions", tmp_path / "clicks.csv", "--items", tmp_path / "items.csv"
    options = "--columns", "user=uid", "--item-text", "brand,tags"
    assert run("table", *files, *options, "--out", tmp_path / "out") == 0
    assert "  25.0% of the items have no brand\n" in capsys.readouterr().out


def test_help_names_no_default_that_is_empty(capsys):
    assert run("table", "--help") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "(default )" not in printed and "(default 0.8,0.1,0.1)" in printed


def test_checking_a_dataset_again(tmp_path, capsys):
    run("synthetic", "--out", tmp_path / "out", *SMALL)
    capsys.readouterr()
    assert run("check", "--data", tmp_path / "out") == 0
    assert "600 interactions" in capsys.readouterr().out
    labels = np.load(tmp_path / "out/interactions/label.npy")
    labels[5] = 1 - labels[5]
    np.save(tmp_path / "out/interactions/label.npy", labels)
    assert run("check", "--data", tmp_path / "out") == 2
    assert "not those that were prepared" in capsys.readouterr().err
    labels[5] = 9
    np.save(tmp_path / "out/interactions/label.npy", labels)
    assert run("check", "--data", tmp_path / "out") == 2
    assert "interactions/label.npy row 5: value 9" in capsys.readouterr().err


def write_tables(folder: Path) -> None:
    rows = "".join(f"{k % 3},{k % 4},{k % 2},{k}\n" for k in range(40))
    (folder / "clicks.csv").write_text("uid,item,label,time\n" + rows)
    (folder / "items.csv").write_text("item,brand,tags\n0,x,a|b\n1,y,\n2,x,c\n3,,a\n")


def test_tables_by_options_and_by_a_mapping_file(tmp_path, capsys):
    write_tables(tmp_path)
    files = "--interactions", tmp_path / "clicks.csv", "--items", tmp_path / "items.csv"
    options = "--columns", "user=uid", "--item-fields", "brand, tags:multi"
    assert run("table", *files, *options, "--out", tmp_path / "by options") == 0
    mapping = {"columns": {"user": "uid"}, "item-fields": "brand,tags:multi", "split": "1,0,0"}
    (tmp_path / "mapping.json").write_text(json.dumps(mapping))
    (tmp_path / "mapping.toml").write_text(
        f'interactions = "{tmp_path}/clicks.csv"\nitems = "{tmp_path}/items.csv"\ncolumns = {{user = "uid"}}\n'
        'item_fields = ["brand", "tags:multi"]\n'
    )
    by_json = "--mapping", tmp_path / "mapping.json", "--split", "0.8,0.1,0.1"  # what is given here wins
    assert run("table", *files, *by_json, "--out", tmp_path / "by json") == 0
    assert run("table", "--mapping", tmp_path / "mapping.toml", "--out", tmp_path / "by toml") == 0
    hashes = {open_dataset(tmp_path / f"by {kind}").meta["data_hash"] for kind in ("options", "json", "toml")}
    assert len(hashes) == 1
    assert "item    item (4), brand (2), tags (3)" in capsys.readouterr().out


def test_a_mapping_in_the_types_of_its_language(tmp_path, capsys):
    write_tables(tmp_path)
    first, *rows = (tmp_path / "clicks.csv").read_text().splitlines()
    for name, part in (("a", rows[:9]), ("b", rows[9:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([first, *part]) + "\n")
    (tmp_path / "natural.toml").write_text(
        f'interactions = ["{tmp_path}/a.csv", "{tmp_path}/b.csv"]\nitems = "{tmp_path}/items.csv"\n'
        'split = [0.8, 0.1, 0.1]\nitem_fields = ["brand"]\nmax_values = 3.0\noverwrite = true\nheader = true\n'
        '[columns]\nuser = "uid"\n'
    )
    assert run("table", "--mapping", tmp_path / "natural.toml", "--out", tmp_path / "out") == 0
    assert "rows   40 in a.csv, 40 of them interactions" in capsys.readouterr().out
    plain = "--interactions", tmp_path / "clicks.csv", "--items", tmp_path / "items.csv", "--columns", "user=uid"
    assert run("table", *plain, "--item-fields", "brand", "--out", tmp_path / "plain") == 0
    one, other = (open_dataset(tmp_path / name).meta for name in ("out", "plain"))
    assert one["data_hash"] == other["data_hash"]


@pytest.mark.parametrize(
    "line,hint",
    [
        ("label = 1", "write a text"),
        ("split = true", "write a text"),
        ("overwrite = 1", "write true or false"),
        ('max_values = "8"', "write a whole number"),
        ("max_values = 2.5", "write a whole number"),
        ("max_values = 1" + "0" * 400, "write a whole number"),
        ("max_values = nan", "write a whole number"),
        ("columns = ['user']", "write a table"),
        ('columns = "user"', "write name=value"),
        ("columns = { user = 1 }", "write a table of texts"),
        ("item_fields = [1, 2]", "write a list of texts"),
        ("item_fields = { a = 'b' }", "write a list of texts"),
        ("interactions = 3", "write a list of texts"),
        ("interactions = []", "names no file"),
        ("delimiter = 2026-01-01", "write a text"),
    ],
)
def test_a_mapping_of_wrong_types_names_the_key(tmp_path, capsys, line, hint):
    write_tables(tmp_path)
    path, start = tmp_path / "m.toml", "" if line.startswith("inter") else f'interactions = "{tmp_path}/clicks.csv"\n'
    path.write_text(start + line + "\n")
    assert run("table", "--mapping", path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and hint in error and (line.split(" ")[0] in error or "file" in hint)


ERRORS = {
    "exists": (("synthetic", "--out", "{0}/taken"), r"taken: exists already; choose another --out or pass --overwrite"),
    "source": (("movielens", "--source", "{0}/no", "--out", "{0}/out"), "no: no such folder"),
    "missing option": (("table", "--out", "{0}/out"), "--interactions is missing; see"),
    "no dataset": (("check", "--data", "{0}/taken"), "dataset.json: file missing"),
    "mapping file": (("table", "--out", "{0}/out", "--mapping", "{0}/no.toml"), "no.toml: file missing"),
    "mapping syntax": (
        ("table", "--out", "{0}/out", "--mapping", "{0}/bad.toml"),
        "bad.toml: not a readable TOML file",
    ),
    "mapping key": (
        ("table", "--out", "{0}/out", "--mapping", "{0}/key.json"),
        "no option 'item_feilds'; did you mean",
    ),
    "mapping of a list": (("table", "--out", "{0}/out", "--mapping", "{0}/list.json"), "list.json: holds no options"),
    "under a file": (("synthetic", "--out", "{0}/bad.toml/x"), "bad.toml"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_code_2(tmp_path, capsys, case):
    arguments, message = ERRORS[case]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (tmp_path / "bad.toml").write_text("columns = {")
    (tmp_path / "key.json").write_text('{"item_feilds": ["brand"]}')
    (tmp_path / "list.json").write_text("[]")
    before = sorted(tmp_path.iterdir())
    assert run(*(argument.format(tmp_path) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_unknown_options_are_refused(capsys):
    assert run("synthetic", "--out", "x", "--colour", "red") == 2
    assert "--colour" in capsys.readouterr().err


def test_every_reader_has_help(capsys):
    for reader in prepare.READERS:
        assert run(reader, "--help") == 0
        assert "--" in capsys.readouterr().out


def test_a_full_disk_is_an_error_and_the_old_dataset_stays(tmp_path):
    run("synthetic", "--out", tmp_path / "out", *SMALL)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    process = command("synthetic", "--out", tmp_path / "out", "--overwrite", before=limit)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 2, error
    assert error.startswith("error: ") and error.count("\n") == 1 and "nothing was written" in error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert open_dataset(tmp_path / "out").meta["counts"]["interactions"] == 600


def test_a_terminated_command_leaves_nothing(tmp_path):
    process = command("synthetic", "--out", tmp_path / "out", "--interactions", "3_000_000")
    while process.poll() is None and not any(tmp_path.iterdir()):
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 143 and not list(tmp_path.iterdir())
