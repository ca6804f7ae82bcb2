"""For docs/reference.md: examples in docstrings, which begin with >>>, are code and no quotation."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^[ ]*>>>.*\n?(?:^[ ]*\S.*\n?)*)+", re.MULTILINE)  # as far as the next empty line


def fenced(text: str) -> str:
    """The docstring with its examples in fences."""
    return EXAMPLE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)


class Examples(griffe.Extension):
    """Fences the examples of all that has a docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
