"""A run's folder: which config, dataset and program it belongs to."""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from em3_jax.config import parse, sections
from em3_jax.config.schema import Config
from em3_jax.core import strict_json
from em3_jax.core.errors import UserError

Kept = TypeVar("Kept")
PACKAGES = ("em3_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
NET = "cnn:"  # begins the name of a net that trains from scratch, see `features.scratch_encoders`
MAY_CHANGE = (
    "config.train.",
    "config.mesh.",
    "config.data.root:",
    "config.data.placement:",
    "config.data.distinct:",
    "config.model.encoders.",
    "config.eval.popular_share:",
    "config.eval.user_block:",
    "config.eval.item_block:",
    "config.eval.activity:",
    "config.stream.poll_seconds:",
    "config.stream.idle_seconds:",
    "config.stream.most_windows:",
    "config.stream.on_bad_row:",
    "config.stream.publish",
    "config.stream.hot_share:",
    "config.stream.refresh_",
)
"""A resumed run may train longer, log otherwise, lie elsewhere, or use other devices; all else would be another run."""


def claim(
    workdir: str | Path,
    config: Config,
    data_hash: str,
    features: Mapping[str, str],
    *,
    grown: bool = False,
    write: bool = True,
) -> bool:
    """Makes `workdir` this run's, or makes sure that it is; returns whether it was before.

    Args:
      data_hash: of the dataset.
      features: name -> hash of the feature sets in use.
      grown: the data are those the run goes on with, whatever they were.
      write: False only makes sure.
    """
    workdir = Path(workdir)
    path = workdir / "run.json"
    resumed = path.exists()
    grown_from = []
    if resumed:
        check_same(workdir, config, data_hash, features, grown)
        old = read(workdir)
        _check_cores(workdir, old)
        grown_from = old.get("grown_from", []) + [old["data_hash"]] * (old["data_hash"] != data_hash)
    if not write:
        return resumed
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot make this folder ({error.strerror}); choose another --workdir") from None
    settings = parse.plain(config)
    record = {
        "config": settings,
        "data_hash": data_hash,
        "grown_from": grown_from,
        "features": dict(features),
        "own_files": sections.own_files(settings),
        "commit": commit(),
        "packages": _versions(),
        "cores": cores(),
    }
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(strict_json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another --workdir"
        ) from None
    temporary.replace(path)
    return resumed


def read(workdir: str | Path) -> dict[str, Any]:
    """The record of a run.

    config, data_hash, grown_from (the hashes before it), features, own_files, commit, packages, cores.
    """
    path = Path(workdir) / "run.json"
    if not path.exists():
        raise UserError(f"{path}: file missing; is {workdir} the --workdir of a `train.py` run?")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); train again in a new --workdir") from None
    if not _is_record(record):
        raise UserError(f"{path}: is not the record of a run; train again in a new --workdir")
    config = record["config"]
    if "stream" in config:  # which earlier versions let be called shuffled
        config.setdefault("data", {})["order"] = "chronological"
    if isinstance(encoder := config.get("model", {}).get("encoder"), dict):
        encoder.setdefault("means", False)
    return record


def _is_record(record: Any) -> bool:
    """Whether a record has what all commands read of it; the config's settings are checked by `config_of`."""
    if not isinstance(record, dict) or not isinstance(record.get("data_hash"), str):
        return False
    config = record.get("config")
    inside = isinstance(config, dict) and all(isinstance(config.get(name, {}), dict) for name in ("data", "model"))
    return inside and isinstance(record.get("features", {}), dict) and isinstance(record.get("own_files", {}), dict)


def config_of(workdir: str | Path, record: Mapping[str, Any]) -> Config:
    """The config of a run; what an older version has not is the schema's default.

    Args:
      record: what `read` gives.
    """
    try:
        return parse.parse(record["config"])
    except UserError as error:
        raise UserError(f"{Path(workdir) / 'run.json'}: {error}; restore the file, or train again") from None


