"""Writes what a run has learnt into a store that services read: em3 export --workdir runs/em3 --out store/

The store gets a new version: content embeddings of all items, by original id, and the ranking model
compiled ahead of time, which takes ids and looked-up embeddings; with --format onnx as an ONNX file,
too. Readers see the old version or the new one, never a mixture (`em3_jax.serving`). A killed export
goes on where it stopped. With --update, items whose content is as it was in the version before are
not encoded again, and the dataset may have new items since training; with --every 1h it goes on
looking for newer checkpoints until it is stopped.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax import cli
from em3_jax.core import npy, paths, terminal, trees
from em3_jax.core.errors import UserError
from em3_jax.data.format import FeatureSet
from em3_jax.evaluation import calibration
from em3_jax.export import onnx_model, same_data, scorer
from em3_jax.export.items import encode_items
from em3_jax.export.model import write_model
from em3_jax.export.rounding import Cost, cost
from em3_jax.serving import store
from em3_jax.tables import packing
from em3_jax.training import growth
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.experiment import Experiment
from em3_jax.training.processes import Interrupts
from em3_jax.training.run import Run

DTYPES = ("float32", "float16", "int8")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SAME_ENCODER = (
    "kind",
    "encoder",
    "model_type",
    "weights_hash",
    "below",
    "random_weights",
    "preprocessing",
    "pooling",
    "normalize",
)
"""Of a feature set's manifest: what has to be alike for its items to mean the same to a model."""


class Settings(NamedTuple):
    """How to export.

    Attributes:
      data_root: the dataset folder, if it is not where it was in training; None = there.
      checkpoint: "best", "newest", or a step.
      dtype: in which looked-up vectors are stored, one of `DTYPES`.
      update: take over from the version before what has not changed.
      keep: how many versions the store keeps.
      batch_size: items encoded at once.
      platforms: for which the ranking model is compiled.
      other_data: the store may go over from another dataset to the run's.
      with_onnx: the ranking model as an ONNX file as well, see `onnx_model`.
      any_candidates: that file is for any number of candidates.
    """

    data_root: str | Path | None = None
    checkpoint: str = "best"
    dtype: str = "float32"
    update: bool = False
    keep: int = 3
    batch_size: int = 2048
    platforms: tuple[str, ...] = scorer.PLATFORMS
    other_data: bool = False
    with_onnx: bool = False
    any_candidates: bool = False


class Exported(NamedTuple):
    """What an export did.

    Attributes:
      version: its name.
      encoded, reused: items encoded, and taken over.
      seconds: of encoding.
      rounding: what storing vectors in fewer bits costs; None where it was not measured.
    """

    version: str
    encoded: int
    reused: int
    seconds: float
    rounding: Cost | None = None


def export(directory: str | Path, out: str | Path, settings: Settings) -> Exported:
    """Publishes the checkpoint of a run as the next version of the store `out`.

    Args:
      directory: the run's folder.

    Raises:
      UserError: whatever the user can mend; the version served stays.
    """
    directory = Path(directory)
    run = Run.open(directory, settings.data_root)
    record, parts = run.record, run.experiment
    if not parts.work.task.can_be_served:
        raise UserError(
            f"{directory}: cannot be served: its task, {run.config.task}, scores no "
            "clicks, or it reads the words of a query; "
            "`em3 vectors` writes its embeddings"
        )
    with store.writing(out) as folder:
        served = _served(out, settings.update)
        previous = served if settings.update else None
        _check_data(run, previous)
        manifest_there = served.manifest if served else None
        same_data.check(out, manifest_there, record, parts.work.dataset, settings.other_data)
        state, carried = growth.restore(run.checkpoints, directory, parts, _step(run.checkpoints, settings.checkpoint))
        model_hash = _hash(state.params, packing.unpacked(state.memory))
        reusable = previous if previous and _may_reuse(previous, model_hash, settings.dtype) else None
        plan = {
            "model": model_hash,
            "data": parts.work.dataset.meta["data_hash"],
            "features": parts.feature_hashes,
            "settings": [settings.dtype, settings.batch_size, *_of_onnx(settings)],
            "calibration": calibration.read(directory, int(state.step)).to_json(),
            "reuses": reusable and reusable.name,
        }
        _begin(folder, plan)
        began = time.perf_counter()
        encoded = encode_items(
            folder, parts, state, dtype=settings.dtype, batch_size=settings.batch_size, reusable=reusable
        )
        seconds = time.perf_counter() - began
        rounded = None if settings.dtype == DTYPES[0] else cost(parts, state, encoded.vectors)
        with_onnx = settings.with_onnx, settings.any_candidates
        facts = write_model(folder, parts, state, encoded.widths, carried, settings.platforms, *with_onnx)
        if (found := calibration.read(directory, int(state.step))).first.method:
            facts["calibration"] = found.to_json()
        manifest = {
            "checkpoint": {"workdir": directory.name, "step": int(state.step), "model_hash": model_hash},
            "commit": record["commit"],
            "data_hash": parts.work.dataset.meta["data_hash"],
            "rows": same_data.sample(parts.work.dataset),
            "features": {name: facts for name, _, facts in content_of(parts)},
            "counts": {
                "users": parts.work.dataset.num_users,
                "items": parts.work.dataset.num_items,
                "items_with_content": int(npy.load(folder / "has_content.npy", mmap_mode="r")[:-1].sum()),
            },
            "dtype": settings.dtype,
            "serving": facts,
        } | ({"rounding": rounded._asdict()} if rounded else {})
        version = store.publish(out, manifest, settings.keep)
    reused = parts.work.dataset.num_items - encoded.count if encoded.widths else 0
    return Exported(version, encoded.count, reused, seconds, rounded)


