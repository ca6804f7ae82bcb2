"""From the command to the first logged step: without compiled programs and with those of the run before.

    python -m benchmarks.startup --data data/synthetic --against <checkout>

In turns with another checkout, which has the same environment and its own defaults. A process is started, the first line
of its metrics.jsonl ends the time, and it is killed. The cache of compiled programs is a fresh folder in each turn.
Results: benchmarks/NOTES.md.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
OF_JAX = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


class Start(NamedTuple):
    """Seconds from the command to the first logged step.

    Attributes:
      seconds: by the clock.
      processor: of all cores, user and system.
    """

    seconds: float
    processor: float


def start(checkout: Path, options: list[str], work: Path) -> Start:
    """Starts a run of a checkout, and ends it after its first step.

    Args:
      options: of train.py.
      work: a folder, for the run and for what is kept of compiled programs.
    """
    run = work / "run"
    shutil.rmtree(run, ignore_errors=True)
    environment = {name: value for name, value in os.environ.items() if name not in OF_JAX}
    environment |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(work / ("own" if checkout == ROOT else "other"))}
    command = [sys.executable, "train.py", *options, "--config.train.log_every=1", f"--workdir={run}"]
    log, messages = run / "metrics.jsonl", work / "messages.txt"
    with open(messages, "w", encoding="utf-8") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=file, stderr=file)
        while not (log.exists() and b"\n" in log.read_bytes()):
            time.sleep(0.01)
            if process.poll() is not None:
                raise SystemExit(f"{checkout}: the run ended before its first step: {messages.read_text()}")
        seconds = time.perf_counter() - began
        process.send_signal(signal.SIGKILL)
        _, _, used = os.wait4(process.pid, 0)
        process.returncode = -signal.SIGKILL
    return Start(seconds, used.ru_utime + used.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset of the recipe")
    parser.add_argument("--config", default="configs/em3_synthetic.py", help="a recipe that both checkouts have")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    options = [f"--config={args.config}", f"--config.data.root={args.data.resolve()}"]
    found: dict[str, list[Start]] = {}
    for repeat in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            turns = [("first run", ROOT), ("second run", ROOT)]
            turns += [("against", args.against.resolve())] if args.against else []
            for name, checkout in turns if repeat % 2 else [*turns[2:], *turns[:2]]:
                found.setdefault(name, []).append(start(checkout, options, Path(folder)))
                print(f"{repeat + 1}: {name:<10} {found[name][-1].seconds:6.2f} s", flush=True)
    print(f"load {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores")
    for name, starts in found.items():
        line = f"{name:<10}"
        for unit, values in zip(("s", "processor s"), zip(*starts, strict=True), strict=True):
            line += f"  {statistics.median(values):6.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
            if other := [getattr(one, Start._fields[unit != "s"]) for one in found.get("against", ())]:
                line += f" = {statistics.median(map(float.__truediv__, values, other)):.2f} x"
        print(line)


if __name__ == "__main__":
    main()
