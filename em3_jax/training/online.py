"""Training on a stream, once: each window of the log is scored before it is trained on (progressive validation).

    <workdir>/stream.jsonl    a line a window, in TensorBoard too: its rows, from when to when (in seconds), the step
                              after it, AUC, GAUC and logloss, by slice, of the scores given before
                              training on it, and the means of what the training steps reported

`em3 curves` draws it. There is a checkpoint after each window, and with it the position in the stream: killed at
any moment, a run goes on from the last one to the same curve. With config.stream.follow the log is a file that grows.
With config.stream.publish what has been learnt goes to a store as the stream trains, see `export.publisher`.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from em3_jax.config.schema import OnClicks
from em3_jax.config.schema.course import Stream as StreamSettings
from em3_jax.core import terminal
from em3_jax.core.progress import Progress
from em3_jax.core.types import Batch, State
from em3_jax.data import follow, stream, times
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.format import CLICK, Dataset
from em3_jax.data.pipeline import EvaluationSource, batches
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.evaluation.groups import Asked
from em3_jax.training import (
    endless,
    experiment,
    growth,
    logs,
    processes,
    rundir,
    stream_end,
    stream_settings,
    warm_start,
)
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.position import Position, check_same_past
from em3_jax.training.program import Program

HEADLINE = ("auc", "gauc", "logloss")
SLICES = ("all", "cold items", "warm items", "new users")


class Publisher(Protocol):
    """Who publishes what a stream has learnt."""

    def begin(self, parts: experiment.Experiment) -> None:
        """Takes up a dataset, or the one that it has grown into."""

    def due(self, step: int) -> bool:
        """Whether a version is due after a step within a window."""

    def publish(self, state: State, row: int, builder: BatchBuilder, learnt: np.ndarray | None = None) -> None:
        """Publishes a state that was trained on the rows before number `row`; `builder` knows what these show.

        Args:
          learnt: [table rows] bool, those of ids that were admitted; others stand for `unknown`. None = all.
        """

    def close(self) -> None:
        """Waits for what is done in the background."""


def run(config: OnClicks, own: StreamSettings, directory: Path, publisher: Publisher | None = None) -> dict:
    """Scores and trains window after window; returns {"windows", "step", "stopped_by"}.

    Args:
      own: config.stream.
      publisher: None = nothing is published.

    Raises:
      UserError: whatever the user can mend.
    """
    stream_settings.check(config, own)
    kept: _Kept | None = None
    before: int | None = None
    with processes.Interrupts() as interrupts:
        followed = follow.Follower(own.follow, config.data.root, own.poll_seconds, own.idle_seconds)
        while True:
            followed.prepare()
            of_data = Stream(config, directory, own, followed.grows, kept, publisher)
            result, kept = of_data.run(interrupts), of_data.kept
            before = of_data.before if before is None else before
            is_last = 0 < own.most_windows <= result["windows"]
            stopped_by = result["stopped_by"]
            stopped_by = followed.wait(interrupts) if stopped_by == "end" and not is_last else stopped_by
            if stopped_by:
                ended = stream_end.Ended(stopped_by, result["windows"], before, of_data.waiting)
                stream_end.say(ended, own, config.data.root, directory)
                return result | {"stopped_by": stopped_by}
            del of_data
            if kept is None:
                forget_programs()


def forget_programs() -> None:
    """Lets go of what was compiled for a dataset that has grown since: JAX keeps programs, and what they name, by default."""
    jax.clear_caches()
    gc.collect()


class _Kept(NamedTuple):
    """What a run with a table of fixed size goes on with when its log has grown: nothing is restored, and nothing compiled."""

    program: Program
    endless: endless.Endless
    state: State
    notes: dict[str, Any]


class Stream:
    """One pass over the windows that a dataset has now.

    Attributes:
      kept: what the next pass takes; None where it begins with the checkpoint.
      publisher: None = nothing is published.
      before: windows that were done when it began.
      waiting: rows after the last window that is done.
    """

    def __init__(
        self,
        config: OnClicks,
        directory: Path,
        own: StreamSettings,
        grows: bool,
        kept: _Kept | None = None,
        publisher: Publisher | None = None,
    ):
        self.config, self.directory, self.kept, self.publisher = config, directory, kept, publisher
        self.before = self.waiting = 0
        self.parts = experiment.build(config)
        if kept:
            self.parts = dataclasses.replace(self.parts, program=kept.program)
        dataset = self.parts.work.dataset
        self.windows = [w for w in stream.windows(dataset, own.window) if w.complete or not grows]
        self.windows = self.windows[: own.most_windows or None]
        self.label = self.config.data.label
        self.buckets, self.eval_buckets = (
            self._buckets(size) for size in (self.config.data.batch_size, self.config.eval.batch_size)
        )
        self.endless: endless.Endless | None = None  # whose ids come and go

    def _buckets(self, size: int) -> Buckets:
        """Bucket sizes for batches of that size, measured at eight places of the log."""
        assert self.parts.work.buckets is not None  # a stream has clicks
        rows = len(self.parts.work.dataset.interactions["time"])
        starts = np.linspace(0, max(rows - size, 0), 8).astype(np.int64)
        return self.parts.work.buckets([np.minimum(start + np.arange(size), rows - 1) for start in starts])

    def run(self, interrupts: processes.Interrupts) -> dict:
        parts, directory = self.parts, self.directory
        state, notes = self._begin()
        position = Position(**notes["position"])
        self.before = position.window
        self._begin_publishing()
        self.curve = logs.StreamWriter(directory, position.window, int(state.step))
        if not position.window:
            print(logs.parameter_table(state, parts.program.frozen))
        total = sum(len(window) for window in self.windows)
        if "time_unit" not in parts.work.dataset.meta:
            unit = times.unit_of(parts.work.dataset)
            print(
                f"{parts.work.dataset.root}: does not say the unit of its times, made before datasets did; taken for {unit}"
            )
        windows = stream_end.count(len(self.windows))
        print(f"{parts.work.dataset.root}: {total:,} rows in {windows}; {position.window:,} done", flush=True)
        self.progress, stopped_by = Progress(total, position.row, unit="row"), "end"
        for number in range(position.window, len(self.windows)):
            state, done, stopped_by = self._window(number, self.windows[number], state, notes, interrupts)
            notes = done or notes
            if stopped_by != "end":
                break
        self.progress.close()
        self.curve.close()
        self.checkpoints.close()
        if self.publisher is not None:
            self.publisher.close()
        self.waiting = len(parts.work.dataset.interactions["time"]) - notes["position"]["row"]
        if self.endless:
            self.kept = _Kept(parts.program, self.endless, state, notes)
        return {"windows": notes["position"]["window"], "step": int(state.step), "stopped_by": stopped_by}

    def _begin(self) -> tuple[State, dict[str, Any]]:
        """(the state, the notes) to go on from; the folder is this run's, or found to be."""
        parts, directory, init_from = self.parts, self.directory, self.config.train.init_from
        data_hash, is_new = parts.work.dataset.meta["data_hash"], not (directory / "run.json").exists()
        if is_new:
            warm_start.check_stream(parts)
        state = self.kept.state if self.kept else parts.program.init()
        if init_from and is_new:  # before there is a run in the folder, which a mistake would leave
            state = warm_start.warm_start(state, init_from, data_hash, self.config.train.init_parts)
        own: Any = endless if self.config.tables.capacity else growth
        growing = own.begin(directory, parts, permitted=True)
        self.checkpoints = Checkpoints(directory, data_hash)
        notes: dict[str, Any] = {"best_step": 0, "best_value": None, "stale": 0, "position": Position()._asdict()}
        restored = (state, self.kept.notes) if self.kept else None
        restored = restored or own.restore_latest(self.checkpoints, directory, parts, state, notes, keep_notes=True)
        if restored:
            state, notes = restored
            check_same_past(parts.work.dataset, Position(**notes["position"]))
        elif init_from and not is_new:
            state = warm_start.warm_start(state, init_from, data_hash, self.config.train.init_parts)
        if self.config.tables.capacity:
            state = self._bind(state, notes, int(state.step) if restored else None)
        if growing:
            rundir.claim(directory, self.config, data_hash, parts.feature_hashes, grown=True)
        return state, notes

    def _bind(self, state: State, notes: dict[str, Any], step: int | None) -> State:
        """Takes up the ids of a table of fixed size, and the sizes of batches, which stay; the state as it is."""
        sizes = notes.setdefault("buckets", [dataclasses.asdict(one) for one in (self.buckets, self.eval_buckets)])
        self.buckets, self.eval_buckets = (Buckets(**one) for one in sizes)
        if self.kept:
            self.endless = self.kept.endless
        else:
            shapes, followed = self.parts.program.shapes, self.publisher is not None
            self.endless = endless.Endless(self.config, self.directory, shapes, step, followed)
            state = self.endless.compiled(state)
        self.endless.bind(self.parts.work.dataset)
        return state

    def _save(self, state: State, notes: dict[str, Any]) -> None:
        if self.endless:
            self.endless.save(int(state.step))
        self.checkpoints.save("latest", state, notes)
        if self.endless:
            self.endless.saved(int(state.step), self.checkpoints.steps("latest"))

    def _window(
        self, number: int, window: stream.Window, state: State, notes: dict[str, Any], interrupts
    ) -> tuple[State, dict[str, Any] | None, str]:
        """(state, notes with the position after the window, None where it was cut short; "end" or the signal received)."""
        record: dict[str, Any] = {"window": number, "first": window.first, "end": window.end}
        record |= self._times(window)
        state, report = self._score(state, window)
        record |= report
        state, means, stopped_by = self._train(state, window, interrupts)
        if stopped_by != "end":
            return state, None, stopped_by
        # Before the checkpoint: of a run that is killed between them, the window is trained once more.
        if self.publisher is not None:
            self._publish(state, window.end)
        self.curve.write(record | {"step": int(state.step)} | means | self._of_source(window) | self._of_ids())
        time_ = self.parts.work.dataset.interactions["time"]
        position = Position(number + 1, window.end, int(time_[max(window.end - 1, 0)]))
        notes = notes | {"position": position._asdict()}
        self._save(state, notes)
        self.progress.advance(len(window))
        shown = [f"{name} {record['all'][name]:.4f}" for name in HEADLINE]
        if self.endless:
            terminal.explain("spilled")
            shown.append(str(self.endless))
        said = terminal.listed(f"window {number:>5,}  n {record['all']['n']:>7,}", [*shown, *self._beside()])
        self.progress.say(said, "window", number=number, **record)
        return state, notes, interrupts.agreed() or "end"

    def _of_source(self, window: stream.Window) -> dict[str, Any]:
        """What the curve has of where a window's rows came from."""
        return {}

    def _of_ids(self) -> dict[str, Any]:
        """What the curve has of ids that come and go."""
        return self.endless.report() if self.endless else {}

    def _beside(self) -> list[str]:
        """What the line of a window ends with."""
        return []

    def _times(self, window: stream.Window) -> dict[str, int | float]:
        """Times of the first and the last row, in seconds where they are counted."""
        if not len(window):
            return {}
        unit, time_ = times.unit_of(self.parts.work.dataset), self.parts.work.dataset.interactions["time"]
        return {
            "from": times.seconds(int(time_[window.first]), unit),
            "to": times.seconds(int(time_[window.end - 1]), unit),
        }

    def _builder(self, row: int) -> BatchBuilder:
        """Of batches that know what the run's training on the rows before number `row` shows."""
        data = self.config.data
        length = None if data.has_segments else data.history_length  # what is sought may be of any time
        assert self.parts.work.builder is not None  # a stream has clicks
        return self.parts.work.builder(self._known(row, self.label, length))

    def _known(self, row: int, label: str = CLICK, length: int | None = None) -> Dataset:
        """See `stream.as_of`."""
        return stream.as_of(self.parts.work.dataset, row, label, length)

    def _score(self, state: State, window: stream.Window) -> tuple[State, dict[str, dict[str, float]]]:
        """(the state, in which ids may have come back; slice -> metric -> value), by what is known before the window."""
        parts, known = self.parts, self._known(window.first)
        rows = stream.rows_of(known, window, self.label)
        logits = np.zeros(0, np.float32)
        if len(rows):
            builder = self._builder(window.first)
            size, buckets = self.config.eval.batch_size, self.eval_buckets
            source = EvaluationSource(builder, rows, size, buckets, parts.work.shards)

            def predict(placed: Any) -> Any:
                nonlocal state
                state, batch = self._moved(state, placed)
                return parts.program.predict(state, batch)

            logits = ranking_evaluation.predict(source, predict, self._place(learn=False))
        share, asked = self.config.eval.popular_share, Asked(self.config.eval.at, self.config.eval.group_by)
        report = ranking_evaluation.evaluate(
            ranking_evaluation.Scored(known, rows, logits, parts.work.feature_sets, share, self.label, asked)
        )
        return state, {name: report[name] for name in SLICES}

    def _train(self, state: State, window: stream.Window, interrupts) -> tuple[State, dict[str, float], str]:
        """(state after one pass over the window, means of what its steps reported, "end" or the signal that cut it short)."""
        parts, began = self.parts, time.perf_counter()
        rows = stream.rows_of(parts.work.dataset, window, self.label)
        if not len(rows):
            return state, {}, "end"
        source = stream.WindowSource(
            builder=self._builder(window.end),
            rows=rows,
            batch_size=self.config.data.batch_size,
            seed=self.config.seed,
            first_step=int(state.step),
            buckets=self.buckets,
            shards=parts.work.shards,
        )
        first, every, reported = int(state.step) + 1, self.config.train.log_every, []
        for placed in batches(source, place=self._place(learn=True)):
            state, batch = self._moved(state, placed)
            state, scalars = parts.program.train_step(state, parts.work.constants, batch)
            reported.append(scalars)
            if every and len(reported) % every == 0:
                self.progress.show({"loss": (float(scalars["loss"]), ".4f")})
            if self.publisher is not None and self.publisher.due(step := first + len(reported) - 1):
                self._publish(state, int(rows[: (step - first + 1) * self.config.data.batch_size][-1]) + 1)
            if interrupts.received:
                return state, {}, interrupts.received
        means = logs.window_means(reported, state, self.checkpoints, first, first + len(reported) - 1)
        return state, means | {"time/examples_per_second": len(rows) / (time.perf_counter() - began)}, "end"

    def _place(self, learn: bool) -> Callable[[Batch], Any]:
        """What moves batches to the devices, in their order and ahead of their use; `_moved` takes what it gives."""
        place, ids = self.parts.program.place, self.endless
        if ids is None:
            return place

        def named(batch: Batch) -> tuple[Batch, endless.Moved]:
            batch, moves = ids.named(batch, learn)
            return place(batch), moves

        return named

    def _moved(self, state: State, placed: Any) -> tuple[State, Batch]:
        """(the state with rows for what a batch names, the batch)."""
        if self.endless is None:
            return state, placed
        batch, moves = placed
        return self.endless.moved(state, moves), batch

    def _publish(self, state: State, row: int) -> None:
        """Publishes a state that was trained on the rows before number `row`."""
        assert self.publisher is not None  # whoever calls this has asked it
        learnt = None
        if self.endless:
            state, learnt = self.endless.spread(state, self.parts.program.mesh)
        self.publisher.publish(state, row, self._published_builder(row), learnt)

    def _published_builder(self, row: int) -> BatchBuilder:
        """`_builder`, where rows after number `row` may have been asked for already."""
        return self._builder(row)

    def _begin_publishing(self) -> None:
        """Tells the publisher of the dataset; what it publishes has a row for each id, whatever the table has."""
        if self.publisher is not None:
            config = experiment.with_all_ids(self.config)
            self.publisher.begin(self.parts if config is self.config else self._experiment(config))

    def _experiment(self, config: OnClicks) -> experiment.Experiment:
        """What a config stands for on the dataset as it is."""
        return experiment.build(config)
