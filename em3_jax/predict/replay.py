"""Trained = served: em3 replay --workdir runs/stream --store store/ --requests requests.jsonl

Requests that `em3 serve --record requests.jsonl` has recorded are made once more by the training code, at the version that
answered: ids, fields and histories become the inputs of a training batch, these are compared with what the service asked its
compiled model, and the run's own model scores them. Each feature that differs is named, with how often and where first;
logits have to be equal to 1e-6. The exit code is 1 where anything differs. --drill item.category breaks a feature of the record
on purpose, to see that it is found.
"""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from em3_jax import cli
from em3_jax.core import npy, paths, terminal, trees
from em3_jax.core.batch import CLICKS, REQUEST
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.labels import parted
from em3_jax.core.types import Batch
from em3_jax.data.buckets import Buckets
from em3_jax.data.format import Dataset
from em3_jax.export.model import PARAMS
from em3_jax.export.rounding import FOUND, OnLookedUp
from em3_jax.predict.as_published import OfAppended, OfWhole, opened
from em3_jax.predict.recorded import OF_EVENTS, Recorded, read
from em3_jax.predict.rows import with_unknown
from em3_jax.serving import store
from em3_jax.serving.vectors import PREFIX, SCALE, Vectors, hash_rows, stored
from em3_jax.serving.version import Version
from em3_jax.training import step
from em3_jax.training.experiment import Experiment

TOLERANCE = 1e-6
"""Of logits: absolute below 1, relative above."""


class Difference(NamedTuple):
    """What differs of a feature: how many values, and the line of the record where that is seen first."""

    values: int
    line: int


class Replayed(NamedTuple):
    """What a replay found.

    Attributes:
      requests, candidates, versions: how many were replayed.
      inputs: feature -> how it differs; {} where all are the same.
      logits: candidates whose logits differ by more than `TOLERANCE`.
      largest: difference of two logits.
      gone: requests of versions that the store no longer has.
    """

    requests: int
    candidates: int
    versions: int
    inputs: dict[str, Difference]
    logits: int
    largest: float
    gone: int


