"""What runs lose where content is missing: em3 missing --workdir runs/em3 --modality text --out rep

At each rate, a share of the items lacks the modality, as candidates and in histories alike: the
same items for all runs, drawn by a hash of their original ids, those of a lower rate among those of
a higher one. The best step of each run scores the split so; several runs (--workdir
runs/em3-0,runs/em3-1) are seeds of one config. --retrain trains the same configs again on data that
lack it, for training and test, and shows what that mends; killed, the same command goes on.
--baseline names runs on IDs alone, seed by seed, which lose nothing: the floor.

Intervals are 95 %, of the rows, those of one user (or of one item where whole items are held out)
counted as one; with several seeds p is of the t-test over them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax import cli
from em3_jax.config import parse, sections
from em3_jax.config.schema import Config, Ranking
from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.core.types import Batch, State
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.evaluation import compare
from em3_jax.evaluation.compare import Model
from em3_jax.evaluation.influence import KINDS, ByCluster
from em3_jax.protocols import overlay, page, points, runs
from em3_jax.training import experiment, step
from em3_jax.training.run import Run

RATES = (0.1, 0.3, 0.5, 0.7)
TEST, RETRAINED, FLOOR = "as trained", "trained so", "baseline"


class _Scored(NamedTuple):
    """A run's report on the split, and how each user or item moves it."""

    report: dict[str, Any]
    moved: ByCluster


def missing(
    directories: Sequence[str | Path],
    modalities: tuple[str, ...],
    out: str | Path,
    *,
    rates: Sequence[float] = RATES,
    split: str = "test",
    seed: int = 0,
    retrain: bool = False,
    baselines: Sequence[str | Path] = (),
    say=print,
) -> dict[str, Any]:
    """The curves of runs over the share of items that lack modalities.

    Args:
      directories: of runs of one config, one a seed.
      modalities: names of feature sets.
      out: folder of the data and the runs that are made.
      rates: shares of the items; 0 is added.
      split: "valid" or "test", or "train".
      seed: of the draw of the items.
      retrain: whether to train the same configs on such data, too.
      baselines: runs to be above, of the same seeds.
      say: what to call with a line of progress.

    Returns:
      {"modality", "split", "seeds", "rows", "clusters", "curves": {curve: [point]}, ...}, see
        `points.of`.

    Raises:
      UserError: a rate is no share; the runs are no seeds of one config, or read no such content.
    """
    out = Path(out)
    rates = sorted({0.0, *map(_checked, rates)})
    found = sorted(map(runs.ranking, directories), key=lambda one: one[1].seed)
    others = sorted(map(runs.ranking, baselines), key=lambda one: one[1].seed)
    _require_seeds("--workdir", found)
    _require_seeds("--baseline", others)
    first, first_config = found[0]
    used = () if first_config.model.content == "none" else first_config.data.features
    modalities = overlay.check_modalities(modalities, used, str(first.folder))
    opened = [runs.opened(*one) for one in found]
    whole = opened[0].parts.work.dataset
    overlay.check_codes(whole, first_config.data.codes, modalities)
    facts = {"modality": list(modalities), "seed": seed, "data_hash": whole.meta["data_hash"]}
    runs.require_same(out / "data" / "made_from.json", facts, "choose another --out")
    name = "+".join(modalities)
    data = {
        rate: overlay.without(whole, modalities, rate, seed, out / "data" / f"{name}-{rate:g}")
        for rate in rates
        if rate
    }
    subjects = [_Subject(one) for one in opened]
    models = {TEST: [_model(f"{rate:g}", [one.scored(data.get(rate), split) for one in subjects]) for rate in rates]}
    if retrain:
        models[RETRAINED] = models[TEST][:1]
        for rate in rates[1:]:
            configs = [one.config for one in opened]
            folders = [out / "runs" / f"{name}-{rate:g}-seed{config.seed}" for config in configs]
            for config, folder in zip(configs, folders, strict=True):
                runs.finish(runs.with_data(config, data[rate]), folder, split, say)
            models[RETRAINED].append(compare.of_runs(f"{rate:g}", folders, split))
    floor = _floor([runs.opened(*one) for one in others], models[TEST][0], split)
    rows = np.asarray(whole.split_rows(split, first_config.data.label))
    shares = {rate: _shares(whole, modalities, rate, seed, rows) for rate in rates}
    curves: dict[str, list[points.Point]] = {}
    for label, of in models.items():
        curves[label] = []
        for rate, model, plain in zip(rates, of, models[TEST], strict=True):
            against = {points.DIFFERENCE: models[TEST][0], points.ABOVE: floor, points.MENDED: plain}
            curves[label].append(points.of(rate, model, against) | shares[rate])
    if floor is not None:
        curves[FLOOR] = [points.of(rate, floor, {}) for rate in rates]
    return {
        "modality": list(modalities),
        "split": split,
        "seed": seed,
        "runs": [str(one) for one in directories],
        "seeds": models[TEST][0].seeds,
        "rows": len(rows),
        "clusters": points.clusters(models[TEST][0]),
        "data_hash": whole.meta["data_hash"],
        "curves": curves,
    }


