"""What recipes on planted data cost: the commands at their heads, each with its time and peak memory.

    python -m benchmarks.recipes em3_synthetic lemur --out /tmp/recipes

Runs the commands that make the data, and then each command that trains, in its own process, with
the recipe's settings. A line a command: seconds on the clock, seconds of the processors, the
largest memory of its process. The load of the machine is printed beside, since others' work makes
the first of these longer.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAKES = ("em3 prepare synthetic", "em3 shop", "em3 prepare table --mapping shop/shop.toml")


def commands(recipe: str) -> tuple[list[str], list[str]]:
    """(those that make data, those that train) at the head of configs/<recipe>.py."""
    head = (ROOT / "configs" / f"{recipe}.py").read_text("utf-8").split('"""')[1]
    lines = re.sub(r"\\\n\s*", "", head).splitlines()
    trains = [line for line in lines if line.startswith("python train.py") and "<" not in line]
    return [line for line in lines if line.startswith(MAKES)], trains


def measured(command: str, out: Path) -> tuple[float, float, float]:
    """(seconds on the clock, seconds of processors, peak bytes) of a command, called in `out`."""
    words = shlex.split(command)
    called = words[1:] if words[0] == "em3" else ["train", *words[2:]]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "em3_jax", *called, "--quiet"], cwd=out, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: failed")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names of files in configs/")
    parser.add_argument("--out", type=Path, help="an empty folder for data and runs (default: a temporary one)")
    parser.add_argument("--only", default="", help="train with the commands that have this text alone")
    args = parser.parse_args()
    for recipe in args.recipes:
        with tempfile.TemporaryDirectory(dir=args.out) as folder:
            (Path(folder) / "configs").symlink_to(ROOT / "configs")
            makes, trains = commands(recipe)
            if not makes or not trains:
                raise SystemExit(f"{recipe}: its head has no planted data; give another recipe")
            for command in [*makes, *(one for one in trains if args.only in one)]:
                clock, processors, peak = measured(command, Path(folder))
                load = os.getloadavg()[0]
                print(
                    f"{command}\n  {clock:.0f} s, {processors:.0f} s of processors, {peak / 1e9:.1f} GB, load {load:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
