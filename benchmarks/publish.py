"""Publishing what changed: python -m benchmarks.publish [--only bytes,cache,torn,replay,appended,clicks] [--minutes 3]

    bytes    bytes, and seconds to write and to apply, of a delta against the rows touched in a table of a million rows
    cache    requests scored with and without what is kept of their users
    torn     requests over HTTP while deltas are applied as fast as they come: answers that are of no version as a whole
    replay   requests recorded at each version of a stream, replayed by the training code
    appended the same of a stream whose rows are appended, where ids are known from the version on whose rows show them
    clicks   seconds from rows appended to a followed log until a client over HTTP gets another score

Results: benchmarks/NOTES.md.
"""

import argparse
import hashlib
import http.client
import itertools
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

from em3_jax import train
from em3_jax.predict import replay
from em3_jax.serving import deltas, store
from em3_jax.serving.recorder import Recorder
from em3_jax.serving.requests import ScoreRequest, score
from em3_jax.serving.service import Model
from em3_jax.serving.version import Version

PARTS = ("bytes", "cache", "torn", "replay", "appended", "clicks")
ROWS, WIDTH = 1_000_000, 16
HEADER = "user,item,time,label\n"
USERS, ITEMS = 200, 300


def rows(first: int, count: int) -> str:
    """Lines of a log whose first thousand rows name every user and item."""
    draw = np.random.default_rng(first)
    lines = []
    for row in range(first, first + count):
        user, item = (row % USERS, row % ITEMS) if row < 1000 else (draw.integers(USERS), draw.integers(ITEMS))
        lines.append(f"{user},{item},{1_700_000_000 + row * 60},{draw.integers(0, 2)}\n")
    return "".join(lines)


def settings(folder: Path, **stream) -> dict:
    """A small model on IDs alone that follows a log and publishes."""
    from configs import online

    config = online.get_config("id_only")
    config.data.root, config.data.history_length = str(folder / "data"), 20
    config.data.unknown_floor, config.data.batch_size = {}, 100
    config.stream.window, config.stream.follow = "100 examples", str(folder / "mapping.json")
    config.stream.publish, config.stream.publish_platforms = str(folder / "store"), ("cpu",)
    for name, value in stream.items():
        config.stream[name] = value
    return config.to_dict()


def make_log(folder: Path, count: int) -> None:
    (folder / "log.csv").write_text(HEADER + rows(0, count))
    (folder / "mapping.json").write_text(json.dumps({"interactions": str(folder / "log.csv"), "time_unit": "seconds"}))


def make_store(folder: Path, count: int = 2000, **stream) -> Version:
    """The newest version of a stream over a small log."""
    make_log(folder, count)
    train.train(settings(folder, idle_seconds=0.1, **stream), folder / "run")
    return store.open_current(folder / "store")