class _Replay:
    """A run, ready to score at the versions that it has published."""

    def __init__(self, run: OfWhole | OfAppended, root: Path, drill: str):
        self._run, self._root, self._drill = run, root, drill
        self._parts: Experiment | None = None
        self._version: Version | None = None  # the one before, from which the next may be made
        self._buckets = Buckets(64, 64)
        self.inputs: dict[str, Difference] = {}
        self.requests = self.candidates = self.logits = 0
        self.largest = 0.0

    def __call__(self, name: str, recorded: Sequence[Recorded]) -> bool:
        """Replays what one version has answered; False where the store no longer has it."""
        try:
            version = store.open_version(self._root, name, have=self._version)
        except FileNotFoundError:
            return False
        self._version = version
        self._check(version, recorded)
        at = self._run.at(version)
        parts = self._scores_by(at.parts)
        vectors = stored(version.starting_with(PREFIX), version.starting_with(SCALE))
        there = [name for columns in self._names.values() for name in columns]
        there += [f"{side}.{name}" for side in ("candidate", "history") for name in vectors]
        if self._drill and self._drill not in there:
            raise UserError(f"--drill {self._drill}: no such feature; {nearest(self._drill, there)}")
        rows = at.resolver([one.asked for one in recorded])
        reading = rows.read_by(with_unknown(at.builder, ()))
        params = _params(parts, version)
        tables = {"embedding": jax.device_put(version["table"])}
        size, first = 512, np.cumsum([0, *(len(one.logits) for one in recorded)])
        samples = [np.minimum(start + np.arange(size), first[-1] - 1) for start in range(0, first[-1], size)]
        found, logits = [], []
        self._buckets = _larger(self._buckets, reading.measure_buckets(samples))
        for some in samples:
            batch = reading(some, buckets=self._buckets)
            batch |= {FOUND: {name: one.rows(batch["item_id"]) for name, one in vectors.items()}}
            found.append(_inputs(batch, vectors))
            placed = parts.program.place(batch)
            logits.append(np.asarray(self._apply(params, tables, {}, {}, placed)))
        inputs = {name: np.concatenate([one[name] for one in found])[: first[-1]] for name in found[0]}
        first_label, _ = parted(np.concatenate(logits)[: first[-1]], self._labels)
        for k, one in enumerate(recorded):
            part = slice(first[k], first[k + 1])
            self._compare(one, {name: array[part] for name, array in inputs.items()}, first_label[part])
        return True

    def _scores_by(self, parts: Experiment) -> Experiment:
        """Takes up what scores; of versions whose tables are as long it is the same."""
        if parts is not self._parts:
            self._parts, self._names = parts, _names(parts.work.dataset)
            task = OnLookedUp(parts.work.task)
            self._labels = task.labels
            score = task.score_all if task.labels.names else task.score
            self._apply = step.make_apply(task, score, parts.program.mesh, parts.work.shards)
        return parts

    def _check(self, version: Version, recorded: Sequence[Recorded]) -> None:
        """Refuses a version that is not the one that answered."""
        for one in recorded:
            if one.checksum != version.checksum:
                raise UserError(
                    f"{one.place}: version {version.name} answered with checksum {one.checksum}, that in {self._root} has "
                    f"{version.checksum}; give the store that was served"
                )

    def _compare(self, one: Recorded, made: Mapping[str, np.ndarray], logits: np.ndarray) -> None:
        """Compares a request with what training makes of it."""
        self.requests, self.candidates = self.requests + 1, self.candidates + len(logits)
        for name, expected in made.items():
            if name not in one.inputs:
                self._count(name, expected.size, one.line)
                continue
            found, columns = one.inputs[name], self._names.get(name, [name])
            if expected.dtype == np.float32:
                found = np.asarray(found, np.float32)  # null is NaN
            for k, feature in enumerate(columns):
                mine, his = (array[..., k] if name in self._names else array for array in (expected, found))
                if feature == self._drill:
                    his = his + 1 if his.dtype.kind in "iuf" else np.roll(his, 1, axis=-1)
                of_events = name.startswith(OF_EVENTS) and name != "history_mask"
                differs = _differs(mine, his, made["history_mask"] if of_events else None)
                self._count(feature, differs, one.line)
        gap = np.abs(logits - one.logits) / np.maximum(np.abs(logits), 1)
        self.logits += int((~(gap <= TOLERANCE)).sum())
        self.largest = max(self.largest, float(np.abs(logits - one.logits).max(initial=0)))

    def _count(self, feature: str, differs: int, line: int) -> None:
        if differs:
            before = self.inputs.get(feature, Difference(0, line))
            self.inputs[feature] = Difference(before.values + differs, min(before.line, line))


