"""Speed of export and serving: python -m benchmarks.serving [--only export,lookup,score,http]

Planted data: N 6 tokens 768 wide, D 64, T 50; a run that was not trained, as nothing here depends on its numbers. Targets on
2 cores: 50 k items/s exported, 5 M embeddings/s looked up from 1 M x 128, 500 candidates scored with p99 of 25 ms in process
and 40 ms over HTTP with 4 clients. Results: benchmarks/NOTES.md.
"""

import argparse
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from configs import base
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.export import command as export
from em3_jax.serving import id_index, store
from em3_jax.serving.service import Model
from em3_jax.training import experiment, rundir
from em3_jax.training.checkpoint import Checkpoints

PARTS = ("export", "lookup", "score", "http")
CANDIDATES, CLIENTS = 500, 4


def make_run(folder: Path, items: int) -> Path:
    """A run with a checkpoint of its fresh state."""
    sizes = {"image_tokens": 4, "text_tokens": 2, "token_width": 768}
    synthetic(folder / "data", items=items, users=2000, interactions=40_000, **sizes)
    config = base.ranking()
    config.data.root, config.data.features = str(folder / "data"), ("image", "text")
    config = config.to_dict()
    parts = experiment.build(config)
    run, data_hash = folder / "run", parts.work.dataset.meta["data_hash"]
    rundir.claim(run, parts.config, data_hash, parts.feature_hashes)
    checkpoints = Checkpoints(run, data_hash)
    checkpoints.save("best", parts.program.init(), {})
    checkpoints.wait()
    return run


def percentiles(seconds: list[float]) -> str:
    p50, p99 = np.percentile(1e3 * np.array(seconds), (50, 99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {len(seconds):,} requests"


def time_export(run: Path, root: Path) -> None:
    for number in range(3):
        began, processor = time.perf_counter(), time.process_time()
        done = export.export(run, root, export.Settings(platforms=("cpu",)))
        whole, processor = time.perf_counter() - began, time.process_time() - processor
        print(
            f"export {number}: {done.encoded:,} items at {done.encoded / done.seconds:,.0f} items/s; the whole of it "
            f"{whole:.1f} s, {processor:.1f} s of processor time, load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
    done = export.export(run, root, export.Settings(platforms=("cpu",), update=True))
    print(f"update without a change: {done.reused / done.seconds:,.0f} items/s checked", flush=True)


def time_lookup(root: Path, repeats: int = 30) -> None:
    """From a version whose embeddings are exchanged for 1 M x 128."""
    items, width, asked = 1_000_000, 128, 100_000
    first, random = store.open_current(root), np.random.default_rng(0)
    ids = {
        "dense integers": np.arange(items),
        "64-bit integers": random.integers(1 << 62, size=items),
        "texts": np.array([f"item-{k:09d}" for k in range(items)]),
    }
    for name, all_ids in ids.items():
        with store.writing(root) as folder:
            shutil.copytree(first.folder, folder)
            (folder / store.MANIFEST).unlink()
            index = id_index.build(all_ids)
            np.save(folder / "item_words.npy", index.words)
            np.save(folder / "item_slots.npy", index.slots)
            np.save(folder / "looked_up.content.npy", random.standard_normal((items + 1, width), np.float32))
            facts = first.manifest["serving"] | {"item_ids": "text" if index.is_text else "integer"}
            kept = {key: value for key, value in first.manifest.items() if key not in ("format", "version", "files")}
            store.publish(root, kept | {"serving": facts}, keep=10)
        model = Model(store.open_current(root))
        seconds = []
        for _ in range(repeats):
            some = all_ids[random.integers(items, size=asked)]
            began = time.perf_counter()
            model.lookup(some)
            seconds.append(time.perf_counter() - began)
        best, median = asked / min(seconds) / 1e6, asked / np.median(seconds) / 1e6
        print(f"lookup, {name}: {best:.1f} M embeddings/s at best, median {median:.1f}", flush=True)
    (root / "current").write_text(first.name)


def requests(model: Model, count: int) -> list[dict]:
    random, items = np.random.default_rng(1), model.manifest["counts"]["items"]
    some = lambda size: model.items.ids(random.integers(items, size=size))  # noqa: E731
    return [
        {"user": user, "history": some(50), "candidates": some(CANDIDATES), "context": {"slot": 2}}
        for user in model.users.ids(random.integers(model.manifest["counts"]["users"], size=count))
    ]


def time_scores(root: Path, count: int = 1000) -> None:
    model = Model(store.open_current(root), sizes=(512,))
    seconds = []
    for request in requests(model, count):
        began = time.perf_counter()
        model.score(**request)
        seconds.append(time.perf_counter() - began)
    print(f"score in process, {CANDIDATES} candidates, T 50: {percentiles(seconds)}", flush=True)


def time_http(root: Path, count: int = 400) -> None:
    """Each of `CLIENTS` threads sends `count` requests over one connection, the next when the last is answered."""
    bodies = [json.dumps(request).encode() for request in requests(Model(store.open_current(root)), count)]
    command = [sys.executable, "-m", "em3_jax.serve", "--store", str(root), "--port", "0"]
    seconds: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        port = int(re.search(r":(\d+) ", process.stdout.readline())[1])

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            for k, body in enumerate(bodies):
                began = time.perf_counter()
                connection.request("POST", "/score", body)
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                if k >= count // 10:
                    seconds.append(time.perf_counter() - began)

        clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
        began = time.perf_counter()
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        rate = CLIENTS * count / (time.perf_counter() - began)
        process.terminate()
    print(f"score over HTTP, {CLIENTS} clients: {percentiles(seconds)}, {rate:.0f} requests/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="some of " + ", ".join(PARTS))
    parser.add_argument("--items", type=int, default=100_000)
    args = parser.parse_args()
    chosen = args.only.split(",") if args.only else PARTS
    with tempfile.TemporaryDirectory(prefix="em3-serving-") as name:
        folder = Path(name)
        run, root = make_run(folder, args.items), folder / "store"
        if "export" in chosen:
            time_export(run, root)
        else:
            export.export(run, root, export.Settings(platforms=("cpu",)))
        for part, function in (("score", time_scores), ("http", time_http), ("lookup", time_lookup)):
            if part in chosen:
                function(root)


if __name__ == "__main__":
    main()
