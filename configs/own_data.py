"""EM3 on a dataset of your own: reads what it holds and chooses feature sets, id fields and sizes by it.

em3 prepare table --interactions clicks.csv --items items.csv --item-text title --out data/mine
em3 extract --data data/mine --modality text --encoder <folder>
python train.py --config=configs/own_data.py --config.data.root=data/mine --workdir=runs/mine
python train.py --config=configs/own_data.py:id_only --config.data.root=data/mine --workdir=runs/mine-ids
python train.py --config=configs/own_data.py:mmoe --config.data.root=data/mine --workdir=runs/mine-mmoe

The last one learns the dataset's further labels as well. All feature sets of the dataset are used but raw content and
vectors of runs; without any, the ranking model runs on IDs alone.
"""

import functools
import json

from configs import base
from em3_jax.core import paths

HELD_OUT = 0.95  # share of validation rows with a new id from which on all are
LARGE = 1_000_000  # training rows from which on the content part is as wide as the paper has it


def several(config, kind: str):
    """All further labels and amounts of the dataset beside the first label; esmm: the first further one, of clicked rows."""
    folder = paths.local(config.data.root)
    meta = _read(folder / "dataset.json")
    if meta is None:  # the error is that of whoever opens it
        return base.heads(config, kind, ())
    labels, amounts = tuple(meta.get("labels", {})), tuple(meta.get("amounts", {}))
    if kind == "esmm":
        labels, amounts = labels[:1], ()
    if not labels and not amounts:
        raise ValueError(f"{folder} has no further label for {kind}; prepare it with --labels or --amounts")
    return base.heads(config, kind, (*labels, *amounts), dict.fromkeys(amounts, "log"))


VARIANTS = base.VARIANTS | {
    kind: functools.partial(several, kind=kind) for kind in ("shared_bottom", "mmoe", "ple", "esmm")
}


def get_config(arg: str = "", root: str = ""):
    config = base.ranking()
    config.data.root = root or "data/mine"
    folder = paths.local(config.data.root)
    meta = _read(folder / "dataset.json")
    if meta is None:  # the error is that of whoever opens it
        return base.variant(config, arg, VARIANTS)
    if meta.get("only_clicks"):
        raise ValueError(f"{folder} holds clicks alone; train configs/retrieval.py on it, or draw negatives")
    config.data.features = tuple(
        manifest.parent.name
        for manifest in sorted(folder.glob("features/[!.]*/manifest.json"))
        if _is_content(_read(manifest) or {})
    )
    rows = meta["summary"]["splits"]["train"]["rows"]
    _sizes(config, rows)
    # Ids that validation has and training has not are met as `unknown`: training meets that as often.
    valid = meta["summary"]["splits"]["valid"]
    config.data.unknown_floor = {
        field: _floor(valid.get(new) or 0.0)
        for field, new in (("user", "rows_with_new_user"), ("item", "rows_with_cold_item"))
    }
    config.model.cic.id_fields = tuple(name for name, *_ in meta["fields"]["item"])
    if not config.data.features:
        config = base.id_only(config)
    return base.variant(config, arg, VARIANTS)


def _floor(new: float) -> float:
    """Where whole users or items are held out, always: then their own ids are of no use."""
    return 1.0 if new > HELD_OUT else round(min(new, 0.3), 1)


def _sizes(config, rows: int) -> None:
    """Batches that leave an epoch some hundred steps where it can, two evaluations an epoch, and a content part by the rows."""
    while config.data.batch_size > 64 and rows < 200 * config.data.batch_size:
        config.data.batch_size //= 2
    config.train.eval_every = max(rows // config.data.batch_size // 2, 1)
    config.train.log_every = min(config.train.log_every, config.train.eval_every)
    config.train.epochs = 20.0
    config.train.patience = 6
    if rows < LARGE:
        config.model.fusion_settings.width = 32
        config.model.fusion_settings.ffn_width = 64
        config.model.fusion_settings.dropout = 0.3


def _is_content(manifest: dict) -> bool:
    return "raw" not in manifest and manifest.get("kind") != "run"


def _read(path) -> dict | None:
    """The object of a JSON file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
