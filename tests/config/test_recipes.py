"""recipes and manual: config files, what the command line changes in them, and what --help says."""

import re
import subprocess
import sys
import time

import pytest
from ml_collections import ConfigDict

from em3_jax.config import manual, parse, recipes
from tests.conftest import ROOT, user_error

SYNTHETIC = "configs/em3_synthetic.py"


def run(*arguments: str, cwd=ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def changed(**changes) -> dict:
    return parse.plain(recipes.read(SYNTHETIC, {name.replace("__", "."): text for name, text in changes.items()}))


def test_settings_are_read_by_their_kind():
    found = changed(
        seed="3", train__epochs="2", train__grow=None, train__deterministic="false", data__features="image[0], text",
        model__backbone_settings__hidden="(8,)", model__cic__id_fields="", data__root="data/a=b",
        optim__multipliers="(('^a,b', 0.5),)", data__unknown_floor__item="0.25", mesh__by_rows="",
    )  # fmt: skip
    assert found["seed"] == 3 and found["train"]["epochs"] == 2.0 and isinstance(found["train"]["epochs"], float)
    assert found["train"]["grow"] is True and found["train"]["deterministic"] is False
    assert found["data"]["features"] == ("image[0]", "text") and found["data"]["root"] == "data/a=b"
    assert found["model"]["backbone_settings"]["hidden"] == (8,) and found["model"]["cic"]["id_fields"] == ()
    assert found["optim"]["multipliers"] == (("^a,b", 0.5),) and found["mesh"]["by_rows"] == ()
    assert found["data"]["unknown_floor"] == {"user": 0.0, "item": 0.25}, "a section of names takes further ones"


def test_a_setting_of_ones_own_is_read_by_the_value_it_replaces():
    assert recipes.parsed("mine", "3", 1.0) == 3.0 and isinstance(recipes.parsed("mine", "3", 1.0), float)
    assert recipes.parsed("mine", "image, text", ("x",)) == ("image", "text")
    assert recipes.parsed("mine", "(16,)", (1, 2)) == (16,) and recipes.parsed("mine", "5", "name") == "5"
    assert recipes.parsed("mine", "-5", 1) == -5 and recipes.parsed("mine", "no", True) is False
    assert "config.mine=x: give a whole number" in user_error(recipes.parsed, "mine", "x", 1)


def test_options_come_with_a_sign_or_a_blank_or_alone():
    given = ["--config.seed=3", "--config.data.root", "a b", "--config.train.grow", "--config.train.epochs=1e-1"]
    assert recipes.options(given) == {"seed": "3", "data.root": "a b", "train.grow": None, "train.epochs": "1e-1"}
    assert "--wrkdir: unknown option" in user_error(recipes.options, ["--wrkdir"])
    assert "config.seed: has no value; give a whole number" in user_error(recipes.read, SYNTHETIC, {"seed": None})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.dropuot", "0.1", "config.model.dropuot: unknown key; known: "),
        ("model.fusoin", "mean", "config.model.fusoin: unknown key; did you mean 'fusion'?"),
        ("modle.fusion", "mean", "config.modle: unknown key; did you mean 'model'?"),
        ("model.fusion", "men", "config.model.fusion='men': give fq_former, masked_fq_former, one_flow, two_flow, mean, "),
        ("seed", "x", "config.seed=x: give a whole number from 0 to 4294967295"),
        ("train.epochs", "nan", "config.train.epochs=nan: give a number above 0"),
        ("train.epochs", "-1", "config.train.epochs=-1.0: give a number above 0"),
        ("train.log_every", "2.5", "config.train.log_every=2.5: give a whole number of 0 or more"),
        ("train.patience", "-1", "config.train.patience=-1: give a whole number of 0 or more; 0: never stop early"),
        ("train.grow", "maybe", "config.train.grow=maybe: give True or False"),
        ("mesh.by_rows", "[a", "config.mesh.by_rows=[a: give values with commas between, each a regular expression"),
        ("optim.multipliers", "^encoders/", "config.optim.multipliers=^encoders/: give values with commas between, each ("),
        ("optim.multipliers", "(('[', 0.1),)", "config.optim.multipliers=(('[', 0.1),): give values with commas"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(name, text, message):
    assert user_error(recipes.read, SYNTHETIC, {name: text}).startswith(message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from configs import bse", "it imports what is not there (cannot import name 'bse' from 'configs'"),
        ("import no_such_module", "it imports what is not there (No module named 'no_such_module'); mend the file"),
        ("def get_config(:", "line 1: invalid syntax; mend the file"),
        ("x = 1", "has no function get_config"),
        ("def get_config():\n    return {}", "get_config gives no ConfigDict"),
        (
            "from configs import base\ndef get_config():\n    c = base.ranking()\n    c.modle.fusion = 1",
            "line 4: 'modle': no such setting; did you mean 'model'?",
        ),
        ("def get_config():\n    return 1 / 0", "line 2: ZeroDivisionError: division by zero; mend the file"),
    ],
)
def test_a_wrong_config_file_is_one_line_without_a_repr(tmp_path, source, message):
    file = tmp_path / "mine.py"
    file.write_text(source)
    found = user_error(recipes.read, str(file), {})
    assert found.startswith(f"--config={file}: ") and message in found
    assert "\\" not in found and "Error(" not in found and "Traceback" not in found


def test_a_config_file_that_is_not_there_or_takes_no_argument(tmp_path):
    assert "--config=configs/em3_movilens.py: no such file; did you mean 'configs/em3_movielens.py'?" in user_error(
        recipes.read, "configs/em3_movilens.py", {}
    )
    (tmp_path / "plain.py").write_text("from configs import base\ndef get_config():\n    return base.ranking()")
    assert "takes no argument" in user_error(recipes.load, str(tmp_path / "plain.py"), "id_only")
    assert isinstance(recipes.load(str(tmp_path / "plain.py"), ""), ConfigDict)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (ROOT / "configs").glob("*.py") if path.name != "base.py")
)
def test_every_variant_that_a_recipe_lists_is_one_and_others_are_refused(name):
    path = str(ROOT / "configs" / name)
    known = recipes.variants(path)
    assert known and all(manual._about(one) for one in known.values())
    for variant in known:
        recipes.load(path, variant)
    message = user_error(recipes.load, path, "no_such_variant")
    assert message.startswith(f"--config={path}: no ") and "no_such_variant" in message