def of_bytes(folder: Path) -> None:
    version = make_store(folder)
    draw = np.random.default_rng(0)
    arrays = version.arrays | {"table": draw.standard_normal((ROWS, WIDTH), np.float32)}
    facts = {key: one for key, one in version.manifest.items() if key not in deltas.OWN}
    base = Version.made(
        folder, deltas.with_sums(facts, arrays, version.files) | {"version": "0000001"}, arrays, version.files
    )
    params = version.files["params.npz"]
    found = []
    for touched in (0, 100, 1000, 10_000, 100_000):
        table = arrays["table"].copy()
        some = draw.choice(ROWS, touched, replace=False)
        table[some] += 1
        files = version.files | {"params.npz": params[:-1] + b"x"}  # dense parameters go whole
        began = time.perf_counter()
        changes = deltas.difference(base, arrays | {"table": table}, files)
        compared = time.perf_counter() - began
        _, manifest = deltas.write(folder, base, changes, facts)
        written = time.perf_counter() - began
        made = folder / f"delta-{touched}"
        made.mkdir()
        shutil.move(folder / deltas.CHANGES, made)
        content = (made / deltas.CHANGES).read_bytes()
        sizes = {deltas.CHANGES: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
        store.write_json(made / store.MANIFEST, {"format": 1, "version": "0000002", **manifest, "files": sizes})
        began = time.perf_counter()
        applied = deltas.Delta(made).applied_to(base)
        seconds = time.perf_counter() - began
        assert applied["table"].tobytes() == table.tobytes()
        size = sum(path.stat().st_size for path in made.iterdir())
        found.append((touched, size))
        print(
            f"{touched:>7,} rows: {size:>9,} bytes, compared in {compared:.3f} s, written in {written:.3f} s, "
            f"read and applied in {seconds:.3f} s",
            flush=True,
        )
    slope, intercept = np.polyfit(*np.array(found).T, 1)
    print(f"slope {slope:.2f} bytes a row ({4 * WIDTH + 4} are its own), intercept {intercept:,.0f}, of which {len(params):,} "
          "are the parameters")  # fmt: skip


def of_cache(folder: Path) -> None:
    version = make_store(folder)
    draw = np.random.default_rng(0)
    users = [(int(user), draw.integers(0, ITEMS, 200).tolist()) for user in range(50)]
    models = {"kept": Model(version, None), "not kept": Model(version, None, users=0)}
    for candidates in (10, 100, 1000):
        asked = draw.integers(0, ITEMS, candidates).tolist()
        best = dict.fromkeys(models, np.inf)
        for _ in range(5):
            for name, model in models.items():  # in turns: the machine is noisy
                began = time.perf_counter()
                for user, history in users:
                    model.score(user, history, asked)
                best[name] = min(best[name], (time.perf_counter() - began) / len(users))
        said = ", ".join(f"{name} {1e3 * one:.2f} ms" for name, one in best.items())
        print(f"{candidates:>5,} candidates, {len(users[0][1])} events: {said} a request", flush=True)


class Served:
    """A service as a process, and clients of it."""

    def __init__(self, root: Path, *options: str):
        command = [sys.executable, "-m", "em3_jax.serve", "--store", str(root), "--port", "0", "--poll-seconds", "0.1"]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+) ", line)
        assert found, line
        self.port = int(found[1])

    def client(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

        def ask(body: dict) -> dict:
            connection.request("POST", "/score", json.dumps(body))
            return json.loads(connection.getresponse().read())

        return ask

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()


PROBE = {"user": 7, "history": [1, 2, 3], "candidates": [5, 6, 7, 8]}


def of_torn(folder: Path, minutes: float) -> None:
    """Each version is made of the one before by other rows of the table; what it says of a request is computed beside."""
    made, draw, expected = make_store(folder), np.random.default_rng(0), {}
    facts = {key: one for key, one in made.manifest.items() if key not in deltas.OWN}
    model, count, wrong, unknown, versions = Model(made, ()), [0], [], [0], set()
    begun: dict[str, float] = {}  # checksum -> when the writing of its delta began
    seen: dict[str, float] = {}
    expected[made.checksum] = model.score(**PROBE).probability.tolist()
    stop = threading.Event()
    with Served(folder / "store") as served:

        def load() -> None:
            ask = served.client()
            while not stop.is_set():
                answer = ask(PROBE)
                count[0] += 1
                versions.add(answer["checksum"])
                seen.setdefault(answer["checksum"], time.monotonic())
                if answer["checksum"] not in expected:
                    time.sleep(0.5)  # its scores are still being computed here
                    unknown[0] += answer["checksum"] not in expected
                if answer["checksum"] in expected and answer["scores"] != expected[answer["checksum"]]:
                    wrong.append(answer)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        until, deltas_made, version = time.monotonic() + 60 * minutes, 0, made
        while time.monotonic() < until:
            table = version["table"].copy()
            some = np.unique(np.concatenate([version["item_rows"][:, 0], draw.integers(1, len(table), 20)]))
            table[some] = draw.standard_normal((len(some), table.shape[1]))
            with store.writing(folder / "store") as following:
                shutil.rmtree(following, ignore_errors=True)
                following.mkdir()
                began = time.monotonic()
                changes = deltas.difference(version, version.arrays | {"table": table}, version.files)
                following_version, manifest = deltas.write(following, version, changes, facts)
                model = Model(deltas.named(following_version, "next"), (), like=model)
                begun[model.checksum] = began
                expected[model.checksum] = model.score(**PROBE).probability.tolist()
                name = store.publish(folder / "store", manifest, 1000)
                version = deltas.named(following_version, name)
            deltas_made += 1
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{count[0]:,} requests in {minutes:g} minutes, {deltas_made:,} deltas, {len(versions):,} of them answered: "
          f"{len(wrong)} torn, {unknown[0]} of no version")  # fmt: skip
    lag = np.array([seen[one] - begun[one] for one in begun if one in seen])
    print(
        f"from a delta's beginning to an answer by it: median {np.median(lag):.2f} s, p99 {np.quantile(lag, 0.99):.2f} s"
    )