def _checked(rate: float) -> float:
    if not 0 <= rate <= 1:
        raise UserError(f"--rates {rate:g}: give shares of the items from 0 to 1, e.g. 0.1,0.3,0.5,0.7")
    return float(rate)


def _require_seeds(option: str, found: Sequence[tuple[Run, Ranking]]) -> None:
    """Refuses runs that are not one config on one dataset, a seed each."""
    for run, config in found[1:]:
        first, first_config = found[0]
        changed = sections.differences(_but_seed(first_config), _but_seed(config))
        if changed or run.data_hash != first.data_hash:
            why = changed[0] if changed else "they were made on different datasets"
            raise UserError(
                f"{option}: {run.folder} is not of the config and data of {first.folder} ({why}); name its seeds"
            )
    seeds = [config.seed for _, config in found]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{option}: two runs have the same seed ({', '.join(map(str, seeds))}); name one run a seed")


def _but_seed(config: Config) -> dict:
    plain = parse.plain(config)
    plain.pop("seed")
    plain["data"].pop("root")
    plain["train"].pop("init_from")
    return plain


class _Subject:
    """A run scored on several datasets, whose content is an argument of one compiled prediction."""

    def __init__(self, opened: runs.Opened):
        self._opened, parts = opened, opened.parts
        task = parts.work.task
        self._apply = step.make_apply(task, task.predict, parts.program.mesh, parts.work.shards)

    def scored(self, root: Path | None, split: str) -> _Scored:
        """What its best step gives on the dataset in `root`; None = on its own."""
        config, state = self._opened.config, self._opened.state
        work = self._opened.parts.work if root is None else experiment.of_run(config, root).work
        assert work.evaluate is not None  # as runs of task ranking have it

        def predict(state: State, batch: Batch) -> Any:
            return self._apply(state.params, state.tables, state.memory, work.constants, batch)

        report = work.evaluate(predict, state, split)
        held = work.dataset.meta.get("held_out", KINDS[0])
        by = held if held in report.moved_by else KINDS[0]
        told = {"slices": report.slices, "config": parse.plain(config), "clusters": by}
        return _Scored(told | {"data_hash": self._opened.run.data_hash}, report.moved_by[by])


def _model(name: str, scored: Sequence[_Scored]) -> Model:
    """The runs' reports as `compare` takes them."""
    by = scored[0].report["clusters"]
    return Model(name, [one.report for one in scored], [one.moved for one in scored], by)


def _floor(opened: Sequence[runs.Opened], model: Model, split: str) -> Model | None:
    """The baseline's runs, scored as they are; None without."""
    if not opened:
        return None
    floor = _model(FLOOR, [_Subject(one).scored(None, split) for one in opened])
    compare.check_paired([floor, model])
    return floor


