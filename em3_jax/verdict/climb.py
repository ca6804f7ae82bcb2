"""Climbs the ladder: all rungs on a fifth of the rows, the better ones on more, the best on all and with several seeds.

All that is chosen is chosen on validation: the settings by IDs alone, for all rungs; which rungs go on;
which is recommended. The test split is read when that is done.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from em3_jax.config import recipes
from em3_jax.core import strict_json
from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.export import codes
from em3_jax.trials import runs
from em3_jax.verdict import budget, ladder
from em3_jax.verdict.budget import Plan
from em3_jax.verdict.ladder import FUSION, IDS, Rung
from em3_jax.verdict.measure import Rows, scores, spread

SETTINGS: tuple[Mapping[str, Any], ...] = (
    {},
    {"model.backbone_settings.dropout": 0.4},
    {"model.backbone_settings.dropout": 0.4, "tables.learning_rate": 0.05, "optim.learning_rate": 3e-3},
)
"""What IDs alone try, and the best of it all rungs have; the first is the config as it stands."""
SLOW: Mapping[str, Any] = {"optim.multipliers": (("^model/(fusion|content_attention)/", 0.1),)}
"""What rungs that train content try besides: at the full rate it may learn by heart before IDs and fields have learnt."""
ALIKE = ("data.label", "data.batch_size", "train.epochs", "train.log_every", "train.patience")
"""Settings that a rung with a config of its own has from the others'."""
METRIC = "auc"


