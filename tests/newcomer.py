"""Types the commands of README.md and docs/training.md, as a stranger would, on a fresh clone.

    python -m tests.newcomer                # minutes; em3 verdict is the longest
    python -m tests.newcomer --movielens <folder with GroupLens' u.data, u.item, u.user>
    python -m tests.newcomer --examples     # those at the heads of examples as well

Needs nothing but Python 3.11 or 3.12, git, make and the package index. The clone is of the last
commit, in an empty folder, with a home folder of its own; the commands are read from the pages, in
their order. Long ones are shortened and what cannot be fetched is stood in for, by `SHORTER` and
`write_stand_ins` alone. Prints what each command took; exit code 1, and the output, at the first
that fails.
"""

import argparse
import csv
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import page_commands

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/training.md")  # the second goes on in the environment of the first
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".sh"))
# What a command is, and what is typed in its place; "" leaves it out.
SHORTER = {
    r"^make demo$": r"make demo OPTIONS=--config.train.epochs=1",
    r"^make test$": "",  # what CI runs on every commit
    r"^(python train\.py .*)$": r"\1 --config.train.epochs=0.5",
    r"^(em3 verdict .*)--budget 15min(.*)$": r"\1--budget 2min\2",
    r"^make \.venv/installed-test$": "",  # torch and compilers, for tests and for the next command
    r"^(bash examples/plan_pod\.sh) .*$": r"\1 cpu:8",
}
MADE = ("data", "runs", "reports")  # by the commands of a page; the next page begins without
WORDS = "star night river city dog winter king train garden letter island summer".split()
GENRES, USERS, MOVIES, RATINGS = 19, 80, 120, 4000


def shortened(command: str) -> str:
    """The command as it is typed here."""
    for pattern, replacement in SHORTER.items():
        if re.search(pattern, command):
            return re.sub(pattern, replacement, command)
    return command


def write_stand_ins(folder: Path, movielens: Path | None) -> None:
    """What the pages take as given: the unzipped ml-100k, and a log of one's own as CSV files.

    Args:
      folder: the clone.
      movielens: GroupLens' folder; None = a planted one in its form, much smaller.
    """
    draw = random.Random(0)
    if movielens is not None:
        (folder / "ml-100k").symlink_to(movielens.resolve())
    else:
        write_movielens(folder / "ml-100k", draw)
    titles = {f"S{n}": " ".join(draw.sample(WORDS, 2)) for n in range(60)}
    rows = []
    for n in range(2000):
        user, item = draw.randrange(50), draw.choice(list(titles))
        chance = 0.8 if WORDS[user % len(WORDS)] in titles[item] else 0.2
        rows.append((f"U{user}", item, int(draw.random() < chance), 1_700_000_000 + 60 * n))
    with open(folder / "items.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("item", "title"), *titles.items()])
    with open(folder / "clicks.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("user", "item", "label", "time"), *rows])


def write_movielens(folder: Path, draw: random.Random) -> None:
    """A planted folder in the form of ml-100k."""
    folder.mkdir()
    users, movies, ratings = [], [], []
    for n in range(1, USERS + 1):
        users.append(f"{n}|{draw.randint(18, 60)}|M|writer|55117")
    for n in range(1, MOVIES + 1):
        title = " ".join(draw.sample(WORDS, 2))
        flags = "|".join(str(int(draw.random() < 0.15)) for _ in range(GENRES))
        movies.append(f"{n}|{title} (1995)|01-Jan-1995||http://x|{flags}")
    for n in range(RATINGS):
        user, movie, stars = (draw.randint(1, most) for most in (USERS, MOVIES, 5))
        ratings.append(f"{user}\t{movie}\t{stars}\t{880_000_000 + 60 * n}")
    for name, lines in (("u.user", users), ("u.item", movies), ("u.data", ratings)):
        (folder / name).write_text("\n".join(lines) + "\n", "latin-1")


def environment(home: Path) -> dict[str, str]:
    """That of a new user: what is set for this checkout and for JAX is left out."""
    own = re.compile(r"^(PYTHON|VIRTUAL_ENV|JAX|XLA|EM3|PYENV|MAKE)")
    kept = {name: value for name, value in os.environ.items() if not own.match(name)}
    python = Path(sys._base_executable).resolve()
    home.mkdir()
    path = f"{python.parent}:/usr/local/bin:/usr/bin:/bin"
    return kept | {"HOME": str(home), "PATH": path, "PYTHON": str(python)}


def typed(command: str, folder: Path, env: dict[str, str]) -> float:
    """Seconds that the command took; exits where it fails."""
    activated = "source .venv/bin/activate && " if env.get("ACTIVATED") else ""
    began = time.monotonic()
    line = ["bash", "-c", f"set -o pipefail; exec 2>&1; {activated}{command}"]
    done = subprocess.run(line, cwd=folder, env=env, stdout=subprocess.PIPE)
    if done.returncode:
        print(done.stdout.decode(errors="replace"), flush=True)
        sys.exit(f"failed with {done.returncode}: {command}")
    return time.monotonic() - began


def type_all(name: str, commands: list[str], folder: Path, env: dict[str, str]) -> None:
    """Types commands in turn, and prints what each took; `source` counts for all that follow."""
    print(name)
    for command in commands:
        if command.startswith("source "):
            env["ACTIVATED"] = "1"
        if line := shortened(command):
            print(f"{typed(line, folder, env):7.1f} s  {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--movielens", type=Path, help="the unzipped ml-100k (default: planted)")
    parser.add_argument("--folder", type=Path, help="an empty one (default: one that is removed)")
    parser.add_argument("--examples", action="store_true", help="also the heads of examples")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        clone = place / "em3_jax"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        write_stand_ins(clone, given.movielens)
        env = environment(place / "home")
        for page in PAGES:
            subprocess.run(["rm", "-rf", *MADE], cwd=clone, check=True)
            type_all(page, page_commands.of_page(clone / page), clone, env)
        for example in EXAMPLES if given.examples else ():
            type_all(example.name, page_commands.of_head(example), clone, env)


if __name__ == "__main__":
    main()
