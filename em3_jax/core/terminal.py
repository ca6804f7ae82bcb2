"""The one look of what commands print: tables and paragraphs of 80 columns, colours on a terminal alone.

What is printed on the way is for people. What was asked for goes through `result`: `--quiet` prints
nothing else, and `--json-lines` prints a line of JSON for each thing that is said, with its numbers
by name. Warnings and errors are lines on stderr in any case.
"""

import contextlib
import io
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TextIO

WIDTH = 80
NARROWEST = 9  # to which names may be broken, or to half of their width, before a table is told in parts
WIDEST_NAME = 30  # of names in a table that is told in parts
GAP = 2

WORDS = {
    "examples/s": "training rows a second",
    "input wait": "share of the time in which the step waits for its next batch; near 0 % is well",
    "best": "the best value on validation so far",
    "entropy": "how evenly attention spreads over the past, of at most what stands behind the slash",
    "spilled": "rows of ids that went to disk to make room; an id that comes back has its own again",
    "distinct candidates": "different items among those that a batch scores; each is encoded once",
    "distinct": "each different one is encoded once, however many items have it",
}
"""Word of this project's output -> what it means; `explain` says it where the word first appears."""

_STYLES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


class _How:
    """How this process prints, see `shown`."""

    def __init__(self) -> None:
        self.quiet = self.as_json = self.is_mute = False
        self.out: TextIO | None = None  # stdout itself, where something stands in its place
        self.explained: set[str] = set()


_how = _How()


class _Records(io.TextIOBase):
    """In the place of stdout: each line that is printed becomes a record."""

    def __init__(self) -> None:
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                record("note", text=line.rstrip())
        return len(text)


class _Nothing(io.TextIOBase):
    """In the place of stdout: what is printed is not shown."""

    def write(self, text: str) -> int:
        return len(text)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """What a command prints; `be_quiet` and `be_json` hold until it ends."""
    global _how
    before, stdout, _how = _how, sys.stdout, _How()
    try:
        yield
    finally:
        _how, sys.stdout = before, stdout


def be_quiet() -> None:
    """From here on only results are printed."""
    _how.quiet = True
    if not _how.as_json:
        _replace(_Nothing())


def be_json() -> None:
    """From here on stdout has one JSON object a line: {"event": "note" | "progress" | ... | "result", ...}."""
    _how.as_json = True
    _replace(_Records())


def be_mute() -> None:
    """From here on this process prints nothing on stdout: another one speaks for it."""
    _how.is_mute = True
    _replace(_Nothing())


def _replace(stdout: Any) -> None:
    _how.out = _how.out or sys.stdout
    sys.stdout = stdout


def shows_progress() -> bool:
    """Whether bars and lines of progress are wanted as text."""
    return not (_how.quiet or _how.as_json or _how.is_mute)


def is_json() -> bool:
    """Whether what is said becomes records."""
    return _how.as_json


def record(event: str, /, **values: Any) -> None:
    """A line of JSON, where `--json-lines` asks for them; with `--quiet` results alone."""
    from em3_jax.core import strict_json  # brings numpy, which a command may import only when it has begun

    if _how.as_json and not _how.is_mute and (event == "result" or not _how.quiet):
        print(strict_json.dumps({"event": event} | values), file=_how.out, flush=True)


def say(text: str, event: str = "note", /, **values: Any) -> None:
    """Something on the way: text, or a record of the values where `--json-lines` asks for them."""
    if _how.as_json:
        record(event, **(values or {"text": text}))
    else:
        print(text, flush=True)


def result(text: str, /, next_command: str = "", **values: Any) -> None:
    """What was asked for: printed with `--quiet` as well; of `--json-lines` the values, else the text.

    Args:
      next_command: what is usually next; not printed with `--quiet`.
    """
    if _how.as_json:
        record("result", **(values or {"text": text}), **({"next": next_command} if next_command else {}))
        return
    if not _how.is_mute:
        print(text, file=_how.out or sys.stdout, flush=True)
    if next_command:
        print(f"next: {styled(next_command, 'bold')}", flush=True)


