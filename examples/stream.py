"""A model that learns from a stream, and a service that follows, a moment behind the last click.

    em3 prepare synthetic --drift 1 --arrivals 0.5 --cold-share 0 --interactions 6000 --users 200 \
        --items 200 --out runs/examples/drift --overwrite
    python examples/stream.py runs/examples/drift runs/examples/stream
    em3 curves em3=runs/examples/stream/run --out runs/examples/stream/curves.png

Windows of 1,000 examples are scored, then trained on; each publishes a version, the first one whole
and those after it as deltas. Over HTTP the same: em3 serve --store runs/examples/stream/store.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from em3_jax import Service

LONGEST = 600  # seconds to wait for the first version


def train(data: str, run: Path, store: Path) -> subprocess.Popen:
    """`em3 train` on the stream, in a process of its own."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "em3_jax", "train", "--config=configs/online.py:em3"),
            *(f"--config.data.root={data}", f"--workdir={run}"),
            *("--config.stream.window=1000 examples", "--config.data.history_length=20"),
            *(f"--config.stream.publish={store}", "--config.stream.publish_platforms=cpu"),
        ]
    )


def first_version(store: Path, trainer: subprocess.Popen) -> None:
    """Returns when the store has a version."""
    end = time.monotonic() + LONGEST
    while not (store / "current").exists():
        if trainer.poll() is not None or time.monotonic() > end:
            sys.exit(f"{store}: no version was published")
        time.sleep(0.2)


def main(data: str, out: Path) -> None:
    run, store = out / "run", out / "store"
    trainer = train(data, run, store)
    first_version(store, trainer)
    seen = ""
    with Service(store, poll_seconds=0.2) as service:
        while True:
            ended = trainer.poll() is not None
            service.refresh()
            model = service.model  # one version, whole, also while the next one is published
            if model.name != seen:
                scores = model.score(user=1, history=[21, 34, 55], candidates=[2, 3, 5])
                said = "  ".join(f"{p:.4f}" for p in scores.probability)
                print(f"served: version {model.name}, p(click) {said}", flush=True)
                seen = model.name
            if ended:
                break
            time.sleep(0.2)
    windows = [json.loads(line) for line in (run / "stream.jsonl").read_text("utf-8").splitlines()]
    print(f"{len(windows)} windows, each scored before it was trained on; now at version {seen}")
    sys.exit(trainer.returncode)


if __name__ == "__main__":
    given = dict(enumerate(sys.argv[1:]))
    main(given.get(0, "runs/examples/drift"), Path(given.get(1, "runs/examples/stream")))
