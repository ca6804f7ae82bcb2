"""The house rules that no linter knows: imports go down only, files stay short, nothing is unpickled."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from em3_jax import cli
from em3_jax.core import batch
from em3_jax.data.readers import table

ROOT = Path(__file__).parent.parent
PACKAGE = "em3_jax"
LONGEST_FILE = 400
LONGEST_FUNCTION = 80

ROOMS = [  # from the lowest floor to the highest; a name stands for the module or for the folder with all that is in it
    {"core", "cli", "losses", "metrics"},
    {"models", "data", "tables", "serving"},
    {"config", "features"},
    {"evaluation"},
    {"tasks"},
    {"training"},
    {"export", "report", "analysis", "plan"},
    {"train", "evaluate"},
    {"trials"},
    {"protocols"},
    {"predict", "notebook"},
    {"verdict"},
    {"__main__", "commands"},
]
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
APART = list(itertools.combinations(("models", "data", "tables", "serving"), 2))  # same floor, and none imports another
FILES = {f"em3_jax.core.{name}" for name in ("paths", "publish", "lock", "strict_json", "progress")}
FILES_OF_RUNS = {
    "em3_jax.training",
    "em3_jax.training.curve",
    "em3_jax.training.run",
    "em3_jax.training.rundir",
}  # what drawing reads of training
UNPICKLER = "features.weights"  # the one module that may name pickle: it reads tensors through an allow-list


def python_files() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path: Path) -> str:
    """ "em3_jax.data.format" of em3_jax/data/format.py; a folder's __init__.py is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files()}


def unit(module: str) -> str:
    """The name that stands in ROOMS: "data" of "em3_jax.data.format"; a `__main__` is a door, wherever it lies."""
    names = module.removeprefix(f"{PACKAGE}.").split(".")
    return "__main__" if names[-1] == "__main__" else names[0]


def imports(source: str, module: str, modules=MODULES) -> set[str]:
    """Modules of the project that the source of `module` imports, at the top or inside functions, by any spelling."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} line {node.lineno}: write the import out, from {PACKAGE}..."
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return (found & set(modules)) - {module, PACKAGE}


IMPORTS = {module: imports(path.read_text("utf-8"), module) for module, path in MODULES.items()}


def test_every_module_has_a_floor():
    units = {unit(module) for module in MODULES} - {PACKAGE}
    assert not units - set(FLOOR), f"give {', '.join(sorted(units - set(FLOOR)))} a floor in tests/test_floors.py"
    assert len(FLOOR) == sum(map(len, ROOMS)), "a name stands on two floors"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {PACKAGE}))
def test_imports_go_down_only(module):
    above = [name for name in IMPORTS[module] if FLOOR[unit(name)] > FLOOR[unit(module)]]
    assert not above, f"{module} imports {above}, which lie on a higher floor"


def test_no_module_imports_itself_by_way_of_others():
    reach = {module: set(IMPORTS[module]) for module in MODULES}
    for _ in MODULES:  # each round follows one more import
        reach = {module: names.union(*(reach[name] for name in names)) for module, names in reach.items()}
    circular = sorted(module for module, names in reach.items() if module in names)
    assert not circular, f"these modules import each other in a circle: {circular}"


@pytest.mark.parametrize("one,other", APART)
def test_the_rooms_of_floor_one_do_not_know_each_other(one, other):
    for a, b in ((one, other), (other, one)):
        offending = {m: sorted(n for n in IMPORTS[m] if unit(n) == b) for m in MODULES if unit(m) == a}
        assert not any(offending.values()), f"{a} must not import {b}: {offending}"


def test_the_root_has_seven_modules_at_most():
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= 7
    for door in ("train.py", "eval.py"):
        assert len((ROOT / door).read_text("utf-8").splitlines()) <= 10, (
            f"{door} is a door; its work stands in {PACKAGE}"
        )


def test_training_and_evaluation_do_not_import_each_other():
    assert f"{PACKAGE}.evaluate" not in IMPORTS[f"{PACKAGE}.train"]
    assert f"{PACKAGE}.train" not in IMPORTS[f"{PACKAGE}.evaluate"]


@pytest.mark.parametrize("module", [m for m in MODULES if unit(m) == "report"] + [f"{PACKAGE}.evaluation.compare"])
def test_drawing_and_comparing_import_no_training_code(module):
    of_training = {name for name in IMPORTS[module] if unit(name) in ("training", "tasks", "models")}
    assert of_training <= FILES_OF_RUNS, f"{module} imports {of_training}"


@pytest.mark.parametrize("module", ["evaluation.compare", "report.plot", "report.streams", "__main__", "config.manual"])
def test_what_only_reads_files_does_not_wait_for_jax(module):
    program = (
        f"import sys, em3_jax.{module}; print({{'jax', 'flax', 'orbax', 'grain', 'matplotlib'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def mappings_of_settings(source: str) -> list[int]:
    """Lines that ask a mapping called `config` or `settings` for a key: settings are read as attributes."""
    names, found = ("config", "settings"), []
    for node in ast.walk(ast.parse(source)):
        of = None
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            of = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            of = node.func.value
        if isinstance(of, ast.Name | ast.Attribute) and getattr(of, "id", getattr(of, "attr", "")) in names:
            found.append(node.lineno)
    return found


READS_JSON = ("training.rundir", "report.plot")  # a run.json, of any version


@pytest.mark.parametrize(
    "module",
    [
        m
        for m in MODULES
        if unit(m) in ("models", "tables", "tasks", "training", "export", "analysis", "report", "train", "evaluate")
    ],
)
def test_below_the_door_settings_are_attributes(module):
    if module.removeprefix(f"{PACKAGE}.") not in READS_JSON:
        assert not mappings_of_settings(MODULES[module].read_text("utf-8")), "read them from em3_jax.config.schema"
    for wrong in ('config["seed"]', 'self.config["train"]', 'settings.get("width", 3)', 'run.config.get("task")'):
        assert mappings_of_settings(wrong) == [1]


def declared() -> dict[str, set[str]]:
    """Extra, "" for what always comes -> distributions that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: {re.split(r"[<>=[]", one)[0].replace("_", "-") for one in names} for extra, names in lists.items()}


DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "faiss": "faiss-cpu",
    "orbax": "orbax-checkpoint",
    "yaml": "pyyaml",
}


def distribution(package: str) -> str:
    return DISTRIBUTIONS.get(package, package).replace("_", "-")


def third_party(source: str) -> set[str]:
    """Packages that the source imports and that are neither the project's nor Python's own."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {PACKAGE, "configs", "reproduce"}


def test_every_imported_package_is_declared():
    known = set().union(*(names for extra, names in declared().items() if extra != "test"))
    imported = {distribution(name) for path in MODULES.values() for name in third_party(path.read_text("utf-8"))}
    assert imported <= known, f"declare {imported - known} in pyproject.toml"
    written = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    listed = {re.split(r"[<>=]", line)[0].replace("_", "-") for line in written if not line.startswith("#")}
    # The compilers of em3 plan are kept apart: beside JAX they would look for devices. And so are what asks for an older
    # orbax, what reads buckets, Spark and Kafka, which few need.
    few = ("plan", "onnx", "buckets", "spark", "kafka")
    apart = set().union(*(declared()[extra] for extra in few)) - declared()[""]
    assert listed == known - apart, "requirements.txt lists what pyproject.toml declares"


def test_a_missing_extra_is_known_by_its_package():
    for package, extra in cli.EXTRAS.items():
        assert distribution(package) in declared()[extra]
    optional = set().union(*(names for extra, names in declared().items() if extra not in ("", "test")))
    assert {distribution(package) for package in cli.EXTRAS} == optional - declared()[""]


def test_models_read_neither_config_nor_files():
    allowed = {"core", "losses", "models"}
    for module in MODULES:
        if unit(module) == "models":
            assert {unit(name) for name in IMPORTS[module]} <= allowed, f"{module} imports {IMPORTS[module]}"
            assert not IMPORTS[module] & FILES, f"{module} imports {IMPORTS[module] & FILES}"


@pytest.mark.parametrize(
    "source,found",
    [
        ("import em3_jax.core.rng", {"em3_jax.core.rng"}),
        ("from em3_jax.core import rng as r", {"em3_jax.core", "em3_jax.core.rng"}),
        ("from em3_jax.core.rng import permute", {"em3_jax.core.rng"}),
        ("def f():\n  from em3_jax.data import format", {"em3_jax.data", "em3_jax.data.format"}),
        ("if TYPE_CHECKING:\n  from em3_jax import train", {"em3_jax.train"}),
        ("importlib.import_module('em3_jax.training.step')", {"em3_jax.training.step"}),
        ("'import em3_jax.core.rng'  # import em3_jax.train", set()),
        ("import jax\nfrom numpy import array", set()),
    ],
)
def test_all_spellings_of_an_import_are_seen(source, found):
    assert imports(source, "em3_jax.models.mlp") == found


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path}: {lines} lines; split it by what it does"


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def function_lengths(source: str) -> dict[str, int]:
    """ "name, line n" of each function -> its lines of code, from `def` to its end.

    Blank lines and docstrings are not counted, its own or those of what stands in it. Its
    signature, comments and nested functions are.
    """
    nodes, lines = list(ast.walk(ast.parse(source))), source.splitlines()
    uncounted = {number for number, line in enumerate(lines, 1) if not line.strip()}
    for node in nodes:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and ast.get_docstring(node) is not None:
            uncounted |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lengths = {}
    for node in nodes:
        if isinstance(node, FUNCTIONS):
            span = set(range(node.lineno, node.end_lineno + 1))
            lengths[f"{node.name}, line {node.lineno}"] = len(span - uncounted)
    return lengths


FOLDERS = (PACKAGE, "reproduce", "configs")
FILES_WITH_FUNCTIONS = sorted(path for one in FOLDERS for path in (ROOT / one).rglob("*.py"))


@pytest.mark.parametrize("path", FILES_WITH_FUNCTIONS, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_can_be_read_in_one_glance(path):
    lengths = function_lengths(path.read_text("utf-8"))
    long = {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert not long, f"{path}: {long} lines of code; split them by what they do"


def test_a_function_counts_its_code_and_that_of_those_in_it():
    outer = ["def f(", "  x,", "):", '  """Says', "", '  it."""', "  # why", "", "  def g():"]
    inner = ['    """Too."""', "    return x", "", "  return g", ""]
    assert function_lengths("\n".join(outer + inner)) == {"f, line 1": 7, "g, line 9": 2}
    method = ["class A:", "  async def f(self):", "    'x'", "    y = 'x'", ""]
    assert function_lengths("\n".join(method)) == {"f, line 2": 2}


def unpickling(source: str) -> list[str]:
    """What in the source could unpickle: imports of pickling modules, allow_pickle that is not literally False."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "torch")]
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if getattr(node.value, "value", None) is False else ["allow_pickle"]
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("read_pickle"):
            found.append("read_pickle")
    return found


