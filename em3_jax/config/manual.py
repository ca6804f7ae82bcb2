"""What `python train.py --help` says: every setting with its default, what it may be and its comment, variants and recipes.

The comments are those of the config files, where a setting's default stands: one line, at the end of the key's.
"""

import ast
import functools
import importlib.util
import inspect
import io
import shutil
import sys
import textwrap
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from em3_jax.config import ranges, recipes
from em3_jax.core.errors import UserError

_COLUMN = 58  # where comments begin


def text(usage: str, flag: str) -> str:
    """The manual of `train.py`.

    Args:
      usage: what to say first.
      flag: what stands behind --config=; "" = the general list.
    """
    path, argument = recipes.split(flag or "em3_synthetic")
    config = recipes.load(path, argument).to_dict()
    recipe = recipes.find(path).resolve()
    lines = [usage.strip(), ""]
    known = recipes.variants(path)
    if flag and known:
        lines += [f"Variants, --config={path}:<name>, several with commas between where they go together:", ""]
        lines += [_entry(f"  :{name}", _about(one)) for name, one in known.items()] + [""]
    lines += ["Recipes, --config=<file>; with --help the settings and variants of that one:", ""]
    lines += [_entry(f"  {name}", about) for name, about in _recipes()] + [""]
    lines += [f"Settings of {flag or 'a ranking recipe'}, with defaults; --config.<key>=<value> changes one:"]
    section = None
    said = comments(recipe)
    for name, value in ranges.settings(config):
        if (found := name.partition(".")[0] if "." in name else "") != section:
            section = found
            lines.append("")
        kind = ranges.kind_of(name)
        about = [said.get(name) or said.get(_free_section(name), ""), f"[{kind.words}]" if kind else ""]
        lines.append(_entry(f"  --config.{name}={_written(value)}", " ".join(filter(None, about))))
    lines += ["", "Settings for any name, of a field of the dataset, a feature set, ...:", ""]
    free = {name: ranges.RANGES[f"{name}.*"].words for name in free_names(config)}
    lines += [_entry(f"  --config.{name}.<name>=", f"{said.get(name, '')} [{words}]") for name, words in free.items()]
    return "\n".join(lines)


def _entry(left: str, right: str) -> str:
    most = max(shutil.get_terminal_size((130, 0)).columns - _COLUMN - 2, 40)
    lines = textwrap.wrap(right, most, break_long_words=False, break_on_hyphens=False) or [""]
    first = f"{left:<{_COLUMN}}  {lines.pop(0)}".rstrip() if len(left) <= _COLUMN else left
    return "\n".join([first, *(f"{'':<{_COLUMN}}  {line}" for line in lines)])


def _written(value: Any) -> str:
    """A value as the command line writes it."""
    if isinstance(value, tuple | list) and value and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(str, value))
    return str(value).replace("()", "") if isinstance(value, tuple | list) else str(value)


def _about(variant: Any) -> str:
    if isinstance(variant, str):
        return variant
    while isinstance(variant, functools.partial):
        variant = variant.func
    return (inspect.getdoc(variant) or "").split("\n\n")[0].replace("\n", " ")


def _recipes() -> Iterator[tuple[str, str]]:
    """(file, what it is for) of the config files that are there."""
    for path in sorted(recipes.folder().glob("*.py")):
        if path.name not in ("base.py", "__init__.py"):
            about = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            yield f"configs/{path.name}", about.split("\n")[0]


def comments(recipe: Path) -> dict[str, str]:
    """Full name -> comment of the settings whose default stands in a config file: `recipe`, what it imports, and base.py."""
    found: dict[str, str] = {}
    for path in (recipes.folder() / "base.py", *_imported(recipe), recipe):
        source = path.read_text("utf-8")
        said = _line_comments(source)
        for name, line in _keys(ast.parse(source)):
            if line in said:
                found[name] = said[line]
    return found


def _imported(recipe: Path) -> Iterator[Path]:
    """The config files that a recipe builds on, the deepest first."""
    for node in ast.walk(ast.parse(recipe.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "configs":
            for alias in node.names:
                path = recipes.folder() / f"{alias.name}.py"
                if path.is_file() and alias.name != "base":
                    yield from _imported(path)
                    yield path


def _line_comments(source: str) -> dict[int, str]:
    """Line -> the comment at its end, or, where the line has none, the lines of comments that stand alone above it."""
    alone: list[str] = []
    found: dict[int, str] = {}
    code = False
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            if code:
                found[line] = token.string.lstrip("# ")
            else:
                alone.append(token.string.lstrip("# "))
        elif token.type in (tokenize.NL, tokenize.NEWLINE):
            code = False
        elif token.type not in (tokenize.INDENT, tokenize.DEDENT):
            if not code and alone:
                found[line] = " ".join(alone)
            code, alone = True, []
    return found


def _keys(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(full name of a setting, line) for the dictionaries that a config file writes out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Return) and node.value is not None:
            literal = _literal(node.value)
            # A function that returns no ConfigDict gives the settings of one retrieval model.
            prefix = "" if isinstance(node.value, ast.Call) else "model.retrieval_settings"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            literal, prefix = _literal(node.value), ast.unparse(node.targets[0]).partition(".")[2]
        else:
            continue
        if literal is not None:
            yield from _of(literal, prefix)


def _literal(value: ast.AST) -> ast.Dict | None:
    if isinstance(value, ast.Call) and value.args:
        value = value.args[0]
    return value if isinstance(value, ast.Dict) else None


def _of(literal: ast.Dict, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in zip(literal.keys, literal.values, strict=True):
        if not isinstance(key, ast.Constant):
            continue
        name = f"{prefix}.{key.value!s}".lstrip(".")
        if isinstance(value, ast.Dict) and value.keys:
            yield from _of(value, name)
        yield name, value.lineno if isinstance(value, ast.Dict) else key.lineno


def main() -> None:
    """Prints the manual: `em3 train --help`, without the seconds that importing the trainer takes."""
    spec = importlib.util.find_spec("em3_jax.train")
    assert spec is not None and spec.origin is not None  # a module of this package, a file
    usage = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    print(text(usage or "", asked_for(sys.argv[1:])))


def asked_for(arguments: list[str]) -> str:
    """What of --config=<flag> a command line that asks for the manual has; "" without."""
    for place, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return argument.partition("=")[2]
        if argument == "--config":
            if place + 1 == len(arguments) or arguments[place + 1].startswith("-"):
                raise UserError("--config: has no value; give a config file")
            return arguments[place + 1]
    return ""


def free_names(config: Mapping[str, Any]) -> list[str]:
    """The sections of a config that take a setting for any name."""
    names = {name.removesuffix(".*") for name in ranges.RANGES if name.endswith(".*")}
    return sorted(name for name in names if _has(config, name))


def _free_section(name: str) -> str:
    """The section of a setting, where that takes any name: its comment is that of all of them."""
    section = name.rpartition(".")[0]
    return section if ranges.takes_names(section) else ""


def _has(config: Mapping[str, Any], name: str) -> bool:
    for key in name.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True
