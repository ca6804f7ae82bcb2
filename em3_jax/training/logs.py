"""What a run writes while it goes: metrics.jsonl or stream.jsonl, TensorBoard events, and lines on the terminal."""

import json
import math
import os
import sys
from pathlib import Path

import jax
import numpy as np

from em3_jax.core import strict_json, terminal, trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.curve import CURVE, read_curve


class MetricWriter:
    """Appends {"step": ..., name: value, ...} lines to <workdir>/metrics.jsonl and the same to TensorBoard.

    Args:
      workdir: the run's folder.
      step: the step the run goes on from; lines of later steps, which it will write again, are dropped.
    """

    def __init__(self, workdir: Path, step: int):
        self._path = workdir / "metrics.jsonl"
        kept = []
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the half line of a killed run
                if record["step"] <= step:
                    kept.append(line + "\n")
        self._path.write_text("".join(kept), encoding="utf-8")
        self._file = open(self._path, "a", encoding="utf-8")
        self._events = _Events(workdir, step)

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.write(strict_json.dumps({"step": step} | values) + "\n")
        self._file.flush()
        self._events.write(step, values)

    def close(self) -> None:
        self._file.close()
        self._events.close()


class StreamWriter:
    """Appends a line a window to <workdir>/stream.jsonl and the same to TensorBoard, at the step after the window.

    Args:
      workdir: the run's folder.
      start: the window that the run goes on from; lines from it on, which will be written again, are dropped.
      step: the step that it goes on from.
    """

    def __init__(self, workdir: Path, start: int, step: int):
        self._path = workdir / CURVE
        kept = [line for line in read_curve(self._path) if line["window"] < start] if self._path.exists() else []
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(strict_json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self._path)
        self._events = _Events(workdir, step)

    def write(self, record: dict) -> None:
        """A window's record: numbers by name, of a slice in a dict of its own; "step" is the step after it."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(record) + "\n")
        of_slices = {name: one for name, one in record.items() if isinstance(one, dict)}
        values = {name: one for name, one in record.items() if name not in of_slices and name != "step"}
        values |= {f"{name}/{key}": one for name, of in of_slices.items() for key, one in of.items()}
        self._events.write(record["step"], values)

    def close(self) -> None:
        self._events.close()


class _Events:
    """TensorBoard's events of a run that goes on from a step."""

    def __init__(self, workdir: Path, step: int):
        self._writer = _tensorboard().SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):  # an undefined metric is null in the file and a gap in the curve
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _tensorboard():
    """tensorboardX without torch, which it imports where that is installed: 2.5 s of every start, for type annotations alone."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX


class NoWriter:
    """In the place of a `MetricWriter`, in processes that do not write."""

    def write(self, step: int, values: dict[str, float]) -> None:
        pass

    def close(self) -> None:
        pass


def window_means(
    window: list[dict[str, jax.Array]], state: State, checkpoints: Checkpoints, first: int, last: int
) -> dict[str, float]:
    """{"train/name": mean} over the scalars of the steps `first` to `last`, fetched from the device.

    Raises:
      UserError: a loss or a norm is not finite.
    """
    fetched = jax.device_get(window)
    values = {name: np.concatenate([np.atleast_1d(aux[name]) for aux in fetched]) for name in fetched[0]}
    bad = sorted(n for n, array in values.items() if n.endswith(("loss", "norm")) and not np.isfinite(array).all())
    if bad:
        parameters = trees.non_finite({"params": state.params, "tables": state.tables})
        checkpoints.wait()
        kept = checkpoints.steps("latest")
        raise UserError(
            f"non-finite between steps {first} and {last}: {', '.join(bad)}"
            f"{'; parameters: ' + ', '.join(parameters[:5]) if parameters else ''}; "
            f"{f'the checkpoint of step {kept[-1]} is kept' if kept else 'no checkpoint yet'}; "
            "lower the learning rates (config.optim, config.tables) or check the data"
        )
    return {f"train/{name}": _mean(array) for name, array in values.items()}


def _mean(values: np.ndarray) -> float:
    """The mean of those that are defined: a step without an anchor, say, has no accuracy."""
    defined = values[~np.isnan(values)]
    return float(np.mean(defined)) if len(defined) else float("nan")


def attention_entropies(means: dict[str, float]) -> str:
    """ "entropy id 3.10/3.49  content 3.24/3.49": of each attention's weights, and of uniform ones; "" without any.

    Args:
      means: of `window_means`.
    """
    names = [name for name in sorted(means, reverse=True) if name.endswith("_attention_entropy")]
    shown = (
        f"  {name.removeprefix('train/').removesuffix('_attention_entropy')} "
        f"{means[name]:.2f}/{means[f'{name}_uniform']:.2f}"
        for name in names
    )
    return "entropy" + "".join(shown)[1:] if names else ""


def parameter_table(state: State, frozen: dict[str, bool]) -> str:
    """A table of what the model is made of: parameters trainable and frozen by part, table rows, bytes.

    Args:
      state: the state (arrays or shapes).
      frozen: parameter name -> whether it is frozen.
    """
    parts: dict[str, list[int]] = {}
    for name, leaf in trees.named_leaves(state.params).items():
        part = parts.setdefault("/".join(name.split("/")[:2]), [0, 0, 0])
        part[1 if frozen[name] else 0] += leaf.size
        part[2] += leaf.size * leaf.dtype.itemsize
    rows = [
        [name, f"{trainable:,}", f"{fixed:,}", _bytes(size)] for name, (trainable, fixed, size) in sorted(parts.items())
    ]
    slots = trees.num_bytes(state.opt_state)
    if state.tables:
        embedding = state.tables["embedding"]
        length, width = embedding.shape
        label = f"ID table, {length:,} rows x {width}"
        rows.append([label, f"{embedding.size:,}", "0", _bytes(trees.num_bytes(embedding))])
        slots += trees.num_bytes(state.tables["slots"])
    if state.memory:
        length, width = state.memory["vector"].shape
        label = f"memory bank, {length:,} rows x {width}"
        rows.append([label, "", "", _bytes(trees.num_bytes(state.memory))])
    rows.append(["optimizer state", "", "", _bytes(slots)])
    rows.append(["all", "", "", _bytes(trees.num_bytes(state))])
    return terminal.table(["part", "trainable", "frozen", "bytes"], rows)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
