"""The commands of pages and of the heads of examples, as a reader would copy them."""

import re
from pathlib import Path

FENCED = re.compile(r"^```(?:sh|bash)?\n(.*?)^```", re.DOTALL | re.MULTILINE)
WORDS = ("bash", "curl", "em3", "make", "pip", "python", "source")  # that a command begins with


def joined(lines: list[str]) -> list[str]:
    """Commands of such lines: those that end in a backslash go on, and comments are left out."""
    whole = "\n".join(line.strip() for line in lines).replace("\\\n", "")
    commands = (re.sub(r"\s+", " ", re.sub(r"\s+# .*$", "", line)) for line in whole.splitlines())
    return [line for line in commands if line.split(" ", 1)[0] in WORDS]


def of_page(page: Path) -> list[str]:
    """The commands in the fenced blocks of a page, in order, but of those of another language."""
    blocks = FENCED.findall(page.read_text("utf-8"))
    return [command for block in blocks for command in joined(block.splitlines())]


def of_head(example: Path) -> list[str]:
    """The commands that are indented by four spaces at the head of a Python file or a script."""
    text = example.read_text("utf-8")
    if example.suffix == ".py":
        lines = text.split('"""')[1].splitlines()
    else:
        comments = re.match(r"(?:#.*\n)+", text)
        lines = [line[2:] for line in comments[0].splitlines()] if comments else []
    return joined([line for line in lines if line.startswith("    ")])
