"""Trains a model: python train.py --config=configs/em3_movielens.py --workdir=runs/em3

Any setting can be changed from the command line: --config.model.backbone_settings.dropout=0.2. Run again with the same
workdir, it goes on from the newest checkpoint; a killed and resumed run is bit-identical to one that was never stopped.
--quiet prints results, warnings and errors alone; --json-lines a JSON object a line in place of text, for machines.
"""

import math
import os
import signal
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from em3_jax import cli, metrics
from em3_jax.config import parse, recipes, sections
from em3_jax.config.schema import Config, Retrieval
from em3_jax.config.schema.course import Train
from em3_jax.core import compilation_cache, paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.core.progress import Progress
from em3_jax.data.by_item import ByItemSource
from em3_jax.data.pipeline import GroupedSource, batches, step_groups
from em3_jax.training import endless, experiment, growth, logs, processes, rundir, summary, warm_start
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.curve import NEW_ROWS

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
STEPS_AHEAD = 2  # of what an accelerator has finished; on CPUs none: each would already hold its temporaries


def train(config: Mapping[str, Any] | ConfigDict | Config, directory: str | Path) -> dict:
    """Trains to the end, or until validation stops improving; returns {"best_step", "best_value", "step", "stopped_by"}.

    A stream (section `stream`) has no best step: {"windows", "step", "stopped_by"}, see `online.run`.

    Args:
      config: of a recipe, see `parse.parse`.
      directory: the run's folder.

    Raises:
      UserError: a setting is wrong, or a part of the user's own has no name to be found again by.
    """
    directory = paths.local(directory)
    config = parse.parse(sections.named(parse.checked(config)))
    warm_start.check(config.train)
    if not isinstance(config, Retrieval):
        endless.check(config)
    processes.check_agree("config", _shared(config))
    with processes.held_by_first(Lock(directory, hint="wait for it, or choose another --workdir")):
        if not isinstance(config, Retrieval) and config.stream is not None:
            from em3_jax.export.publisher import Publisher  # other runs do not wait for what streams alone need
            from em3_jax.training import appended, online

            publisher = Publisher(config, config.stream, directory) if config.stream.publish else None
            if config.stream.append:
                return appended.run(config, config.stream, directory, publisher)
            return online.run(config, config.stream, directory, publisher)
        return _train(config, directory)


