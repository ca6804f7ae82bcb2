"""What the README asks a stranger to type: its planted part runs, and the rest is stood in for."""

import os
import re
import subprocess
import sys

import pytest

from em3_jax.__main__ import COMMANDS
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.table import table
from tests import newcomer, page_commands
from tests.conftest import ROOT

pytestmark = [pytest.mark.quickly_compiled, pytest.mark.seconds(25)]

SHORT = "--config.train.epochs=0.2 --config.data.history_length=8 --config.eval.batch_size=4000"


def test_make_demo_ends_with_a_table(tmp_path):
    installed = f"{sys.prefix}/installed"  # these packages are taken as they are
    given = (f"VENV={sys.prefix}", f"DEMO={tmp_path}", f"OPTIONS={SHORT}")
    line = ["make", "demo", "-o", installed, *given]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.rsplit("em3 compare", 1)[1]
    assert re.search(r"ID-only.*EM3", said, re.DOTALL) and "cold" in said, said


def test_each_replacement_has_a_command_and_each_command_a_door():
    pages = [page_commands.of_page(ROOT / name) for name in newcomer.PAGES]
    heads = [page_commands.of_head(example) for example in newcomer.EXAMPLES]
    commands = [command for page in (*pages, *heads) for command in page]
    for pattern in newcomer.SHORTER:
        assert any(re.search(pattern, command) for command in commands), pattern
    named = {command.split()[1] for command in commands if command.startswith("em3 ")}
    assert named <= set(COMMANDS) and len(pages[0]) > 10


def test_what_stands_in_is_of_the_form_that_the_readers_take(tmp_path):
    newcomer.write_stand_ins(tmp_path, None)
    assert movielens(tmp_path / "a", source=tmp_path / "ml-100k").num_items == newcomer.MOVIES
    own = table(
        tmp_path / "b",
        interactions=str(tmp_path / "clicks.csv"),
        items=str(tmp_path / "items.csv"),
        item_text=("title",),
    )
    assert {0, 1} == set(own.interactions["label"].tolist())