def _shares(
    dataset: Dataset, modalities: tuple[str, ...], rate: float, seed: int, rows: np.ndarray
) -> dict[str, float]:
    """{"items_without", "rows_without"}: shares that lack all the modalities, drawn or not."""
    gone = overlay.drawn(dataset, rate, seed)
    has = np.zeros(dataset.num_items, bool)
    for name in modalities:
        has |= np.asarray(dataset.features(name).mask.any(axis=1))
    lacks = gone | ~has
    item = dataset.interactions["item"][rows]
    return {"items_without": float(lacks.mean()), "rows_without": float(lacks[item].mean())}


def make_page(report: dict[str, Any], command: str) -> page.Page:
    """The page of a report."""
    what, seeds = " and ".join(report["modality"]), len(report["seeds"])
    said = [
        f"{what} missing on the {report['split']} split: n = {report['rows']:,} rows, of {report['clusters']}; "
        f"{seeds} seed{'s' * (seeds > 1)}: {', '.join(report['runs'])}.",
        "At each rate so many of the items lack it, as candidates and in histories, drawn by a hash of their ids (seed "
        f"{report['seed']}); those of a lower rate are among those of a higher one. '{TEST}': trained on whole content. "
        + (
            f"'{RETRAINED}': trained again where it is missing, too; 'mended' is its gain over '{TEST}'. "
            if RETRAINED in report["curves"]
            else ""
        )
        + (f"'{FLOOR}': runs without content. " if FLOOR in report["curves"] else "")
        + f"'difference' is from '{TEST}' with nothing drawn. "
        + points.legend(seeds, report["clusters"]),
    ]
    curves, tables = report["curves"], []
    of_points = {label: of for label, of in curves.items() if label != FLOOR}
    for metric in points.METRICS:
        head = ["items lack it", "rows lack it"]
        first = {
            point["x"]: [f"{point['items_without']:.1%}", f"{point['rows_without']:.1%}"] for point in curves[TEST]
        }
        tables.append(points.table(metric, "drawn", lambda x: f"{x:.0%}", of_points, (head, first)))
    if FLOOR in curves:
        tables.append(points.floor_table(curves[FLOOR][0]))
    picture = points.picture(curves, "share of the items drawn to lack it", FLOOR, in_percent=True)
    return page.Page(f"Missing {what}", said, tables, picture, command)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    shares = cli.as_numbers(float, "shares with commas, e.g. 0.1,0.3,0.5,0.7")
    folders: dict[str, Any] = {"type": cli.as_list, "metavar": "RUN,..."}
    parser.add_argument("--workdir", required=True, help="runs of one config, one a seed", **folders)
    parser.add_argument(
        "--modality",
        required=True,
        type=cli.as_list,
        metavar="NAME,...",
        help="feature sets; of several, items lack all",
    )
    parser.add_argument(
        "--rates", type=shares, default=RATES, metavar="SHARE,...", help="of the items (default 0.1,0.3,0.5,0.7)"
    )
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of the items (default 0)")
    parser.add_argument(
        "--retrain", action="store_true", help="also train the same configs on such data; goes on when killed"
    )
    parser.add_argument("--baseline", default=(), help="runs on IDs alone, of the same seeds", **folders)
    parser.add_argument("--out", type=paths.local, required=True, help="a folder for the page, the data and the runs")
    args = parser.parse_args()
    workdirs, baselines = ([paths.local(one) for one in given] for given in (args.workdir, args.baseline))
    page.folder(args.out)
    options = {"rates": args.rates, "split": args.split, "seed": args.seed, "retrain": args.retrain}
    report = missing(workdirs, args.modality, args.out, baselines=baselines, **options)
    made = make_page(report, page.command_line())
    page.show(made, report, page.write(args.out, "missing", report, made))