def test_help_lists_all_settings_with_default_comment_and_range_before_jax_is_imported():
    began = time.perf_counter()
    found = run("train.py", "--help")
    assert found.returncode == 0 and found.stderr == "" and time.perf_counter() - began < 60
    for name, value in parse.settings(recipes.load(SYNTHETIC, "").to_dict()):
        assert f"--config.{name}={manual._written(value)}" in found.stdout
    for name in ("em3_movielens", "lemur", "online", "retrieval"):
        assert f"configs/{name}.py" in found.stdout
    program = "import sys; from em3_jax.config import manual; manual.text('', 'configs/lemur.py'); print('jax' in sys.modules)"
    assert run("-c", program).stdout == "False\n"


def test_help_of_a_recipe_has_its_variants_and_its_own_settings():
    found = run("train.py", "--help", "--config=configs/em3_movielens.py:id_only").stdout
    assert "--config.data.features=text_minilm" in found and "--config.model.content=none" in found
    assert ":conversion" in found and "The second label of the same rows" in found
    assert "--config.stream.window" not in found and "--config.stream.window" in manual.text("", "configs/online.py")
    wrong = run("train.py", "--help", "--config=configs/nothing.py")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: --config=configs/nothing.py: no such file")


def test_every_setting_has_a_comment():
    rows = [line for line in manual.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 140 and not [row for row in rows if row.split(" | ")[-1].strip("| ") in ("", "of `em3`:")]


def test_a_comment_needs_no_neighbour_to_be_understood():
    """`--help` is searched for one line: "of the transformer" or "linear" says nothing there."""
    rows = [line.split(" | ") for line in manual.page().splitlines() if line.startswith("| `")]
    leaning = {"of", "on", "in", "or", "its", "it", "that", "they", "without", "after", "for", "until", "between"}
    for row in rows:
        said = re.sub(r"^of `\w+`: ", "", row[-1].strip("| "))
        assert said.split()[0] not in leaning and len(said.split()) > 2, (row[0], said)


def test_help_says_of_a_retrieval_model_what_its_own_settings_are():
    """Models have settings of one name and of different meaning."""
    said = manual.text("", "configs/retrieval.py:em3_as_released")
    assert "that makes the views" not in said and "retrieval_settings.dropout=0.5" in said


SHORT = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"data": {"root": "data/x"}, "train": {"epochs": 2.0}})
"""


def test_a_recipe_that_leaves_things_out_takes_options_for_them(tmp_path):
    (tmp_path / "short.py").write_text(SHORT)
    path = str(tmp_path / "short.py")
    found = recipes.read(path, {"optim.learning_rate": "0.1", "model.cic.weight": "0"})
    assert (found.optim.learning_rate, found.model.cic.weight, found.train.epochs) == (0.1, 0.0, 2.0)
    assert found.data.root == "data/x" and found.tables.width == 16
    assert "--config.optim.learning_rate=0.001" in manual.text("", path)
    assert "--config.data.root=data/y" in manual.text("", path, {"data.root": "data/y"})
    (tmp_path / "typed.py").write_text(
        "from em3_jax.config import schema\ndef get_config():\n    return schema.Lemur()\n"
    )
    assert recipes.load(str(tmp_path / "typed.py"), "").task == "lemur"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train.epoch = 3", "line 4: 'epoch': no such setting; did you mean 'epochs'?; mend the file"),
        ("model.mine = 3", "line 4: 'mine': no such setting; docs/settings.md lists all; mend the file"),
        ("stream.window = '6 hours'", "config.stream: this recipe is no stream; make it one with base.stream("),
        ("data.features = 'text,image'", "config.data.features='text,image': give values with commas between"),
        ("seed = 'x'", "config.seed='x': give a whole number"),
        ("data.batch_size = 256.0", "config.data.batch_size=256.0: give a whole number of 1 or more"),
        ("task = 'lemur'", "config.model.backbone"),
    ],
)
def test_a_mistake_in_ones_own_recipe_is_in_plain_words(tmp_path, line, message):
    text = f"from configs import base\ndef get_config():\n    c = base.ranking()\n    c.{line}\n    return c\n"
    (tmp_path / "own.py").write_text(text)
    found = user_error(recipes.read, str(tmp_path / "own.py"), {"data.root": "x"})
    assert (message in found or "start from a recipe of that task" in found) and "locked" not in found
    assert len(found) < 250


@pytest.mark.parametrize("task", ["lemur", "retrieval"])
def test_another_task_is_another_recipe(task):
    assert f"start from one of task {task}" in user_error(recipes.read, SYNTHETIC, {"task": task})
    assert "start from configs/online.py" in user_error(recipes.read, SYNTHETIC, {"stream.window": "3"})


def test_the_page_of_all_settings_is_that_of_the_schema():
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page == manual.page(), "make docs"
    for name in parse.RANGES:
        assert f"`{name.replace('*', '<>')}`" in page