@dataclasses.dataclass
class Climb:
    """A ladder on a dataset, and how far it is climbed.

    Attributes:
      dataset, config, changes: of all runs, see `runs.make_jobs`.
      rungs: the first is IDs alone.
      plan: see `budget`.
      out: folder of the verdict; the runs lie in `runs` there.
      parallel: runs at once.
      settings: what the baseline has chosen.
      own: rung -> what it has chosen for itself besides.
      tried: what the settings that were tried give on validation.
      folders: (rung, share) -> the runs' folders, one a seed.
    """

    dataset: Dataset
    config: str
    changes: Mapping[str, Any]
    rungs: Sequence[Rung]
    plan: Plan
    out: Path
    parallel: int
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    own: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    tried: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    folders: dict[tuple[str, float], list[Path]] = dataclasses.field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.out / "runs"

    @property
    def baseline(self) -> Rung:
        return self.rungs[0]

    def rung(self, name: str) -> Rung:
        return next(rung for rung in self.rungs if rung.name == name)

    def scores(self, rung: str, share: float, split: str) -> np.ndarray:
        """[K, n] logits of a rung at a share."""
        return scores(self.folders[rung, share], split)

    def choose_settings(self) -> None:
        """Lets IDs alone try `SETTINGS` on the smallest share; of equals the first is taken."""
        share, found = self.plan.shares[0], []
        for number, settings in enumerate(SETTINGS):
            own = {key: value for key, value in settings.items() if key not in self.changes}
            planned = self._planned(self.baseline, share, own)
            found.append((own, planned._replace(name=f"{planned.name}_point{number}")))
        jobs = self._jobs([run for _, run in found], seeds=1, splits=("valid",))
        runs.run_all(jobs, self.parallel)
        values = [self._valid(run) for _, run in found]
        best = int(np.argmax(values))
        self.settings = found[best][0]
        self.tried = [
            {"settings": dict(own), "valid": value, "chosen": k == best}
            for k, ((own, _), value) in enumerate(zip(found, values, strict=True))
        ]

    def stage(self, seeds: Mapping[str, int], share: float) -> None:
        """Runs rungs on a share of the rows, and notes where they lie.

        Args:
          seeds: rung -> how many of it; what it waits for is run as often.
        """
        wanted = dict(seeds)
        for name, count in seeds.items():
            if before := self.rung(name).vectors_of:
                wanted[before] = max(wanted.get(before, 0), count)
        waiting = {name: n for name, n in wanted.items() if self.rung(name).waits_for in wanted}
        self._run({name: n for name, n in wanted.items() if name not in waiting}, share)
        if waiting:
            self._run(waiting, share)

    def _run(self, wanted: Mapping[str, int], share: float) -> None:
        """Runs rungs none of which waits for another one; those that train content first choose how fast it learns."""
        first = share == self.plan.shares[0]
        planned = {name: self._planned(self.rung(name), share, self.settings_for(name)) for name in wanted}
        if any(run.vectors_of or run.overlaid for run in planned.values()):
            runs.overlay(self.dataset.root, self.root / "data")
        if any(self.rung(name).codes for name in wanted):
            self._make_codes()
        slow = self._slow(planned) if first else {}
        jobs: dict[str, runs.Job] = {}
        for name, count in wanted.items():
            of_rung = [planned[name], *([slow[name]] if name in slow else [])]
            jobs |= self._jobs(of_rung, seeds=count, splits=("valid", "test"), cost=first)
        dearest = sorted(jobs.values(), key=lambda job: (job.name.rpartition("-")[2], -self._cost(job, wanted)))
        runs.run_all({job.name: job for job in dearest}, self.parallel)
        for name, count in wanted.items():
            if name in slow and self._better(slow[name], planned[name]):
                self.own[name], planned[name] = SLOW, slow[name]
            folders = [self.root / f"{planned[name].name}-{seed}" for seed in range(count)]
            before = self.folders.get((name, share), [])
            self.folders[name, share] = max(before, folders, key=len)

    def _cost(self, job: runs.Job, wanted: Iterable[str]) -> float:
        """Nominal, so that the long runs are not the last to begin."""
        return max(self.rung(name).cost for name in wanted if job.name.startswith(f"{name}_"))

    def on_validation(self, names: Sequence[str], share: float, rows: Rows) -> dict[str, float]:
        """Rung -> mean of the metric over its seeds on validation."""
        return {name: float(rows.value(self.scores(name, share, "valid"), METRIC).mean()) for name in names}

    def _slow(self, planned: Mapping[str, runs.PlannedRun]) -> dict[str, runs.PlannedRun]:
        """The runs that train content, so that it learns slowly; none where the user has set how it learns."""
        if any(key in self.changes for key in SLOW):
            return {}
        return {
            name: run._replace(name=f"{run.name}_slow", changes={**run.changes, **SLOW})
            for name, run in planned.items()
            if self.rung(name).trains
        }

    def _valid(self, run: runs.PlannedRun) -> float:
        """What a run of seed 0 has reached on validation, in `METRIC`, whichever metric it chose its step by."""
        report = strict_json.loads_report((self.root / f"{run.name}-0" / "eval_valid.json").read_text("utf-8"))
        return report["slices"]["all"][METRIC]

    def _better(self, one: runs.PlannedRun, other: runs.PlannedRun) -> bool:
        return self._valid(one) > self._valid(other)

    def settings_for(self, name: str) -> Mapping[str, Any]:
        """What the baseline has chosen, and the rung besides, or the one that it takes its settings from.

        A rung with a config of its own is trained on the same batches for as long as the others.
        """
        rung = self.rung(name)
        alike = {key: recipes.lookup(self._whole, key) for key in ALIKE} if rung.config else {}
        floors = self._whole.data.unknown_floor.items() if rung.config else ()
        alike |= {f"data.unknown_floor.{field}": floor for field, floor in floors}
        return {**alike, **self.settings, **self.own.get(rung.settings_of or name, {})}

    @functools.cached_property
    def _whole(self) -> ConfigDict:
        """The config as it stands."""
        return runs.settings(self.config, "", self._own())

    def is_slow(self, name: str) -> bool:
        """Whether the content of a rung learns slowly, by its own choice or that of the rung it takes settings from."""
        return (self.rung(name).settings_of or name) in self.own

    @property
    def label(self) -> str:
        """The label that the config reads."""
        return self._whole.data.label

    @property
    def features(self) -> tuple[str, ...]:
        """The feature sets that the config reads."""
        return tuple(self._whole.data.features)

    def _make_codes(self) -> None:
        """Codes of the content, once, beside the links to the dataset."""
        root = self.root / "data"
        if not (root / "codes" / ladder.CODES).is_dir():
            codes.make(root, ladder.CODES, self.features)

    def _own(self) -> dict[str, Any]:
        return {**self.changes, "data.root": str(self.dataset.root)}

    def _planned(self, rung: Rung, share: float, settings: Mapping[str, Any]) -> runs.PlannedRun:
        source = self.folders[rung.vectors_of, share][0].name.rpartition("-")[0] if rung.vectors_of else ""
        return ladder.planned(rung, share, settings, self._whole.train.eval_every, source)

    def _jobs(self, planned: Sequence[runs.PlannedRun], **how: Any) -> dict[str, runs.Job]:
        common: dict[str, Any] = {"config": self.config, "changes": self.changes, "root": self.root}
        named = {run.name: run for run in planned}
        return runs.make_jobs(named, data=self.dataset.root, **common, **how)