def explain(*words: str) -> None:
    """Says what words mean, each once a command."""
    new = [word for word in words if word not in _how.explained]
    _how.explained.update(new)
    if _how.as_json:
        return
    for word in new:
        print(textwrap.fill(f"{word}: {WORDS[word]}", WIDTH, initial_indent="  ", subsequent_indent="    "))


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style, where the stream is a terminal that shows colours; NO_COLOR turns them off.

    Args:
      style: "bold", "red", "green" or "yellow".
      stream: that it will be written to; None = stdout.
    """
    stream = stream or sys.stdout
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def listed(first: str, parts: Iterable[str]) -> str:
    """Short texts side by side, below each other where they are wider than 80 columns together.

    >>> from em3_jax.core.terminal import listed
    >>> print(listed("step 250", ["auc 0.7710", "logloss 0.5700"]))
    step 250  auc 0.7710  logloss 0.5700
    """
    lines, indent = [first], " " * (len(first) + GAP)
    for part in parts:
        if len(lines[-1]) + GAP + len(part) > WIDTH and lines[-1].strip() != first.strip():
            lines.append(indent + part)
        else:
            lines[-1] += " " * GAP + part
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """ "1:02:05" of hours, minutes and seconds, or "2:05"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def paragraph(text: str) -> str:
    """The text in lines of 80 columns; an address or a path that is longer stays whole."""
    return textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    names: int = 1,
    left: Collection[int] = (),
    joined: Collection[int] = (),
) -> str:
    """A table of at most 80 columns; nothing of it is left out.

    What is too wide is broken: first the header's words, then names. What is too wide even so is told
    in parts, one below the other, each with the names.

    Args:
      header: a text a column; "_" and spaces are where it may be broken.
      rows: cells in the order of the columns, or a text that stands above the rows that follow.
      names: so many first columns are names, on the left.
      left: further columns that are texts, on the left.
      joined: columns that stay beside the one before, as an interval beside its value.

    Returns:
      Lines, the header first.

    >>> from em3_jax.core.terminal import table
    >>> print(table(["slice", "n", "auc"], [["all", "4,000", "0.7860"], ["cold items", "560", "0.7465"]]))
    slice           n     auc
    all         4,000  0.7860
    cold items    560  0.7465
    """
    cells = [row for row in rows if not isinstance(row, str)]
    widest = [max((len(row[k]) for row in cells), default=0) for k in range(len(header))]
    natural = [max(len(title), most) for title, most in zip(header, widest, strict=True)]
    least = [max(most, *map(len, _pieces(title))) for title, most in zip(header, widest, strict=True)]
    widths, spare = list(natural), _total(natural) - WIDTH
    for k in sorted(range(names, len(header)), key=lambda k: least[k] - natural[k]):
        if spare > 0:
            spare, widths[k] = spare - (natural[k] - least[k]), least[k]
    for k in range(names):
        if spare > 0:
            narrow = max(min(natural[k], NARROWEST), -(-natural[k] // 2), natural[k] - spare)
            spare, widths[k] = spare - (natural[k] - narrow), narrow
    parts = [list(range(len(header)))]
    if spare > 0:
        widths = [min(width, WIDEST_NAME) for width in natural[:names]] + natural[names:]
        room = WIDTH - sum(width + GAP for width in widths[:names])
        widths[names:] = [min(width, room) for width in natural[names:]]
        parts = _parts(widths, names, room, joined)
    on_left = {*range(names), *left}
    return "\n\n".join(_part(header, rows, widths, part, on_left) for part in parts)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _parts(widths: Sequence[int], names: int, room: int, joined: Collection[int]) -> list[list[int]]:
    """The columns of each part, the names in all of them."""
    units: list[list[int]] = []
    for k in range(names, len(widths)):
        is_with = units and k in joined and _total([widths[one] for one in (*units[-1], k)]) <= room
        units[-1:] = [[*units[-1], k]] if is_with else [*units[-1:], [k]]
    found: list[list[int]] = []
    for unit in units:
        if not found or _total([widths[k] for k in (*found[-1], *unit)]) > room:
            found.append([])
        found[-1] += unit
    return [[*range(names), *part] for part in found]


def _part(
    header: Sequence[str],
    rows: Sequence[Sequence[str] | str],
    widths: Sequence[int],
    columns: Sequence[int],
    on_left: Collection[int],
) -> str:
    """The columns of a table, one below the other where a cell has several lines."""

    def lines(row: Sequence[str], from_below: bool) -> Iterator[str]:
        broken = [_broken(row[k], widths[k]) for k in columns]
        height = max(map(len, broken))
        for cell in broken:
            cell[:] = [""] * (height - len(cell)) + cell if from_below else cell + [""] * (height - len(cell))
        for line in zip(*broken, strict=True):
            aligned = (
                f"{text:<{widths[k]}}" if k in on_left else f"{text:>{widths[k]}}"
                for k, text in zip(columns, line, strict=True)
            )
            yield (" " * GAP).join(aligned).rstrip()

    found = list(lines(header, from_below=True))
    for row in rows:
        found += [paragraph(row)] if isinstance(row, str) else lines(row, from_below=False)
    return "\n".join(found)


def _pieces(text: str) -> list[str]:
    """Where a text may be broken: behind spaces and signs."""
    return re.findall(r"[^ _\-/,=]*[ _\-/,=]+|[^ _\-/,=]+", text) or [""]


def _broken(text: str, width: int) -> list[str]:
    """The lines of a cell; signs that names are joined by stay, a name without any is cut."""
    indent = text[: len(text) - len(text.lstrip())]
    lines, line = [], indent
    for piece in _pieces(text.lstrip()):
        while len((line + piece).rstrip()) > width:
            if line.strip():
                lines.append(line.rstrip())
                line = indent
            else:
                cut = max(width - len(indent), 1)
                lines.append(indent + piece[:cut])
                piece = piece[cut:]
        line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def markdown(text: str) -> str:
    """A page in Markdown for a terminal: its tables in columns of 80 at most, its paragraphs in lines of as many."""
    found: list[str] = []
    rows: list[list[str]] = []
    is_code = False
    for line in [*text.split("\n"), ""]:
        is_row = line.startswith("|") and not is_code
        if is_row:
            rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if rows:
            found.append(table(rows[0], rows[2:]))
            rows = []
        is_code ^= line.startswith("```")
        found.append(line if is_code or not line.strip() else paragraph(line))
    return "\n".join(found[:-1] if found and not found[-1] else found)
