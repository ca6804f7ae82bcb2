"""Training on a stream whose rows are appended to the dataset as they come, at the cost of these rows alone.

What happens in each window is in `online`. Here windows are of rows in the order of arrival: a window
of time ends where the first row of a later time arrives, and a late row belongs to the window in which
it arrives. So the curve is a function of the rows in their order, however many of them came together,
and whenever the run was killed.

Tables have places for ids to come (config.stream.spare). Where those of a field are used up at a
window's end, the state is carried before that window into tables that have places again for all
fields, and programs are compiled again. How long tables are is told by the rows up to the last time
that this was so, which checkpoints note.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.config.schema import OnClicks
from em3_jax.config.schema.course import Stream as StreamSettings
from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.core.progress import Progress
from em3_jax.core.types import State
from em3_jax.data import arrivals, prepare, sources, stream, times
from em3_jax.data.append import Store
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import CLICK, STORE, Dataset
from em3_jax.data.shown import Shown
from em3_jax.tasks.ranking.setup import open_clicks
from em3_jax.training import (
    endless,
    experiment,
    growth,
    logs,
    online,
    processes,
    rundir,
    stream_end,
    stream_settings,
    warm_start,
)
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.places import place_of_rows, places_of, roomier
from em3_jax.training.position import Position, check_same_past


def run(config: OnClicks, own: StreamSettings, directory: Path, publisher: online.Publisher | None = None) -> dict:
    """Scores and trains window after window as rows come; returns {"windows", "step", "stopped_by"}.

    Args:
      own: config.stream.
      publisher: None = nothing is published.

    Raises:
      UserError: whatever the user can mend.
    """
    stream_settings.check(config, own)
    _check(config)
    given = prepare.read_mapping(paths.local(own.follow), prepare.READERS["table"])
    how = arrivals.options(own.follow, given)
    root = paths.local(config.data.root)
    with processes.Interrupts() as interrupts, Lock(root, beside=True, hint="wait for it, or choose another folder"):
        source = sources.open_source(own.follow, given.get("interactions"))
        store = Store(root, how, own.on_bad_row)
        try:
            of_rows = _Appended(config, directory, own, store, source, publisher)
            result = of_rows.run(interrupts)
        finally:
            store.close()
    ended = stream_end.Ended(result["stopped_by"], result["windows"], of_rows.before, of_rows.waiting)
    stream_end.say(ended, own, root, directory)
    return result


@contextmanager
def store_of(own: StreamSettings, root: Path) -> Iterator[Store]:
    """The rows of a run that is there, to read: nobody appends to them meanwhile.

    Args:
      own: config.stream of the run.
      root: of its dataset.

    Raises:
      UserError: it is not there, or a run appends to it.
    """
    if not (root / STORE).exists():
        raise UserError(f"{root}: holds no rows that were appended; give the folder of the run's dataset")
    how = arrivals.options(own.follow, prepare.read_mapping(paths.local(own.follow), prepare.READERS["table"]))
    with Lock(root, beside=True, hint="end the run that appends to it first"):
        store = Store(root, how, own.on_bad_row)
        try:
            yield store
        finally:
            store.close()


def _check(config: OnClicks) -> None:
    """Refuses what would have to look through the whole log, or is of items that are all there at first."""
    data = config.data
    for key, given in (
        ("similar_by", data.similar_by),
        ("similar_content", data.similar_content),
        ("codes", data.codes),
    ):
        if given:
            raise UserError(f"config.data.{key}: is of a dataset that is whole; leave it out, or config.stream.append")
    if data.has_segments:
        raise UserError(
            "config.data.histories: are of a dataset that is whole; leave them out, or config.stream.append"
        )


class _Appended(online.Stream):
    """A pass over the windows of rows that come."""

    def __init__(
        self,
        config: OnClicks,
        directory: Path,
        own: StreamSettings,
        store: Store,
        source: sources.Source,
        publisher: online.Publisher | None,
    ):
        self.config, self.directory, self._own = config, directory, own
        self.label = config.data.label
        self._store, self._source = store, source
        # Each moves on by itself: what is published within a window is behind what that is trained by.
        self._counters = {"whole": Shown()}
        self._counters |= {name: Shown(self.label, config.data.history_length) for name in ("run", "published")}
        self._windows = stream.Arriving(own.window, store.root)
        self._known_sizes: tuple[int, dict[str, int]] = (0, {})  # of so many rows
        self._sizes: dict[str, int] = {}  # places that the tables have
        self.endless, self.publisher, self.kept = None, publisher, None
        self._built_at = 0  # rows whose ids had places when the tables became as long as they are
        self._said: list[str] = []  # of the last window
        self.before = self.waiting = 0

    def run(self, interrupts: processes.Interrupts) -> dict:
        self._check_source()
        if stopped_by := self._wait(0, interrupts):
            self.waiting = self._store.rows
            return {"windows": 0, "step": 0, "stopped_by": stopped_by}
        state, position, notes = self._start()
        self._begin_publishing()
        self.before = position.window
        self.curve = logs.StreamWriter(self.directory, position.window, int(state.step))
        self.progress = Progress(self._store.rows, position.row, unit="row")
        done = stream_end.count(position.window)
        print(f"{self._store.root}: {self._store.rows:,} rows so far; {done} done", flush=True)
        while not stopped_by:
            if self._own.most_windows and position.window >= self._own.most_windows:
                stopped_by = "end"
                break
            if stopped_by := self._wait(position.window, interrupts):
                break
            window = self._windows[position.window]
            state = self._grown(state, window.end)
            own = notes | self._notes()
            state, after, stopped = self._window(position.window, window, state, own, interrupts)
            position = Position(**after["position"]) if after else position
            stopped_by = "" if stopped == "end" else stopped
        self.progress.close()
        self.curve.close()
        self.checkpoints.close()
        if self.publisher is not None:
            self.publisher.close()
        self.waiting = self._store.rows - position.row
        return {"windows": position.window, "step": int(state.step), "stopped_by": stopped_by}

    def _check_source(self) -> None:
        """Refuses another source than that of the rows which the run was trained on, before anything of it is appended."""
        if (self.directory / "run.json").exists():
            checkpoints = Checkpoints(self.directory)
            self._source.check(checkpoints.newest_notes().get("source", {}))
            checkpoints.close()

    def _wait(self, number: int, interrupts: processes.Interrupts) -> str:
        """Returns "" when window `number` is complete, or why there is no more to wait for. Appends what has come."""
        began = time.monotonic()
        while not interrupts.received:
            if arrived := self._take():
                began = time.monotonic()
            if self._windows.has(number):
                return ""
            if not arrived:
                if self._own.idle_seconds and time.monotonic() - began > self._own.idle_seconds:
                    return f"no growth of {self._source.name} for {self._own.idle_seconds:g} s"
                time.sleep(self._own.poll_seconds)
        return interrupts.received

    def _take(self) -> bool:
        """Appends what has come, some of it if it is much; returns whether anything has."""
        arrived = self._store.take(self._source)
        self._windows.extend(self._store["time"], self._store.unit)
        return arrived

    def _reach(self, rows: int) -> None:
        """Appends rows until there are so many: those of a dataset that was deleted come again."""
        while self._store.rows < rows:
            if not self._take():
                raise UserError(
                    f"{self._store.root}: has {self._store.rows:,} rows, and the run in {self.directory} was trained on more; "
                    "restore the dataset, or the source from its beginning"
                )

    def _start(self) -> tuple[State, Position, dict[str, Any]]:
        """(state, position, notes) of the newest checkpoint, or of a start."""
        directory, config = self.directory, self.config
        is_new, init_from = not (directory / "run.json").exists(), config.train.init_from
        first = self._windows[0]
        self._build(first.end)
        if config.tables.capacity:
            endless.check_rows(self.parts)
        if is_new:
            warm_start.check_stream(self.parts)
        state = self.parts.program.init()
        if init_from and is_new:
            state = warm_start.warm_start(state, init_from, self._store.hash, config.train.init_parts)
        rundir.claim(directory, config, self._store.hash, self.parts.feature_hashes)
        self.checkpoints = Checkpoints(directory, self._store.hash)
        notes: dict[str, Any] = {"best_step": 0, "best_value": None, "stale": 0}
        position = Position()
        restored = self.checkpoints.restore_latest(state, self._template)
        if restored is not None:
            state, notes = restored
            position = Position(**notes["position"])
            self._reach(position.row)
            check_same_past(self._store.view(self._store.rows, self._sizes), position)
        elif init_from and not is_new:
            state = warm_start.warm_start(state, init_from, self._store.hash, config.train.init_parts)
        else:
            print(logs.parameter_table(state, self.parts.program.frozen))
        if config.tables.capacity:
            state = self._bind(state, notes, int(state.step) if restored else None)
        return state, position, notes

    def _notes(self) -> dict[str, Any]:
        """What a checkpoint has of the stream besides."""
        self.checkpoints.data_hash = f"{self._store.hash}@{self._built_at}"
        return {"source": self._store.position}

    def _template(self, data_hash: str) -> State:
        """Shapes of a checkpoint: of tables as they were when the first that were so long were made."""
        own, _, built_at = data_hash.partition("@")
        if own != self._store.hash:
            raise UserError(
                f"{self.directory}: was trained on other data than those appended to {self._store.root}; restore them, or choose "
                "another --workdir"
            )
        self._reach(int(built_at))
        self._build(int(built_at))
        return self.parts.program.shapes

    def _in_use(self, rows: int) -> dict[str, int]:
        """Field -> ids of the first rows."""
        after, known = self._known_sizes
        if rows < after:
            after, known = 0, {}
        sizes = self._store.sizes(rows, known, after)
        self._known_sizes = rows, sizes
        return sizes

    def _build(self, rows: int) -> None:
        """Makes programs for tables that hold the ids of the first rows; what was before is let go.

        The program for a table of fixed size stays, and with it the rows that it sets apart for events' values.
        """
        if rows == self._built_at:
            return
        self._built_at = rows
        program = self.parts.program if self._sizes and self.config.tables.capacity else None
        self.__dict__.pop("parts", None)  # which would lie beside those to come
        self._sizes = places_of(self._in_use(rows), self._own.spare) | (self._event_sizes() if program else {})
        view = self._store.view(rows, self._sizes)
        counts = Shown(self.label, self._counters["run"].history_length).until(
            open_clicks(self.config.data, view), rows
        )
        self._view = dataclasses.replace(view, counts=counts)
        self.parts = self._experiment(self.config)
        if program:
            self.parts = dataclasses.replace(self.parts, program=program)
            return
        placement = self.config.data.placement
        if self.parts.work.feature_sets and placement != "host":
            raise UserError(
                f"config.data.placement={placement}: content of items to come is not on the devices; set host, with "
                "config.stream.append"
            )
        sizes = self.config.data.batch_size, self.config.eval.batch_size
        buckets = [self._buckets(size) for size in sizes]
        self.buckets, self.eval_buckets = map(roomier, buckets) if self._own.spare else buckets

    def _experiment(self, config: OnClicks) -> experiment.Experiment:
        return experiment.build(config, dataset=self._view)

    def _event_sizes(self) -> dict[str, int]:
        """Those of `places_of` that are of events' fields."""
        return {name: size for name, size in self._sizes.items() if name.startswith("event_")}

    def _grown(self, state: State, rows: int) -> State:
        """The state in tables that hold the ids of the first rows, of which the dataset is then made."""
        in_use = self._in_use(rows)
        if any(size > self._sizes[name] for name, size in in_use.items()):
            if self.endless:
                self._check_events(in_use)
                self._build(rows)
                self.endless.bind(self.parts.work.dataset)
                self._begin_publishing()
            else:
                state = self._in_longer_tables(state, rows)
        view = open_clicks(self.config.data, self._store.view(rows, self._sizes))
        self.parts = dataclasses.replace(self.parts, work=dataclasses.replace(self.parts.work, dataset=view))
        return state

    def _check_events(self, in_use: Mapping[str, int]) -> None:
        """Refuses more values of events' fields than a table of fixed size has set rows apart for."""
        for name, places in self._event_sizes().items():
            if in_use[name] > places:
                raise UserError(
                    f"{self._store.root}: event field '{name.removeprefix('event_')}' has {in_use[name]:,} "
                    f"values now, and config.tables.capacity has set {places:,} rows apart for them at the "
                    "start; begin with a larger config.stream.spare in another --workdir"
                )

    def _in_longer_tables(self, state: State, rows: int) -> State:
        """The state in tables with places for the ids of the first rows; programs are made anew."""
        was, before = self._sizes, self.parts.work.dataset.fields
        self._build(rows)
        online.forget_programs()
        after = self.parts.work.dataset.fields
        state = growth.moved(
            state, self.parts.program.init(), place_of_rows(before, after), np.arange(was["item"], dtype=np.int64)
        )
        self._begin_publishing()
        return state

    def _known(self, row: int, label: str = CLICK, length: int | None = None) -> Dataset:
        dataset = self.parts.work.dataset
        counter = self._counters["whole" if (label, length) == (CLICK, None) else "run"]
        return dataclasses.replace(dataset, counts=counter.until(dataset, row))

    def _published_builder(self, row: int) -> BatchBuilder:
        dataset = self.parts.work.dataset
        counts = self._counters["published"].until(dataset, row)
        assert self.parts.work.builder is not None
        return self.parts.work.builder(dataclasses.replace(dataset, counts=counts))

    def _of_source(self, window: stream.Window) -> dict[str, Any]:
        late, behind = self._windows.late(window, self._store["time"]), self._store.rows - window.end
        lag = self._lag(window)
        self._said = [f"late {late:,}"] if late else []
        self._said += [f"left out {self._store.skipped:,}"] if self._store.skipped else []
        seconds = f", {lag['time/lag_seconds']:,.0f} s" if behind and lag else ""
        self._said += [f"behind {behind:,} rows{seconds}"] if behind else []
        return {"late": late, "time/rows_behind": behind} | lag

    def _lag(self, window: stream.Window) -> dict[str, float]:
        """How far the newest row that has come is ahead of the newest of the windows that are done, in seconds."""
        if self._store.unit == times.ORDER or self._store.newest is None or not window.end:
            return {}
        per_second = times.NANOSECONDS[self._store.unit] / times.NANOSECONDS["seconds"]
        return {"time/lag_seconds": (self._store.newest - self._windows.newest(window)) * per_second}

    def _beside(self) -> list[str]:
        return self._said