def climb(ladder_: Climb, valid: Rows, say=print) -> tuple[str, list[str]]:
    """(the content rung that validation chooses, the finalists: those with all rows)."""
    content = [rung.name for rung in ladder_.rungs if rung.name != IDS]
    plan = ladder_.plan
    say(f"IDs alone try {len(SETTINGS)} settings on {plan.shares[0]:.3g} of the training rows", flush=True)
    ladder_.choose_settings()
    for share, most in zip(plan.shares[:-1], budget.KEPT, strict=True):
        say(f"{len(content)} ways for content, on {share:.3g} of the training rows", flush=True)
        ladder_.stage(dict.fromkeys([IDS, *content], 1), share)
        found = ladder_.on_validation(content, share, valid)
        ranked = sorted(content, key=lambda name: -found[name])
        kept = ranked[:most]
        if share == plan.shares[0] and FUSION in content and FUSION not in kept:
            kept[-1] = FUSION  # what learns slowly has its curve told by two points, if not by three
        content = [name for name in content if name in kept]
    top = plan.shares[-1]
    say(f"{', '.join(content)}: on {top:.3g} of the rows", flush=True)
    ladder_.stage({IDS: plan.seeds_of_ids, **dict.fromkeys(content, 1)}, top)
    chosen = _chosen(ladder_, content, valid)
    say(f"{chosen}: {plan.seeds} seeds", flush=True)
    ladder_.stage({chosen: plan.seeds}, top)
    return chosen, content


def _chosen(ladder_: Climb, content: Sequence[str], valid: Rows) -> str:
    """The best on validation, or the cheapest that is within a standard error of it."""
    top = ladder_.plan.shares[-1]
    found = ladder_.on_validation(content, top, valid)
    best = max(content, key=lambda name: found[name])
    of = {name: ladder_.scores(name, top, "valid")[:1] for name in content}
    moved = spread([valid.value(ladder_.scores(name, top, "valid"), METRIC) for name in (IDS, *content)])
    for name in sorted(content, key=lambda name: ladder_.rung(name).cost):
        if name == best:
            break
        behind = valid.gain(of[best], of[name], METRIC, moved)
        if behind.value <= (behind.high - behind.low) / 3.92:  # 2 x 1.96 standard errors
            return name
    return best


def check(dataset: Dataset, rungs: Sequence[Rung], label: str) -> None:
    """Refuses data on which there is nothing to compare.

    Raises:
      UserError: one class alone, a split without rows, or no user with a past.
    """
    where = dataset.root
    if label in dataset.amounts:
        raise UserError(f"config.data.label={label}: is an amount; a verdict is of labels of 0 and 1")
    for split in ("train", "valid", "test"):
        rows = np.asarray(dataset.split_rows(split, label))
        if not len(rows):
            raise UserError(f"{where}: no {split} rows; prepare it with another --split")
        labels = dataset.label(label)[rows]
        if labels.min() == labels.max():
            raise UserError(
                f"{where}: all {len(rows):,} {split} rows have label {labels[0]}; a verdict needs clicks and others"
            )
    if len(rungs) < 2:
        raise UserError(f"{where}: has no content; make a feature set with `em3 extract` or `em3 features`")
    columns = dataset.interactions
    rows = np.asarray(dataset.split_rows("train", label))
    if not (columns["history_end"][rows] > columns["history_start"][rows]).any():
        raise UserError(
            f"{where}: no training row has a history, as where each user has one row; content has nothing to be "
            "compared with. Where users have several rows, prepare it with histories (table: --events all)"
        )
