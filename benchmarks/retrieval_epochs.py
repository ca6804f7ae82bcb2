"""Seconds per epoch and per evaluation, and peak memory, of real retrieval runs: python -m benchmarks.retrieval_epochs

An MMRec folder of random values at the size of Amazon Baby, Sports or TikTok is written and prepared once; then `train.py`
trains each model on it for a few epochs, in a process of its own. Epochs are the log windows between two evaluations, input
included; the first, which compiles, is left out. Results: benchmarks/NOTES.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.retrieval import SIZES, Size, random_pairs
from em3_jax.data.readers.mmrec import mmrec

HELD_OUT = 0.18  # valid and test pairs, each as a share of the training pairs: MMRec's Baby has 0.173 and 0.183


def write_folder(root: Path, size: Size) -> None:
    """<root>/random.inter and the features."""
    held_out = int(HELD_OUT * size.pairs)
    user, item = random_pairs(size, size.pairs + 2 * held_out)
    split = np.repeat([0, 1, 2], [size.pairs, held_out, held_out])
    root.mkdir()
    rows = np.stack([user, item, split], axis=1)
    np.savetxt(root / "random.inter", rows, fmt="%d", delimiter="\t", header="userID\titemID\tx_label", comments="")
    random = np.random.default_rng(0)
    for name, width in size.widths.items():
        np.save(root / f"{name}_feat.npy", random.standard_normal((size.items, width), np.float32))


def measure(data: Path, pairs: int, model: str, epochs: int, workdir: Path) -> str:
    """Trains in a process of its own; a line of the table."""
    options = [f"--config.data.root={data}", f"--config.train.epochs={epochs}.0", f"--workdir={workdir}"]
    process = subprocess.Popen([sys.executable, "train.py", f"--config=configs/retrieval.py:{model}", *options],
                               stdout=subprocess.DEVNULL)  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{model}: train.py failed, see above")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines()]
    training = [line for line in lines if "time/examples_per_second" in line][1:]
    epoch = np.array([pairs / line["time/examples_per_second"] for line in training])
    waiting = np.mean([line["time/input_wait_share"] for line in training])
    evaluation = np.array([line["time/evaluation_seconds"] for line in lines if "time/evaluation_seconds" in line])[1:]
    return (
        f"{model:<17}{epoch.min():>8.2f} s ({np.median(epoch):.2f}){evaluation.min():>9.2f} s ({np.median(evaluation):.2f})"
        f"{waiting:>9.1%}{usage.ru_maxrss / 1e6:>9.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="baby,sports")
    parser.add_argument("--models", default="lightgcn,freedom,em3")
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    for name in args.sizes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_folder(root / "source", SIZES[name])
            data = mmrec(root / "data", source=root / "source").root
            print(
                f"\n{name}: minimum (median) of {args.epochs - 1} epochs and evaluations, waiting for input, peak memory"
            )
            for model in args.models.split(","):
                print(measure(data, SIZES[name].pairs, model, args.epochs, root / model), flush=True)


if __name__ == "__main__":
    main()
