"""A run's folder: which config, dataset and program it belongs to."""

import importlib.metadata
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em3_jax import config as config_
from em3_jax.types import UserError

PACKAGES = ("em3_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
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
)
"""A resumed run may train longer, log otherwise, lie elsewhere, or use other devices; all else would be another run."""


def claim(
    workdir: str | Path, config: Mapping[str, Any], data_hash: str, features: Mapping[str, str], *, write: bool = True
) -> bool:
    """Makes `workdir` this run's, or makes sure that it is; returns whether it was before.

    Args:
      config: the resolved config, plain values.
      data_hash: of the dataset.
      features: name -> hash of the feature sets in use.
      write: False only makes sure.
    """
    workdir = Path(workdir)
    path = workdir / "run.json"
    config = json.loads(json.dumps(config))  # tuples and lists are the same thing from here on
    resumed = path.exists()
    if resumed:
        _check_same(path, config, data_hash, features)
    if not write:
        return resumed
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workdir}: cannot make this folder ({error.strerror}); choose another --workdir") from None
    record = {
        "config": config,
        "data_hash": data_hash,
        "features": dict(features),
        "own_files": config_.own_files(config),
        "commit": commit(),
        "packages": _versions(),
    }
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another --workdir"
        ) from None
    temporary.replace(path)
    return resumed


def read(workdir: str | Path) -> dict[str, Any]:
    """The record of a run: config, data_hash, features, own_files, commit, packages."""
    path = Path(workdir) / "run.json"
    if not path.exists():
        raise UserError(f"{path}: file missing; is {workdir} the --workdir of a `train.py` run?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error}); train again in a new --workdir") from None


def check_data(workdir: str | Path, record: Mapping[str, Any], data_hash: str, features: Mapping[str, str]) -> None:
    """Refuses a dataset, feature sets or files of the user's own other than those the run was trained with."""
    root = record["config"]["data"]["root"]
    if record["data_hash"] != data_hash:
        raise UserError(
            f"{workdir}: belongs to another dataset: the data in {root} have hash {data_hash[:12]}, the run was made with "
            f"{record['data_hash'][:12]}; choose another --workdir or restore the dataset"
        )
    for name, found in config_.own_files(record["config"]).items():
        if record.get("own_files", {}).get(name, found) != found:
            raise UserError(
                f"{workdir}: {name} has changed since it was trained; choose another --workdir or restore the file"
            )
    for name, found in features.items():
        if record.get("features", {}).get(name, found) != found:
            raise UserError(
                f"{workdir}: the features '{name}' in {root} are not those it was trained on (hash {found[:12]}, then "
                f"{record['features'][name][:12]}); choose another --workdir or restore them"
            )


def _check_same(path: Path, config: Mapping[str, Any], data_hash: str, features: Mapping[str, str]) -> None:
    old = read(path.parent)
    check_data(path.parent, old, data_hash, features)
    changed = [line for line in config_.differences(old["config"], config) if not line.startswith(MAY_CHANGE)]
    if changed:
        raise UserError(
            f"{path.parent}: belongs to another config ({'; '.join(changed[:3])}); choose another --workdir"
        )


def _versions() -> dict[str, str]:
    return {p: importlib.metadata.version(p) for p in PACKAGES if p in _installed()}


def _installed() -> set[str]:
    return {d.metadata["Name"] for d in importlib.metadata.distributions()}


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
