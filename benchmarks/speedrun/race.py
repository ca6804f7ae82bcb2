"""One run of a contender: a process that is started, watched evaluation by evaluation, and measured.

The clock starts before the process, so that the interpreter, imports and compilation count. A rival reports scores, see
rivals/protocol.py, and is told whether to go on; ours is `python train.py` as a user types it, whose lines say when it
has evaluated and whose metrics.jsonl what; it is killed at the target, as startup.py does.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from em3_jax import metrics

OF_JAX = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
EVALUATED = re.compile(r"step\s+[\d,]+\s+valid ")
TARGET, CONVERGED, LIMIT = "target", "converged", "limit"


@dataclasses.dataclass
class Run:
    """What a run took.

    Attributes:
      ended: "target"; "converged", when it stopped by itself before; "limit" of time; or why it failed, in one line.
      best: highest validation AUC seen; NaN before the first evaluation.
      evaluations: number of them.
      seconds: by the clock to the target, or to the end where it was not reached.
      processor: seconds of all cores, user and system, of the process and the children it has waited for.
      peak_bytes: largest resident set of any single process of it.
      speed: examples/s of the training loop, evaluation left out: the median over reports, without the first.
      preparing: seconds from the raw files to what it trains on; None where there are no raw files.
      load: the machine's, over the minute in which the run ended.
    """

    ended: str
    best: float = float("nan")
    evaluations: int = 0
    seconds: float = 0.0
    processor: float = 0.0
    peak_bytes: int = 0
    speed: float = float("nan")
    preparing: float | None = None
    load: float = 0.0


def environment_of(caches: str, python_path: str = "") -> dict[str, str]:
    """The variables of a contender's process: no compiled programs kept from before, nothing of ours on its path."""
    out = {name: value for name, value in os.environ.items() if name not in (*OF_JAX, "PYTHONPATH", "VIRTUAL_ENV")}
    out |= {"XDG_CACHE_HOME": caches, "TORCHINDUCTOR_CACHE_DIR": f"{caches}/inductor", "PYTHONUNBUFFERED": "1"}
    return out | ({"PYTHONPATH": python_path} if python_path else {})


def judge(labels: np.ndarray, scores: Path) -> float:
    """The AUC of the scores in a file against the labels [rows].

    Raises:
      ValueError: there are not as many, or some are no numbers.
    """
    found = np.load(scores)
    if found.shape != labels.shape or not np.isfinite(found).all():
        raise ValueError(f"{found.shape} scores for {len(labels)} rows of validation, or not all of them are numbers")
    return metrics.auc(labels, found)


class Rival:
    """Reads the reports of a process that follows rivals/protocol.py.

    Args:
      work: the folder of scores.npy.
      labels: [rows] of validation, in their order.
    """

    def __init__(self, work: Path, labels: np.ndarray):
        self._work, self._labels, self._speeds = work, labels, []

    def auc(self, line: str) -> float | None:
        """Of the evaluation that a line of its output reports; None where it reports none."""
        if not line.startswith('{"event"'):
            return None
        report = json.loads(line)
        self._speeds.append(report["examples"] / report["training_seconds"])
        return judge(self._labels, self._work / "scores.npy")

    def answer(self, process: subprocess.Popen, go_on: bool) -> None:
        """Tells it whether to go on; it ends by itself, having waited for its workers."""
        process.stdin.write("go on\n" if go_on else "stop\n")
        process.stdin.flush()

    def speed(self) -> float:
        return float(np.median(self._speeds[1:] or self._speeds)) if self._speeds else float("nan")


class Ours:
    """Reads the lines and the log of `python train.py`.

    Args:
      workdir: of the run.
    """

    def __init__(self, workdir: Path):
        self._log = workdir / "metrics.jsonl"

    def _lines(self, name: str) -> list[float]:
        lines = (json.loads(line) for line in self._log.read_text().splitlines()) if self._log.exists() else ()
        return [line[name] for line in lines if name in line]

    def auc(self, line: str) -> float | None:
        return self._lines("valid/auc")[-1] if EVALUATED.match(line) else None

    def answer(self, process: subprocess.Popen, go_on: bool) -> None:
        if not go_on:
            process.send_signal(signal.SIGKILL)

    def speed(self) -> float:
        speeds = self._lines("time/examples_per_second")
        return float(np.median(speeds[1:] or speeds)) if speeds else float("nan")  # the first holds the compilation


def prepare(commands: Sequence[Sequence[object]], python_path: str, cores: int) -> float:
    """Runs the commands that make of raw files what a contender trains on. Seconds by the clock.

    Raises:
      RuntimeError: one failed; the message is its last line.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as caches:
        for command in commands:
            done = subprocess.run(
                [str(part) for part in command], env=environment_of(caches, python_path), capture_output=True, text=True,
                preexec_fn=lambda: _pin(cores),
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(_last_line(done.stderr))
    return time.perf_counter() - start


def train(
    command: Sequence[object],
    reader: Rival | Ours,
    messages: Path,
    *,
    target: float,
    limit: float,
    cores: int,
    python_path: str = "",
    cwd: Path | None = None,
) -> Run:
    """Runs a training command until its validation AUC reaches the target, it ends, or the limit comes.

    Args:
      reader: of its output.
      messages: file for its stderr.
      target: AUC; infinite = until it ends by itself.
      limit: seconds.
      cores: that it may use; of all contenders the same ones.
      python_path: for its imports.
    """
    run = Run(CONVERGED)
    with tempfile.TemporaryDirectory() as caches, open(messages, "w", encoding="utf-8") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment_of(caches, python_path), cwd=cwd, start_new_session=True, preexec_fn=lambda: _pin(cores),
        )  # fmt: skip
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, expire)
        timer.start()
        try:
            _watch(process, reader, run, target, began)
        except BrokenPipeError:
            pass  # it ended while it was answered; its exit code says how
        except (OSError, ValueError) as error:  # its scores are none
            run.ended = str(error)
            os.killpg(process.pid, signal.SIGKILL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        timer.cancel()
        if run.ended != TARGET:
            run.seconds = time.perf_counter() - began
        for pipe in (process.stdin, process.stdout):
            _close(pipe)
    if expired.is_set():
        run.ended = LIMIT if run.ended != TARGET else TARGET
    elif run.ended == CONVERGED and process.returncode:
        run.ended = f"exit code {process.returncode}: {_last_line(messages.read_text())}"
    run.processor, run.peak_bytes, run.speed = used.ru_utime + used.ru_stime, used.ru_maxrss << 10, reader.speed()
    run.load = os.getloadavg()[0]
    return run


def _watch(process: subprocess.Popen, reader: Rival | Ours, run: Run, target: float, began: float) -> None:
    """Fills in the run from the process's output."""
    for line in process.stdout:
        auc = reader.auc(line)
        if auc is None or run.ended == TARGET:
            continue
        run.best = auc if np.isnan(run.best) else max(run.best, auc)
        run.evaluations += 1
        if auc >= target:
            run.ended, run.seconds = TARGET, time.perf_counter() - began
        reader.answer(process, go_on=run.ended != TARGET)


def _pin(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _close(pipe) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass  # it ended before it read the last answer


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def check_rows(labels: np.ndarray, ours: np.ndarray) -> None:
    """Both sides validate on the same rows.

    Raises:
      ValueError: they do not.
    """
    if not np.array_equal(labels, ours):
        raise ValueError("the rivals' rows of validation are not ours: their labels differ")