def _of_onnx(settings: Settings) -> list[str]:
    """What an export's plan says of it."""
    return (["onnx"] if settings.with_onnx else []) + (["any candidates"] if settings.any_candidates else [])


def _step(checkpoints: Checkpoints, which: str) -> int | None:
    """The step to restore; None is the best."""
    if which == "best":
        return None
    if which == "newest":
        return max(checkpoints.steps("latest") + checkpoints.steps("best"), default=None)
    if not (which.isascii() and which.isdigit()):
        raise UserError(f"--checkpoint {which}: give best, newest, or the number of a step")
    return int(which)


def _check_data(run: Run, previous: store.Version | None) -> None:
    """Refuses data that are not the run's; those of an update may have grown, and their content may have changed."""
    run.check_data(grown=previous is not None)
    if previous is None:
        return
    for name, hash_, facts in content_of(run.experiment):
        if hash_ != run.record["features"].get(name) and facts != previous.manifest["features"].get(name):
            raise UserError(
                f"{run.experiment.work.dataset.root}: the features '{name}' were made otherwise than those of version "
                f"{previous.name}; make them with the same encoder, or train again"
            )


def content_of(parts: Experiment) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, hash, facts) of the feature sets and code sets in use, see `Experiment.feature_hashes`."""
    facts = {one.name: facts_of(one) for one in parts.work.feature_sets}
    facts |= {f"codes/{one.name}": one.facts for one in parts.work.code_sets}
    facts |= {f"sought/{one.name}": facts_of(one) for one in parts.work.sought_sets}
    return [(name, hash_, facts[name]) for name, hash_ in parts.feature_hashes.items()]


def facts_of(features: FeatureSet) -> dict[str, Any]:
    """What has to be alike for the items of a feature set to mean the same to a model."""
    facts = {key: features.manifest[key] for key in SAME_ENCODER if key in features.manifest}
    return json.loads(json.dumps(facts | {"shape": list(features.tokens.shape[1:])}))


def _hash(*trees_: Any) -> str:
    digest = hashlib.sha256()
    for tree in trees_:
        for name, leaf in trees.named_leaves(tree).items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return digest.hexdigest()


def _served(out: str | Path, update: bool) -> store.Version | None:
    """The version served, if there is one that can be read; says where there is none to update."""
    try:
        if store.current_name(out) is not None:
            return store.open_current(out)
        said = "there is no earlier version"
    except UserError as error:
        said = str(error)
    if update:
        print(f"{said}: all items are encoded")
    return None


def _may_reuse(previous: store.Version, model_hash: str, dtype: str) -> bool:
    if previous.manifest["checkpoint"]["model_hash"] != model_hash or previous.manifest["dtype"] != dtype:
        print(f"version {previous.name} is of another checkpoint or dtype: all items are encoded")
    else:
        return True
    return False


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Makes `folder` this plan's; what is there of the same plan stays."""
    path = folder / "plan.json"
    try:
        if path.exists() and json.loads(path.read_text(encoding="utf-8")) == plan:
            return
    except ValueError:  # damaged: begun afresh
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store.write_json(path, plan)


