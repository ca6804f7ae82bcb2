"""What `python train.py --help` says: every setting with its default, what it may be and its comment, variants and recipes.

The comments are those of the schema, where a setting's default stands. `page` makes
docs/settings.md of the same.
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

from em3_jax.config import parse, recipes
from em3_jax.core.errors import UserError

_COLUMN = 58  # where comments begin


def text(usage: str, flag: str, changes: Mapping[str, str | None] | None = None) -> str:
    """The manual of `train.py`.

    Args:
      usage: what to say first.
      flag: what stands behind --config=; "" = the general list.
      changes: settings of the command line, which the manual shows instead of the defaults.
    """
    path, argument = recipes.split(flag or "em3_synthetic")
    changes = changes or {}
    made = recipes.load(path, argument, changes.get("data.root") or "")
    config = recipes.with_options(made, changes).to_dict()
    lines = [usage.strip(), ""]
    known = recipes.variants(path)
    if flag and known:
        lines += [f"Variants, --config={path}:<name>, several with commas between where they go together:", ""]
        lines += [_entry(f"  :{name}", _about(one)) for name, one in known.items()] + [""]
    lines += ["Recipes, --config=<file>; with --help the settings and variants of that one:", ""]
    lines += [_entry(f"  {name}", about) for name, about in _recipes()] + [""]
    lines += [f"Settings of {flag or 'a ranking recipe'}, with defaults; --config.<key>=<value> changes one:"]
    section = None
    said = comments(parse.ROOTS[config["task"]], config)
    for name, value in parse.settings(config):
        if (found := name.partition(".")[0] if "." in name else "") != section:
            section = found
            lines.append("")
        kind = parse.kind_of(name)
        about = [said.get(name) or said.get(_free_section(name), ""), f"[{kind.words}]" if kind else ""]
        lines.append(_entry(f"  --config.{name}={_written(value)}", " ".join(filter(None, about))))
    lines += ["", "Settings for any name, of a field of the dataset, a feature set, ...:", ""]
    free = {name: parse.RANGES[f"{name}.*"].words for name in free_names(config)}
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


def comments(made: type, config: Mapping[str, Any], where: str = "") -> dict[str, str]:
    """Full name -> comment of the settings of a section, and of the sections in it.

    Args:
      made: the class of the section.
      config: the section, whose choices say which settings it has.
      where: its full name.
    """
    found: dict[str, str] = {}
    own = _comments_of(made)
    for name, field in parse.fields(made).items():
        full = f"{where}.{name}" if where else name
        found[full] = own.get(name, "")
        inside = field.section
        if field.chosen is not None:
            inside = field.chosen.known.get(config.get(field.chosen.setting, ""))
        if inside is not None:
            found |= comments(inside, config.get(name) or {}, full)
    return found


@functools.cache
def _comments_of(made: type) -> dict[str, str]:
    """Name -> comment of the entries of a section, as its class, or one it builds on, has them."""
    found: dict[str, str] = {}
    for one in reversed(made.__mro__[:-1]):  # but object
        source = _source(one)
        said = _line_comments(source)
        body = next(n for n in ast.parse(source).body if getattr(n, "name", "") == one.__name__)
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = said.get(node.lineno, "")
    return found


def _source(made: type) -> str:
    file = inspect.getsourcefile(made)
    assert file is not None  # a class of this package
    return Path(file).read_text("utf-8")


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


def main() -> None:
    """Prints the manual: `em3 train --help`, without the seconds that importing the trainer takes."""
    spec = importlib.util.find_spec("em3_jax.train")
    assert spec is not None and spec.origin is not None  # a module of this package, a file
    usage = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8")))
    given = [one for one in sys.argv[1:] if one.startswith(recipes.OPTION) and "=" in one]
    print(text(usage or "", asked_for(sys.argv[1:]), recipes.options(given)))


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
    return [name for name in parse.ANY_NAME if _has(config, name)]


def _free_section(name: str) -> str:
    """The section of a setting, where that takes any name: its comment is that of all of them."""
    section = name.rpartition(".")[0]
    return section if section in parse.ANY_NAME else ""


def _has(config: Mapping[str, Any], name: str) -> bool:
    for key in name.split("."):
        if not isinstance(config, Mapping) or key not in config:
            return False
        config = config[key]
    return True


def page() -> str:
    """docs/settings.md: every setting of every task with its default, what it may be and its comment."""
    lines = [_PAGE.strip(), ""]
    shown: dict[type, list[tuple[str, ...]]] = {}
    for made in parse.CONFIGS:
        tasks = [name for name, one in parse.ROOTS.items() if one is made]
        lines += [f"## Task {' and '.join(tasks)}", ""]
        rows: list[tuple[str, ...]] = []
        whole, as_above = made(), []
        in_order = sorted(parse.fields(made).items(), key=lambda one: (one[1].section is not None, one[0]))
        for name, field in in_order:
            if field.section is None:
                rows += _rows(made, whole, "", only=name)
                continue
            value = getattr(whole, name)
            own = list(_rows(field.section, field.section() if value is None else value, name))
            rows += [row for row in own if row not in shown.get(field.section, [])]
            as_above += [f"`{name}`"] if field.section in shown else []
            shown.setdefault(field.section, own)
        lines += ["| setting | default | what it may be | what it is |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        rest = f"What is not listed of {', '.join(as_above)} is as above. There are no other sections."
        lines += ["", rest if as_above else "", ""]
    return "\n".join(lines).rstrip() + "\n"


_PAGE = """
# Settings

Made by `make docs` from `em3_jax/config/schema`, where each setting stands once. `--config.<setting>=<value>` changes one
on the command line, lists with commas between; `config.<setting> = <value>` does in a config file, lists as tuples. A recipe
has the settings of one task, and changes some defaults: `em3 train --help --config=<file>` shows them. A setting in `<>`
takes any name there, that of a field of the dataset, say. The section `stream` is that of recipes that train on a stream,
`configs/online.py` or `base.stream(config, window)`.
"""


def _rows(made: type, default: Any, where: str, only: str = "") -> Iterator[tuple[str, ...]]:
    """(setting, default, range, comment) of the settings of a section, or of one of them."""
    said = _comments_of(made)
    for name, field in parse.fields(made).items():
        if only and name != only:
            continue
        full = f"{where}.{name}" if where else name
        value = getattr(default, name)
        if field.chosen is not None:
            for choice, one in field.chosen.known.items():
                rows = _rows(one, one(), full)
                yield from ((row[0], row[1], row[2], f"of `{choice}`: {row[3]}") for row in rows)
        elif field.section is not None:
            yield from _rows(field.section, field.section() if value is None else value, full)
        else:
            assert field.kind is not None
            shown = _pairs(value) if field.free else f"`{_written(value)}`".replace("``", "empty")
            yield f"`{full}.<>`" if field.free else f"`{full}`", shown, field.kind.words, said[name]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={_written(value)}`" for name, value in values.items()) or "none"