def read_kept(
    path: Path,
    data_hash: str,
    read: Callable[[Path], Kept],
    errors: tuple[type[Exception], ...],
    *,
    form: str,
    tells: str,
) -> Kept:
    """What a run keeps in its folder of the dataset with that hash, for the time when it has grown.

    Args:
      path: of the file.
      read: path -> its content.
      errors: what `read` raises of a file that is damaged.
      form: what the file is, "Parquet".
      tells: what nothing says without it.

    Raises:
      UserError: the file is missing or damaged.
    """
    again = f"run once more with the dataset of hash {data_hash[:12]}"
    if not path.is_file():
        raise UserError(f"{path}: file missing, so nothing says {tells}; {again}, which writes it")
    try:
        return read(path)
    except errors as error:
        said = str(error)[:100]
        raise UserError(f"{path}: not a readable {form} file ({said}); delete it and {again}") from None


def first_data(workdir: str | Path) -> str | None:
    """The hash of the data a run began with; None where there is no run."""
    if not (Path(workdir) / "run.json").exists():
        return None
    record = read(workdir)
    return [*record.get("grown_from", []), record["data_hash"]][0]


def check_data(
    workdir: str | Path,
    record: Mapping[str, Any],
    data_hash: str,
    features: Mapping[str, str],
    grown: bool = False,
    hint: str = "",
) -> None:
    """Refuses a dataset, feature sets or files of the user's own other than those the run was trained with.

    Args:
      grown: dataset and feature sets may be others.
      hint: what else can be done about another dataset.
    """
    root = record["config"].get("data", {}).get("root", "")
    if record["data_hash"] != data_hash and not grown:
        raise UserError(
            f"{workdir}: belongs to another dataset: the data in {root} have hash {data_hash[:12]}, the run was made with "
            f"{record['data_hash'][:12]}; choose another --workdir or restore the dataset{hint}"
        )
    for name, found in sections.own_files(record["config"]).items():
        if record.get("own_files", {}).get(name, found) != found:
            raise UserError(
                f"{workdir}: {name} has changed since it was trained; choose another --workdir or restore the file"
            )
    for name, found in () if grown else features.items():
        if record.get("features", {}).get(name, found) != found:
            raise UserError(
                f"{workdir}: the features '{name}' in {root} are not those it was trained on (hash {found[:12]}, then "
                f"{record['features'][name][:12]}); choose another --workdir or restore them"
            )


def check_same(
    workdir: str | Path, config: Config, data_hash: str, features: Mapping[str, str], grown: bool = False
) -> None:
    """Refuses to go on with the run in `workdir` where it is another; arguments as of `claim`."""
    old = read(workdir)
    check_data(workdir, old, data_hash, features, grown)
    lines = sections.differences(parse.plain(config_of(workdir, old)), parse.plain(config))
    changed = [line for line in lines if not _may_change(line)]
    if changed:
        raise UserError(f"{workdir}: belongs to another config ({'; '.join(changed[:3])}); choose another --workdir")


def _may_change(line: str) -> bool:
    """Whether a resumed run may differ in this; an encoder may lie elsewhere, but a net from scratch is another model."""
    return line.startswith(MAY_CHANGE) and not (line.startswith("config.model.encoders.") and NET in line)


def cores() -> int:
    """The CPU cores that this process may use, over which XLA divides its sums."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_cores(workdir: Path, record: Mapping[str, Any]) -> None:
    """Warns where a run on CPUs goes on with another number of cores."""
    import jax  # not for whoever reads a record

    before, now = record.get("cores"), cores()
    if jax.default_backend() == "cpu" and before not in (None, now):
        few = f"; taskset -c 0-{before - 1} gives it as many" if before < now else ""
        warnings.warn(
            f"{workdir}: was trained on {before} CPU cores and goes on with {now}; the last digits of "
            f"its numbers will differ from those of a run on {before} alone{few}",
            stacklevel=3,
        )


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def commit() -> str | None:
    """The commit of the code, "+changes" if the checkout has any; None outside a checkout."""
    here = Path(__file__).parent
    run = lambda *args: subprocess.run(("git", *args), cwd=here, capture_output=True, text=True)  # noqa: E731
    try:
        head = run("rev-parse", "HEAD")
        return (
            head.stdout.strip() + ("+changes" if run("status", "--porcelain").stdout else "") if head.stdout else None
        )
    except OSError:
        return None