def of_replay(folder: Path, requests: int, **stream) -> None:
    newest, draw = make_store(folder, **stream), np.random.default_rng(0)
    names = store.version_names(folder / "store")
    recorder, model = Recorder(folder / "requests.jsonl"), None
    for name in names:
        version = store.open_version(folder / "store", name, have=model and model.version)
        model = Model(version, (), like=model)
        for _ in range(requests // len(names)):
            user, past = int(draw.integers(USERS + 5)), draw.integers(0, ITEMS + 5, draw.integers(0, 40)).tolist()
            asked = ScoreRequest(user=user, history=past, candidates=draw.integers(0, ITEMS + 5, 10).tolist())
            seen: list = []
            recorder(model, asked, score(model, asked, seen).logit, seen)
    recorder.close()
    began = time.perf_counter()
    found = replay.replay(folder / "run", folder / "store", folder / "requests.jsonl")
    print(
        f"{found.requests:,} requests with {found.candidates:,} candidates at {found.versions} versions up to step "
        f"{newest.manifest['checkpoint']['step']}, replayed in {time.perf_counter() - began:.0f} s: {found.inputs or 'no input'} "
        f"differs, {found.logits} logits differ by more than {replay.TOLERANCE:g}, largest {found.largest:.2g}"
    )
    with open(folder / "requests.jsonl", encoding="utf-8") as lines, open(folder / "some.jsonl", "w") as some:
        some.writelines(itertools.islice(lines, 2000))
    for feature in ("item.item", "history item.item", "user.user"):
        drilled = replay.replay(folder / "run", folder / "store", folder / "some.jsonl", drill=feature)
        print(f"drill {feature}: named {', '.join(drilled.inputs)}")


def of_clicks(folder: Path, growths: int = 6) -> None:
    make_log(folder, 2000)
    (folder / "config.json").write_text(json.dumps(settings(folder, poll_seconds=0.1)))
    program = (
        "import json, sys; from em3_jax import train; train.train(json.loads(open(sys.argv[1]).read()), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(folder / "config.json"), str(folder / "run")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as trainer:
        try:
            while not (folder / "store" / "current").exists() or store.current_name(folder / "store") < "0000020":
                time.sleep(0.2)
            seconds = []
            with Served(folder / "store") as served:
                ask = served.client()
                for number in range(growths):
                    time.sleep(2)
                    before = ask(PROBE)["scores"]
                    began = time.monotonic()
                    with open(folder / "log.csv", "a", encoding="utf-8") as log:
                        log.write(rows(2000 + 100 * number, 100))
                    while ask(PROBE)["scores"] == before:
                        time.sleep(0.02)
                    seconds.append(time.monotonic() - began)
                    print(f"100 rows appended, another score after {seconds[-1]:.2f} s", flush=True)
        finally:
            trainer.kill()
    print(f"median {np.median(seconds):.2f} s, most {max(seconds):.2f} s of {growths}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--requests", type=int, default=20_000)
    args = parser.parse_args()
    run = {
        "bytes": of_bytes, "cache": of_cache, "torn": lambda folder: of_torn(folder, args.minutes), "clicks": of_clicks,
        "replay": lambda folder: of_replay(folder, args.requests),
        "appended": lambda folder: of_replay(folder, args.requests, append=True),
    }  # fmt: skip
    for part in args.only.split(","):
        with tempfile.TemporaryDirectory() as name:
            print(f"--- {part}, load {os.getloadavg()[0]:.1f}", flush=True)
            run[part](Path(name))


if __name__ == "__main__":
    main()
