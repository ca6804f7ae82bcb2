"""What a followed stream holds on to: resident memory after each growth of its log.

    python -m benchmarks.stream_memory --growths 30

A log of 2,000 rows grows by 200 rows, and by new users and items, as often as asked. Each growth makes the dataset anew and
compiles the programs for it. Memory is measured when the growth has been trained on, after a garbage collection.
"""

import argparse
import contextlib
import gc
import io
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from configs import online as online_config
from em3_jax import train
from em3_jax.data import follow


def rows(first: int, count: int) -> str:
    """Lines of the log."""
    random = np.random.default_rng(first)
    return "".join(
        f"u{random.integers(0, 200 + row // 20)},i{random.integers(0, 300 + row // 20)},{1_700_000_000 + row * 60},"
        f"{random.integers(0, 2)}\n"
        for row in range(first, first + count)
    )


def resident() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def measure(growths: int, model: str, folder: Path) -> list[float]:
    """MB after each growth.

    Args:
      model: of configs/online.py, one without content.
      folder: an empty one.
    """
    log, mapping = folder / "log.csv", folder / "mapping.json"
    log.write_text("user,item,time,label\n" + rows(0, 2000))
    mapping.write_text(json.dumps({"interactions": str(log)}))
    config, found = online_config.get_config(model), []
    config.data.root, config.data.history_length = str(folder / "data"), 20
    config.data.unknown_floor = {}
    config.stream.window, config.stream.follow = "200 examples", str(mapping)

    def wait(self, interrupts) -> str:
        gc.collect()
        found.append(resident())
        if len(found) > growths:
            return "enough"
        with open(log, "a", encoding="utf-8") as file:
            file.write(rows(2000 + 200 * (len(found) - 1), 200))
        return ""

    follow.Follower.wait = wait
    with contextlib.redirect_stdout(io.StringIO()):
        train.train(config.to_dict(), folder / "run")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growths", type=int, default=30)
    parser.add_argument("--model", default="id_only", choices=("id_only",))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.growths, args.model, Path(folder))
    for number, memory in enumerate(found):
        print(f"growth {number:>3}  {memory:8.1f} MB")
    later = found[len(found) // 3 :]
    slope = np.polyfit(np.arange(len(later)), later, 1)[0] if len(later) > 1 else float("nan")
    print(f"of the last {len(later)}: {slope:+.2f} MB a growth; live arrays {len(jax.live_arrays()):,}")


if __name__ == "__main__":
    main()
