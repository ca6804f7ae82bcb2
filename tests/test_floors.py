"""The house rules that no linter knows: imports go down only, files stay short, nothing is unpickled."""

import ast
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "em3_jax"
LONGEST_FILE = 400

# DESIGN section 7. A name stands for the module or for the folder with all that is in it; every module is on one floor.
FLOORS = [
    {
        "errors",
        "paths",
        "publish",
        "lock",
        "kinds",
        "progress",
        "types",
        "fields",
        "values",
        "strict_json",
        "id_index",
        "field_values",
        "influence",
        "losses",
        "metrics",
        "rng",
        "trees",
        "sharding",
        "allocator",
        "full_ranking",
        "gather",
        "sparse",
    },
    {"models", "data", "tables", "memory", "store", "neighbours", "programs"},
    {
        "tasks",
        "parts",
        "optim",
        "convert",
        "weights",
        "config",
        "ranges",
        "recipes",
        "step",
        "encoding",
        "sentences",
        "scorer",
        "served_model",
        "serving",
    },
    {
        "checkpoint",
        "evaluators",
        "retrieval_evaluation",
        "logs",
        "workdir",
        "cli",
        "placement",
        "wiring",
        "experiment",
        "processes",
        "growth",
        "manual",
        "trained_rows",
    }
    | {
        "prepare",
        "extract",
        "raw",
        "vectors",
        "merge",
        "compare",
        "follow",
        "online",
        "curves",
        "panels",
        "plot",
        "plot_page",
        "embeddings",
        "export",
        "exporting",
        "analysis",
        "analyze",
        "serve",
    },
    {"train", "eval", "reproduce"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SIDE_BY_SIDE = ("models", "data", "tables", "memory")
APART = list(itertools.combinations(SIDE_BY_SIDE, 2))  # same floor, and none imports another
UNPICKLER = "weights"  # the one module that may name pickle: it reads tensors through an allow-list


def python_files() -> list[Path]:
    return sorted([*(ROOT / PACKAGE).rglob("*.py"), *ROOT.glob("*.py")])


def module_name(path: Path) -> str:
    """ "em3_jax.data.format" of em3_jax/data/format.py; a folder's __init__.py is the folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in python_files()}


def unit(module: str) -> str:
    """The name that stands in FLOORS: "data" of "em3_jax.data.format", "train" of "train"."""
    return module.removeprefix(f"{PACKAGE}.").split(".")[0]


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
    assert len(FLOOR) == sum(map(len, FLOORS)), "a name stands on two floors"


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


def test_nothing_imports_the_top_floor():
    top = {module for module in MODULES if FLOOR.get(unit(module)) == len(FLOORS) - 1}
    assert {"train", "eval"} <= top
    for module in set(MODULES) - top:
        assert not IMPORTS[module] & top, f"{module} imports {IMPORTS[module] & top}"


def test_train_and_eval_do_not_import_each_other():
    assert "eval" not in IMPORTS["train"] and "train" not in IMPORTS["eval"]


def test_models_read_neither_config_nor_files():
    allowed = {"types", "fields", "gather", "losses", "rng", "sparse", "models"}
    for module in MODULES:
        if unit(module) == "models":
            assert {unit(name) for name in IMPORTS[module]} <= allowed, f"{module} imports {IMPORTS[module]}"


@pytest.mark.parametrize(
    "source,found",
    [
        ("import em3_jax.tables", {"em3_jax.tables"}),
        ("from em3_jax import tables as t", {"em3_jax.tables"}),
        ("from em3_jax.tables import lookup", {"em3_jax.tables"}),
        ("def f():\n  from em3_jax.data import format", {"em3_jax.data", "em3_jax.data.format"}),
        ("if TYPE_CHECKING:\n  import train", {"train"}),
        ("importlib.import_module('em3_jax.step')", {"em3_jax.step"}),
        ("'import em3_jax.tables'  # import train", set()),
        ("import jax\nfrom numpy import array", set()),
    ],
)
def test_all_spellings_of_an_import_are_seen(source, found):
    assert imports(source, "em3_jax.models.mlp") == found


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_can_be_read_in_one_sitting(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONGEST_FILE, f"{path}: {lines} lines; split it by what it does"


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
