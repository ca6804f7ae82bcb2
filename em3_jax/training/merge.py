"""Folds the adapters of a LoRA run back into its weights: em3 merge --workdir=runs/lora --out=runs/merged

The new folder holds a run of the same model without adapters, beside encoders too, which scores the same at less cost;
`eval.py` and `--config.train.init_from` take it like any other. Reads the best checkpoint of the run and nothing of its dataset.
"""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax

from em3_jax import cli
from em3_jax.config import parse
from em3_jax.config.schema import Config, Retrieval
from em3_jax.config.schema.ranking import RankingSettings
from em3_jax.core import paths, publish, strict_json, terminal, trees
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.core.types import State
from em3_jax.features import raw_encoders
from em3_jax.features.dial import ADAPTERS
from em3_jax.models import lora
from em3_jax.training import optim
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run


def merge(directory: str | Path, out: str | Path) -> dict[str, Any]:
    """Writes the merged run; returns {"step", "adapters": number of layers whose adapter was folded in}.

    It is built beside its final place and moved there whole, so an interrupted merge leaves no run.

    Args:
      directory: folder of a run with adapters.
      out: the folder to make.

    Raises:
      UserError: there is no such run, checkpoint or adapter, or `out` exists.
    """
    out = publish.resolved(out)
    with Lock(out, beside=not publish.is_mount(out), hint="wait for it, or choose another --out"):
        return _merge(Run.open(directory), out)


def _merge(run: Run, out: Path) -> dict[str, Any]:
    if (out / "run.json").exists():
        raise UserError(f"{out}: exists already as a run; choose another --out")
    if out.exists() and not (out.is_dir() and publish.is_empty(out)):
        raise UserError(f"{out}: exists already and is not an empty folder; choose another --out")
    saved, notes = _read(run)
    adapters = sum(name.endswith("/lora_a") for name in saved if name.startswith("params/"))
    if not adapters:
        raise UserError(
            f"{run.folder}: has no adapters (lora.rank 0, and no encoder_trains=adapters), so there is nothing to merge; choose "
            "another --workdir"
        )
    state, config = _without_adapters(saved, run.config)
    step = int(state.step)
    merged_from = {"workdir": str(run.folder.absolute()), "step": step}
    record = run.record | {"config": parse.plain(config), "merged_from": merged_from}
    temporary = publish.building_place(out)
    try:
        for left in publish.leftovers(out):
            shutil.rmtree(left)
        temporary.mkdir(parents=True)
        _write(temporary, state, notes, record)
        for name in ("vocabulary", "rows", "spill"):  # what it takes to grow, and ids that come and go
            if (kept := run.folder / name).is_dir():
                shutil.copytree(kept, temporary / name)
        publish.replace(temporary, out, last="run.json")
    except OSError as error:
        raise UserError(f"{out}: cannot make this folder ({error.strerror}); choose another --out") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {"step": step, "adapters": adapters}


def _read(run: Run) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """(leaf name -> array, notes) of the best checkpoint, or the newest if none was best."""
    try:
        saved = run.checkpoints.read(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
        return run.checkpoints.restore(saved, int(saved["step"]))
    finally:
        run.checkpoints.close()


def _without_adapters(saved: dict[str, jax.Array], config: Config) -> tuple[State, Config]:
    """(state, config) of the model without adapters.

    Patterns of `optim.multipliers` that matched adapters alone go; what else was frozen stays frozen. `train.init_from` is
    emptied: the folder it names has the weights of the phase before.
    """
    tree = flax.traverse_util.unflatten_dict(saved, sep="/")
    with jax.default_matmul_precision("highest"):  # GPUs and TPUs would round the product to fewer bits
        params = lora.merge(tree["params"])
    names = list(trees.named_leaves(params))
    kept = tuple(pair for pair in config.optim.multipliers if any(re.search(pair[0], name) for name in names))
    assert not isinstance(config, Retrieval)  # whose models have no adapters
    dials = {name: "none" if trains == ADAPTERS else trains for name, trains in config.model.encoder_trains.items()}
    model = replace(config.model, encoder_trains=dials)
    if isinstance(model, RankingSettings):  # whose fusion may have them
        fusion = replace(model.fusion_settings, lora=replace(model.fusion_settings.lora, rank=0))
        model = replace(model, fusion_settings=fusion)
    optimizer = replace(config.optim, multipliers=kept)
    course = replace(config.train, init_from="", init_parts="all")
    settings: Any = {"model": model, "optim": optimizer, "train": course}
    config = replace(config, **settings)
    rules = [rule for name in sorted(dials) for rule in raw_encoders.rules_of(name, config, params["encoders"][name])]
    made = optim.dense_optimizer(params, **parse.entries(optimizer) | {"multipliers": (*rules, *kept)})
    return State(tree["step"], params, made.init(params), tree.get("tables", {}), tree.get("memory", {})), config


def _write(folder: Path, state: State, notes: dict[str, Any], record: dict[str, Any]) -> None:
    checkpoints = Checkpoints(folder, record["data_hash"])
    try:
        # "best" is what others read; "latest" keeps `train.py` from starting afresh in this folder, over the merged weights.
        for kind in ("best", "latest"):
            checkpoints.save(kind, state, notes)
    finally:
        checkpoints.close()
    (folder / "run.json").write_text(
        strict_json.dumps(record, indent=1), encoding="utf-8"
    )  # last: a run is what has it


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a run with adapters")
    parser.add_argument("--out", type=paths.local, required=True, help="the folder to make")
    args = parser.parse_args()
    result = merge(args.workdir, args.out)
    said = f"{args.out}: step {result['step']:,} of {args.workdir}, {result['adapters']} adapters folded in"
    terminal.result(said, next_command=f"em3 eval --workdir={args.out} --split=test", out=str(args.out), **result)