def _params(parts: Experiment, version: Version) -> Any:
    """The parameters of a version, on the devices."""
    shapes = parts.program.shapes.params
    arrays = npy.archive(io.BytesIO(version.read_bytes(PARAMS)))
    leaves = [jax.device_put(arrays[name]) for name in trees.named_leaves(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


SIDES = (
    ("user", "user", ""),
    ("candidate", "item", ""),
    ("context", "context", ""),
    ("history", "item", "history "),
    ("event", "event", ""),
)
"""(how inputs of `core.batch.REQUEST` begin, the group of fields that they have, what is said before its features)."""


def _differs(mine: np.ndarray, his: np.ndarray, mask: np.ndarray | None) -> int:
    """How many values differ, in the slots of the mask alone; inputs of a user stand beside each candidate."""
    his = np.broadcast_to(his, mine.shape) if his.ndim < mine.ndim else his
    if mine.shape != his.shape:
        return max(mine.size, 1)
    other = mine != his
    if mine.dtype.kind == "f":
        other &= ~(np.isnan(mine) & np.isnan(his))
    return int((other if mask is None else other & mask).sum())


def _names(dataset: Dataset) -> dict[str, list[str]]:
    """Input -> the features of its columns."""
    fields, numbers = dataset.fields, dataset.numbers

    def columns(group: str) -> list[str]:
        return [f"{group}.{field.name}" for field in getattr(fields, group) for _ in range(field.length)]

    found: dict[str, list[str]] = {}
    for side, group, said in SIDES:
        found[f"{side}_row"] = [f"{said}{name}" for name in columns(group)]
        found[f"{side}_number"] = [f"{said}{group}.{one.name}" for one in getattr(numbers, group)]
    return found


def _inputs(batch: Batch, vectors: Mapping[str, Vectors]) -> dict[str, np.ndarray]:
    """What a batch has of each row, by the names of `core.batch.REQUEST`: [B, ...] each."""
    row, found = batch["row_id"], {}
    for name, key in REQUEST.items():
        if key.becomes in batch:
            value = batch[key.becomes]
            found[name] = row[value] if CLICKS[key.becomes].into == "row_id" else value
    positions = {"candidate": batch["item_position"], "history": batch["history_position"]}
    for side, position in positions.items():
        found[f"{side}_row"] = row[batch["item_row"]][position]
        if "item_number" in batch:
            found[f"{side}_number"] = batch["item_number"][position]
    for name in vectors:
        hashes = np.array(hash_rows(batch[FOUND][name]))
        found |= {f"{side}.{name}": hashes[position] for side, position in positions.items()}
    return found


def _larger(one: Buckets, other: Buckets) -> Buckets:
    return Buckets(max(one.items, other.items), max(one.rows, other.rows), max(one.encode, other.encode))


def replay(
    directory: str | Path, root: str | Path, requests: str | Path, data_root: str | Path | None = None, drill: str = ""
) -> Replayed:
    """Replays what a service has recorded.

    Args:
      directory: the folder of the run whose versions the store has.
      root: the store.
      requests: the record.
      data_root: where the dataset lies now, if it was moved.
      drill: a feature of the record to break.

    Raises:
      UserError: whatever the user can mend.
    """
    if store.current_name(paths.local(root)) is None:
        raise UserError(f"{root}: no store, it has no file 'current'; give the store that was served")
    versions, gone = set(), 0
    with opened(directory, data_root) as run:
        replayed = _Replay(run, paths.local(root), drill)
        for name, recorded in _by_version(read(Path(requests))):
            if replayed(name, recorded):
                versions.add(name)
            else:
                gone += len(recorded)
    return Replayed(
        replayed.requests, replayed.candidates, len(versions), replayed.inputs, replayed.logits, replayed.largest, gone
    )


def _by_version(recorded: Iterator[Recorded], most: int = 2000) -> Iterator[tuple[str, list[Recorded]]]:
    """(version, some of its requests), of so many requests in memory at once."""
    window: list[Recorded] = []
    for one in recorded:
        window.append(one)
        if len(window) == most:
            yield from _sorted(window)
            window = []
    yield from _sorted(window)


def _sorted(window: Sequence[Recorded]) -> Iterator[tuple[str, list[Recorded]]]:
    for name in sorted({one.version for one in window}):
        yield name, [one for one in window if one.version == name]


def main() -> int:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of the run that published")
    parser.add_argument("--store", type=paths.local, required=True, help="the store that was served")
    parser.add_argument("--requests", type=paths.local, required=True, help="the file of `em3 serve --record`")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    parser.add_argument("--drill", default="", help="break this feature of the record: user.age, item.category, ...")
    args = parser.parse_args()
    found = replay(args.workdir, args.store, args.requests, args.data, args.drill)
    if not found.requests:
        why = (
            f"the versions that answered its {found.gone:,} are no longer in {args.store}"
            if found.gone
            else "it is empty"
        )
        raise UserError(f"{args.requests}: no request was replayed, {why}; record some, and replay them sooner")
    said = (
        f"{args.requests}: {found.requests:,} requests with {found.candidates:,} candidates at {found.versions:,} versions; "
        f"{len(found.inputs)} features differ; {found.logits:,} logits differ by more than {TOLERANCE:g}, the largest "
        f"difference is {found.largest:.2g}"
    )
    if found.gone:
        said += f"\n{found.gone:,} requests were answered by versions that the store no longer has"
    numbers = {
        name: getattr(found, name) for name in ("requests", "candidates", "versions", "logits", "largest", "gone")
    }
    terminal.result(said, **numbers, differ={name: one.values for name, one in found.inputs.items()})
    for feature, one in sorted(found.inputs.items(), key=lambda pair: -pair[1].values):
        print(f"  {feature}: {one.values:,} values differ, first in line {one.line:,}", file=sys.stderr)
    return int(bool(found.inputs or found.logits))
