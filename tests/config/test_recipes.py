"""recipes and manual: config files, what the command line changes in them, and what --help says."""

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
        ("model.fusion", "men", "config.model.fusion='men': give fq_former, masked_fq_former, one_flow, two_flow, mean or "),
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
            "line 4: AttributeError",
        ),
        (
            "from configs import base\ndef get_config():\n    c = base.ranking()\n    c.seed = 'x'",
            "line 4: TypeError: ",
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
    for made in parse.ROOTS.values():
        said = manual.comments(made)
        lacking = [name for name in parse.RANGES if said.get(name.removesuffix(".*"), "in no section") == ""]
        assert lacking == [], "say at the end of its line in the schema what it is"


@pytest.mark.parametrize("command", [["eval.py", "--help"], ["-m", "em3_jax.prepare", "--help"]])
def test_other_commands_have_help(command):
    found = run(*command)
    assert found.returncode == 0 and "--help" in found.stdout


def test_reproduce_away_from_the_checkout_is_one_line(tmp_path):
    program = f"import sys, runpy; sys.path[:] = {[str(tmp_path)]!r} + [p for p in sys.path if p]\n"
    program += f"sys.path.append({str(tmp_path / 'lib')!r}); sys.argv = ['reproduce', '--help']\n"
    program += "runpy.run_module('em3_jax.reproduce', run_name='__main__')"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "em3_jax").symlink_to(ROOT / "em3_jax")
    found = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert "call it in a checkout" in found.stderr


def test_the_page_of_all_settings_is_that_of_the_schema():
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    assert page == manual.page(), "make docs"
    for name in parse.RANGES:
        assert f"`{name.replace('*', '<>')}`" in page