def parse_interval(text: str) -> float:
    """Seconds of "90s", "30m", "1h", "1d"."""
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * SECONDS[unit]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"--every {text}: give a number and one of s, m, h, d, for example 30m")
    return seconds


def keep_exporting(directory: str | Path, out: str | Path, settings: Settings, every: float, show: Callable) -> None:
    """Exports whenever the run has another checkpoint than the version served, looking each `every` seconds, until a signal.

    Once a version has been published, an export that fails is reported and tried again the next time: a full disk is no reason
    to stop refreshing for good. So is one whose checkpoint training has replaced meanwhile, at once.
    """
    seen = None
    with Interrupts() as interrupts:
        while not interrupts.received:
            began = time.monotonic()
            found = _exportable(directory, settings)
            if found != seen:
                try:
                    show(export(directory, out, settings))
                    seen = found
                except UserError as error:
                    if _exportable(directory, settings) != found:
                        continue
                    if seen is None:
                        raise
                    print(f"{error}; the version before stays, trying again", file=sys.stderr, flush=True)
            while time.monotonic() - began < every and not interrupts.received:
                time.sleep(min(0.2, every))
    print("stopped")


def _exportable(directory: str | Path, settings: Settings) -> tuple[str, int | None, list[int]]:
    """What a run offers at this moment: another value is a reason to export."""
    data_hash = Run.open(directory).data_hash
    checkpoints = Checkpoints(directory)
    found = data_hash, _step(checkpoints, settings.checkpoint), checkpoints.steps("best")
    checkpoints.close()
    return found


def main() -> None:
    defaults = Settings()
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a training run")
    parser.add_argument("--out", type=paths.local, required=True, help="the store; made if it is not there")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    parser.add_argument("--checkpoint", help="best (default), newest (default with --every), or a step")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default=defaults.dtype,
        help="of the stored vectors; what fewer bits cost in AUC is told",
    )
    parser.add_argument("--update", action="store_true", help="encode new and changed items alone")
    parser.add_argument("--every", metavar="TIME", help="go on exporting newer checkpoints: 30m, 1h, 1d")
    parser.add_argument("--keep", type=int, default=defaults.keep, help=f"versions to keep (default {defaults.keep})")
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size, help="items encoded at once")
    parser.add_argument(
        "--platforms", type=cli.as_list, default=defaults.platforms, help="to compile for (default cpu,cuda,tpu)"
    )
    parser.add_argument(
        "--other-data", action="store_true", help="let the store go over from another dataset to that of this run"
    )
    parser.add_argument(
        "--format", choices=("store", "onnx"), default="store", help="onnx adds ranker.onnx to the version"
    )
    parser.add_argument(
        "--candidates", choices=(str(onnx_model.CANDIDATES), "any"), help="of ranker.onnx at once (default 64)"
    )
    args = parser.parse_args()
    if args.candidates and args.format != "onnx":
        raise UserError("--candidates: is of --format onnx, which is not given; leave it out")
    every = parse_interval(args.every) if args.every else 0.0
    if args.keep < 1 or args.batch_size < 1:
        raise UserError("--keep and --batch-size: give at least 1")
    unknown = set(args.platforms) - {*scorer.PLATFORMS, "rocm"}
    if unknown or not args.platforms:
        raise UserError(f"--platforms: give some of {', '.join(scorer.PLATFORMS)}, rocm")
    settings = Settings(
        args.data, args.checkpoint or ("newest" if every else "best"), args.dtype, args.update, args.keep,
        args.batch_size, args.platforms, args.other_data, args.format == "onnx",
        args.candidates == "any",
    )  # fmt: skip

    def show(done: Exported) -> None:
        rate = f", {done.encoded / max(done.seconds, 1e-9):,.0f} a second" if done.encoded else ""
        encoded = f"{done.encoded:,} items encoded{rate}, {done.reused:,} taken over"
        said = f"{args.out}: version {done.version} published: {encoded}"
        if done.rounding is not None:
            said += f"\n{done.rounding.told(settings.dtype)}"
        numbers: dict[str, Any] = {"encoded": done.encoded, "taken_over": done.reused, "seconds": done.seconds}
        terminal.result(said, out=str(args.out), version=done.version, **numbers)

    if every:
        keep_exporting(args.workdir, args.out, settings, every, show)
    else:
        show(export(args.workdir, args.out, settings))