@pytest.mark.parametrize("module", sorted(set(MODULES) - {f"{PACKAGE}.{UNPICKLER}"}))
def test_nothing_is_unpickled(module):
    assert not unpickling(MODULES[module].read_text("utf-8")), f"{module} could run code from a file"


def test_the_one_unpickler_hands_out_an_allow_list_only():
    tree = ast.parse(MODULES[f"{PACKAGE}.{UNPICKLER}"].read_text("utf-8"))
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} <= {"pickle.Unpickler", "pickle.UnpicklingError"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) != "pickle.Unpickler", "use the subclass with its own find_class"
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "pickle.Unpickler" for base in node.bases):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            assert {"find_class", "persistent_load"} <= methods
            assert "super().find_class" not in ast.unparse(node)


@pytest.mark.parametrize(
    "source", ["import pickle", "from pickle import loads", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)"]
)
def test_unpickling_is_recognised(source):
    assert unpickling(source)
    assert not unpickling("np.load(f, allow_pickle=False)")


SCHEMA = f"{PACKAGE}.core.batch"
BATCH_KEYS = {*batch.KEYS, *batch.REQUEST}


def listed(node: ast.AST) -> set:
    """The words that a literal collection or a string lists, and the names of a class's fields."""
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Set(elts=parts):
            return {part.value for part in parts if isinstance(part, ast.Constant)}
        case ast.Dict(keys=parts):
            return {part.value for part in parts if isinstance(part, ast.Constant)}
        case ast.Call(func=ast.Name(id="dict"), keywords=words):
            return {word.arg for word in words}
        case ast.ClassDef(body=body):
            return {ast.unparse(one.target) for one in body if isinstance(one, ast.AnnAssign)}
        case ast.Constant(value=str(text)):
            # Of plain words, such as label, only those in quotes, and in the first cell of a table.
            cells = " ".join(re.findall(r"^ *\|([^|]*)", text, re.MULTILINE))
            found = re.findall(r"\w+_\w+|(?<=[\"'`])\w+(?=[\"'`])", text)
            return {*found, *re.findall(r"\w+", cells)}
    return set()


def key_lists(source: str) -> list[str]:
    """What in the source lists three or more keys of a batch.

    Lists of words that are roles of a dataset's columns too, such as user and label, do not count.
    """
    lists = [(node, listed(node) & BATCH_KEYS) for node in ast.walk(ast.parse(source))]
    found = [(node, keys) for node, keys in lists if len(keys) >= 3 and keys - {*table.ROLES}]
    return [f"line {node.lineno}: {', '.join(sorted(keys))}" for node, keys in found]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {SCHEMA}))
def test_the_keys_of_a_batch_are_listed_in_the_schema_alone(module):
    found = key_lists(MODULES[module].read_text("utf-8"))
    assert not found, f"{module}: {found}; derive it from {SCHEMA}"


@pytest.mark.parametrize(
    "source",
    [
        "KEYS = ('item_id', 'item_mask', 'item_row')",
        "KEYS = {'user': 1, 'positive': 2, 'negative': 3}",
        "def f(x):\n  return {'label': x.a, 'weight': x.b, **x.c, 'row_id': x.d}",
        "batch = dict(item_id=1, item_mask=2, label=3)",
        "Key = Literal['item_id', 'item_mask', 'label']",
        "class Clicks(TypedDict):\n  label: int\n  item_row: int\n  group: int",
        "KEYS = 'item_id item_mask item_row'.split()",
        '"""Makes batches.\n\n| key | of |\n|---|---|\n| label, item_row | B |\n| group | B |\n"""',
        'def f():\n  """request: "candidate" [b, W], "user_row" [C], "history_mask" [T]."""',
    ],
)
def test_a_list_of_keys_is_recognised(source):
    assert len(key_lists(source)) == 1


def test_reading_keys_is_no_list_of_them():
    assert not key_lists("batch['item_id'], batch['label'], batch['row_id'], ('label', 'row_id')")
    assert not key_lists("COLUMNS = ('user', 'item', 'label', 'group')  # of a dataset")
    assert not key_lists("def f():\n  'The label and the weight of a group, and its user.'")
    assert key_lists(MODULES[SCHEMA].read_text("utf-8"))