def prepare_process(settings: Train) -> None:
    """Makes of this process what config.train asks of it as a whole; a command calls it before it trains.

    Args:
      settings: config.train. `deterministic` becomes a flag of XLA, read when the first device is made;
        `compilation_cache` settings of JAX. Of several processes the first alone speaks.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if settings.deterministic and DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}"
    compilation_cache.use(settings.compilation_cache)
    if not processes.is_first():
        terminal.be_mute()


def _train(config: Config, directory: Path) -> dict:
    """`train`, in a folder that no other run writes."""
    settings, parts = config.train, experiment.build(config)
    data_hash, is_new = parts.work.dataset.meta["data_hash"], not (directory / "run.json").exists()
    processes.check_agree("data", {"hash": data_hash, "features": parts.feature_hashes})
    state = parts.program.init()
    if settings.init_from and is_new:  # before there is a run in the folder, which a mistake would leave
        state = warm_start.warm_start(state, settings.init_from, data_hash, settings.init_parts)
    growing = growth.begin(directory, parts, settings.grow, write=processes.is_first())
    processes.barrier("begun")

    # Where the state comes from: 1. the newest readable checkpoint of this workdir, 2. another run's best, 3. nothing.
    checkpoints = Checkpoints(directory, data_hash)
    notes = {"best_step": 0, "best_value": None, "stale": 0}
    if restored := growth.restore_latest(checkpoints, directory, parts, state, notes):
        state, notes = restored
    elif settings.init_from and not is_new:
        state = warm_start.warm_start(state, settings.init_from, data_hash, settings.init_parts)
    parts = growth.on_new_rows(checkpoints, directory, parts, int(state.step), notes)
    if growing:  # only now: a run that could not be restored keeps the dataset it has
        rundir.claim(directory, config, data_hash, parts.feature_hashes, grown=True, write=processes.is_first())
    start, total = int(state.step), parts.work.source.steps(settings.epochs)
    print(logs.parameter_table(state, parts.program.frozen))
    source = parts.work.source
    rows, batch_size = len(source.rows), source.batch_size
    print(f"{parts.work.dataset.root}: {rows:,} training rows, {total:,} steps of {batch_size}")
    if isinstance(source, ByItemSource):
        full = rows / batch_size / source.steps_per_epoch
        print(f"batches of at most {source.deal.most_items} distinct candidates, {full:.0%} full")
        terminal.explain("distinct candidates")
    for features in parts.work.feature_sets:
        print(f"features {features.describe()}")
    if not parts.work.feature_sets:
        print("features: none, the model reads IDs alone")
    if not start and (said := warm_start.missing(parts)):
        warnings.warn(said, stacklevel=1)
    fresh = f"starting from the best of {settings.init_from}" if settings.init_from else "starting"
    fresh += f", {settings.init_parts} of it" if settings.init_parts != warm_start.ALL else ""
    print(f"resuming after step {start:,}" if start else fresh, flush=True)
    if start < total:
        terminal.explain("examples/s", "input wait", "best")

    began = time.perf_counter()
    with processes.Interrupts() as interrupts:
        loop = _Loop(parts, checkpoints, directory, start)
        state, notes, stopped_by = loop.run(state, notes, interrupts)
    checkpoints.close()
    command = f"{cli.spelled('eval')} --workdir={directory} --split=test"
    if parts.work.evaluate is None:
        command = f"em3 vectors --workdir={directory} --name=<feature set>"
    ended = summary.Ended(stopped_by, int(state.step), total, time.perf_counter() - began, loop.speed())
    summary.say(ended, directory, parts.config.eval.metric, notes, command)
    best = {name: notes[name] for name in ("best_step", "best_value")}
    return best | {"step": ended.step, "stopped_by": stopped_by}


def _shared(config: Config) -> dict:
    """What of a config all processes have to have alike."""
    data: Any = replace(config.data, root="")
    return parse.plain(replace(config, data=data, mesh=replace(config.mesh, process_id=0)))


class _Loop:
    """The training loop. Its order is a contract: step; log window; evaluation on the new parameters; checkpoint."""

    def __init__(self, parts: experiment.Experiment, checkpoints: Checkpoints, directory: Path, start: int):
        settings, source = parts.config.train, parts.work.source
        self.parts, self.settings, self.checkpoints = parts, settings, checkpoints
        self.total = source.steps(settings.epochs)
        self.eval_every = settings.eval_every or source.steps_per_epoch
        self.log_every = settings.log_every or self.eval_every
        self.writer = logs.MetricWriter(directory, start) if processes.is_first() else logs.NoWriter()
        self.progress = Progress(self.total, start, quiet=not processes.is_first())
        self.window: list[dict[str, jax.Array]] = []
        self.window_start, self.waited, self.since = start, 0.0, time.perf_counter()
        self.trained = (0, 0.0)  # examples and seconds of all windows
        self.shown: dict[str, tuple[float, str]] = {}  # of the last window, beside the bar
        self.attention = ""

    def speed(self) -> float | None:
        """Examples a second of all steps so far, compiling with it, evaluations without; None before the first window."""
        examples, seconds = self.trained
        return examples / seconds if seconds else None

    def run(self, state, notes, interrupts):
        """(state, notes, why it stopped)."""
        step = int(state.step)
        self._show_best(notes)
        if notes.get("grown", {}).get("after") == step:
            self.writer.write(step, {NEW_ROWS: float(len(self.parts.work.source.rows))})
        patience = self.settings.patience
        size = self.settings.steps_per_dispatch
        groups = step_groups(step, self.total, size, (self.log_every, self.eval_every))
        stream = batches(GroupedSource(self.parts.work.source, groups, size), place=self._place)
        ahead = 0 if jax.default_backend() == "cpu" else STEPS_AHEAD
        stopped_by = "patience" if patience and notes["stale"] >= patience else "end"
        while step < self.total and stopped_by == "end":
            asked = time.perf_counter()
            group = next(stream)
            self.waited += time.perf_counter() - asked
            before = step
            for batch in group if isinstance(group, list) else [group]:
                if len(self.window) > ahead:
                    jax.block_until_ready(self.window[-1 - ahead])
                run = self.parts.program.train_step if isinstance(group, list) else self.parts.program.train_steps
                state, aux = run(state, self.parts.work.constants, batch, self._rate(notes))
                self.window.append(aux)
                step += 1 if isinstance(group, list) else size
            self.progress.advance(step - before)
            evaluate = step % self.eval_every == 0 or step == self.total
            close = evaluate or step % self.log_every == 0
            if close or jax.process_count() == 1:  # several processes have to stop at the same step
                stopped_by = interrupts.agreed() or stopped_by
            interrupted = stopped_by.startswith("SIG")
            if close or interrupted:
                self._close_window(step, state)
            if evaluate:
                notes = self._evaluate(step, state, notes)
                if patience and notes["stale"] >= patience and not interrupted:
                    stopped_by = "patience"
            if evaluate or interrupted:
                if notes["best_step"] == step:
                    self.checkpoints.save("best", state, notes)
                self.checkpoints.save("latest", state, notes)  # last: whoever resumes from it finds its best as well
                self.since, self.waited = time.perf_counter(), 0.0
        self.progress.close()
        self.writer.close()
        return state, notes, stopped_by

    def _rate(self, notes: dict) -> np.float32 | None:
        """The factor on the learning rates after the evaluations so far; None where they stay."""
        factor = self.settings.plateau_factor
        return None if factor == 1.0 else np.float32(factor ** notes.get("plateaus", 0))

    def _place(self, group):
        """A group of batches, on the devices."""
        if isinstance(group, list):
            return [self.parts.program.place(batch) for batch in group]
        return self.parts.program.place(group, stacked=True)

    def _close_window(self, step: int, state) -> None:
        """Fetches the window's scalars, refuses non-finite ones, writes their means."""
        try:
            means = logs.window_means(self.window, state, self.checkpoints, self.window_start + 1, step)
        except UserError:
            self.progress.close()
            raise
        seconds, steps = time.perf_counter() - self.since, step - self.window_start
        speed = {
            "time/examples_per_second": steps * self.parts.work.source.batch_size / seconds,
            "time/input_wait_share": self.waited / seconds,
        }
        self.writer.write(step, means | speed)
        self.trained = (self.trained[0] + steps * self.parts.work.source.batch_size, self.trained[1] + seconds)
        self.shown = {
            "loss": (means["train/loss"], ".4f"),
            "examples/s": (speed["time/examples_per_second"], ",.0f"),
            "input wait": (speed["time/input_wait_share"], ".0%"),
        }
        self.progress.show(self.shown | self.best)
        self.window, self.window_start, self.waited, self.since = [], step, 0.0, time.perf_counter()
        self.attention = logs.attention_entropies(means)

    def _show_best(self, notes: dict) -> None:
        """Shows the best value on validation so far beside what is shown already."""
        metric, value = self.parts.config.eval.metric, notes["best_value"]
        self.best = {} if value is None else {f"best {metric}": (value, ".4f")}
        self.progress.show(self.shown | self.best)

    def _evaluate(self, step: int, state, notes: dict) -> dict:
        """Scores validation, logs it, and returns the notes with the best step brought up to date."""
        began = time.perf_counter()
        report = self.parts.validate(state)
        seconds = {"time/evaluation_seconds": time.perf_counter() - began}
        self.writer.write(step, {f"valid/{name}": value for name, value in report.items()} | seconds)
        value = report[self.parts.config.eval.metric]
        sign, best = metrics.sign(self.parts.config.eval.metric), notes["best_value"]
        better = best is None or math.isnan(best) or sign * value > sign * best  # NaN: where one class alone was there
        shown = [f"{name} {report[name]:.4f}" for name in self.parts.work.headline]
        shown += [terminal.styled("best", "green")] if better else []
        if self.attention:
            terminal.explain("entropy")
            shown.append(self.attention)
        said = terminal.listed(f"step {step:>7,}  valid", shown)
        self.progress.say(said, "evaluation", step=step, split="valid", is_best=better, **report)
        if better:
            notes = notes | {"best_step": step, "best_value": value, "stale": 0}
            self._show_best(notes)
            return notes
        if self.settings.plateau_factor != 1.0:
            notes = notes | {"plateaus": notes.get("plateaus", 0) + 1}
            self.progress.say(f"learning rates from here on: {self._rate(notes):g} of config's")
        return notes | {"stale": notes["stale"] + 1}


def main() -> int:
    parser = cli.Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--workdir", type=paths.local)
    args, others = parser.parse_known_args()
    changes = recipes.options(others)
    if not args.config or args.workdir is None:
        raise UserError(
            f"--config=configs/<name>.py and --workdir=<folder> are both needed; see {cli.spelled('train')} --help"
        )
    config = recipes.read(args.config, changes)

    def run() -> int:
        prepare_process(config.train)
        stopped_by = train(config, args.workdir)["stopped_by"]
        return 128 + signal.Signals[stopped_by] if stopped_by.startswith("SIG") else 0

    processes.check(config.mesh)
    return processes.supervised(config.mesh, run, lambda: _what_is_left(args.workdir))


def _what_is_left(directory: Path) -> str:
    """What a run can go on from that was cut off."""
    steps = sorted(int(path.name) for path in directory.glob("checkpoints/latest/*") if path.name.isdigit())
    kept = f"the checkpoint of step {steps[-1]:,} in {directory} is kept" if steps else "there is no checkpoint yet"
    return f"{kept}; run the same commands again, on as many processes as there are, to go on"


if __name__ == "__main__":
    cli.refuse_module("em3_jax.train", "em3 train", "train.py")
