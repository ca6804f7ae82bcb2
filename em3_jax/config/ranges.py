"""Every setting of a config with what it may be, in one table, and the check that all configs pass.

The command line, a config file and the config that a run has saved come through `checked`, so that whatever is out of range is
named before anything is made. Choices that a config's other settings or the dataset decide are checked where those are known.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from em3_jax.config.kinds import (
    Choice,
    Flag,
    Folder,
    Kind,
    Multiplier,
    Number,
    Pattern,
    Several,
    Text,
    Whole,
    is_section,
)
from em3_jax.config.sections import nearest
from em3_jax.core.errors import UserError

_SIZE, _COUNT = Whole(1), Whole(0)
_ABOVE_ZERO, _WEIGHT = Number(above=True), Number()
_SHARE, _DROPOUT = Number(most=1.0), Number(most=1.0, below=True)
_NAMES, _SIZES = Several(Text()), Several(_SIZE)
_FUSION = Choice(("fq_former", "masked_fq_former", "one_flow", "two_flow", "mean"), own=True)
_SCORE = Choice(("dot", "mlp", "cosine", "mean"), own=True)

_FUSION_SETTINGS = {
    "width": _SIZE,
    "queries": _SIZE,
    "layers": _SIZE,
    "heads": _SIZE,
    "ffn_width": _SIZE,
    "dropout": _DROPOUT,
    "layer_chunk": _COUNT,
    "lora.rank": _COUNT,
    "lora.stop_gradient": Choice(("output", "weights")),
}
_DATA = {
    "root": Folder(),
    "label": Text(),
    "features": _NAMES,
    "placement": Choice(("auto", "device", "host")),
    "history_length": _SIZE,
    "batch_size": _SIZE,
    "distinct": Choice(("auto", "batch", "shard")),
    "order": Choice(("shuffled", "chronological")),
    "most_rows_per_user": _COUNT,
    "unknown_alpha": _WEIGHT,
    "unknown_floor.*": _SHARE,
    "edge_dropout": _DROPOUT,
}
_RANKING = {
    "content": Choice(("none", "pre_extracted", "end_to_end", "raw")),
    "content_parts": Several(Choice(("item", "user", "similarity"))),
    "content_score": _SCORE,
    "content_hidden": _SIZE,
    "content_events": Flag(),
    "encoders.*": Folder(empty="empty: not used"),
    "backbone": Choice(("din", "deepfm", "dcnv2", "wide_deep"), own=True),
    "backbone_settings.hidden": _SIZES,
    "backbone_settings.dropout": _DROPOUT,
    "backbone_settings.attention_score": _SCORE,
    "backbone_settings.attention_hidden": _SIZE,
    "backbone_settings.cross_layers": _SIZE,
    "fusion": _FUSION,
    **{f"fusion_settings.{name}": kind for name, kind in _FUSION_SETTINGS.items()},
    "fusion_chunk": _COUNT,
    "cic.weight": _WEIGHT,
    "cic.temperature": _ABOVE_ZERO,
    "cic.negatives": _COUNT,
    "cic.width": _SIZE,
    "cic.id_fields": _NAMES,
    "cic.over": Choice(("items", "samples")),
    "loss": Choice(("binary_cross_entropy",), own=True),
    "precision": Choice(("f32", "bf16")),
}
_LEMUR = {
    "encoder.width": _SIZE,
    "encoder.layers": _SIZE,
    "encoder.heads": _SIZE,
    "encoder.mlp_width": _SIZE,
    "encoder.output": _SIZE,
    "encoder.means": Flag(),
    "layout.patch": _SIZE,
    "layout.lengths.*": _SIZE,
    "encode": Choice(("candidates", "all")),
    "forward_percent": Number(most=100.0, above=True),
    "backward_percent": Number(most=100.0),
    "ranking_weight": _WEIGHT,
    "ranking_gradient": Flag(),
    "history_gradient": Flag(),
    "history_modules": Several(Choice(("short", "long", "similarity"))),
    "short_history": _SIZE,
    "query.field": Text(),
    "query.length": _SIZE,
    "query.vocabulary": Whole(2),
    "query.layers": _SIZE,
    "query_history": _SIZE,
    "decoder_layers": _SIZE,
    "decoder_hidden": _SIZE,
    "sqdc.weight": _WEIGHT,
    "sqdc.scale": _ABOVE_ZERO,
    "sqdc.mask_group": Flag(),
}
_RETRIEVAL_SETTINGS = {
    "width": _SIZE,
    "layers": _COUNT,
    "item_layers": _COUNT,
    "l2": _WEIGHT,
    "l2_content": _WEIGHT,
    "content_width": _SIZE,
    "content_weight": _WEIGHT,
    "temperature": _ABOVE_ZERO,
    "ssl_temperature": _ABOVE_ZERO,
    "ssl_weight": _WEIGHT,
    "neighbours": _SIZE,
    "frozen_share": _SHARE,
    "dropout": _DROPOUT,
    "modality_weights.*": _WEIGHT,
    "fusion": _FUSION,
    **{f"fusion_settings.{name}": kind for name, kind in _FUSION_SETTINGS.items()},
    "queries": _SIZE,
    "cic_weight": _WEIGHT,
    "cic_temperature": _ABOVE_ZERO,
    "cic_negatives": _COUNT,
}
_RETRIEVAL = {
    "retrieval": Choice(
        ("bpr", "lightgcn", "vbpr", "slmrec", "lattice", "bm3", "freedom", "em3", "em3_as_released"), own=True
    ),
    **{f"retrieval_settings.{name}": kind for name, kind in _RETRIEVAL_SETTINGS.items()},
    "item_graph.neighbours": _COUNT,
    "item_graph.include_self": Flag(),
    "item_graph.weights": Choice(("binary", "cosine")),
    "item_graph.normalisation": Choice(("rows", "both")),
}
_SECTIONS: dict[str, dict[str, Kind]] = {
    "data": _DATA,
    "model": _RANKING | _LEMUR | _RETRIEVAL,
    "tables": {
        "width": _SIZE,
        "init_scale": _WEIGHT,
        "optimizer": Choice(("rowwise_adagrad", "lazy_adam")),
        "learning_rate": _WEIGHT,
        "l2": _WEIGHT,
    },
    "optim": {
        "learning_rate": _WEIGHT,
        "warmup_steps": _COUNT,
        "decay_steps": _COUNT,
        "weight_decay": _WEIGHT,
        "clip_norm": _WEIGHT,
        "multipliers": Several(Multiplier()),
    },
    "train": {
        "epochs": _ABOVE_ZERO,
        "log_every": Whole(0, empty="0: at evaluations alone"),
        "steps_per_dispatch": _SIZE,
        "eval_every": Whole(0, empty="0: once an epoch"),
        "init_from": Folder(empty="empty: a fresh start"),
        "patience": Whole(0, empty="0: never stop early"),
        "deterministic": Flag(),
        "compilation_cache": Folder(empty="empty: JAX's own setting"),
        "grow": Flag(),
    },
    "eval": {
        "batch_size": _SIZE,
        "metric": Text(),
        "popular_share": _SHARE,
        "user_block": _SIZE,
        "item_block": _SIZE,
        "activity": _SIZES,
    },
    "mesh": {
        "data": Whole(0, empty="0: all devices"),
        "model": _SIZE,
        "by_rows": Several(Pattern()),
        "coordinator": Text(empty="empty: one process"),
        "processes": _SIZE,
        "process_id": _COUNT,
        "connect_seconds": _SIZE,
        "heartbeat_seconds": _SIZE,
    },
    "pretraining": {"temperature": _ABOVE_ZERO, "hold_out": Number(most=1.0, above=True, below=True)},
    "stream": {
        "window": Text(),
        "follow": Folder(empty="empty: the dataset as it is"),
        "poll_seconds": _ABOVE_ZERO,
        "idle_seconds": Number(empty="0: never"),
        "most_windows": Whole(0, empty="0: all"),
    },
}
RANGES: dict[str, Kind] = {
    "seed": Whole(0, 2**32 - 1),
    "task": Choice(("ranking", "lemur", "pretraining", "retrieval")),
    **{f"{section}.{name}": kind for section, kinds in _SECTIONS.items() for name, kind in kinds.items()},
}
"""Full name -> what the setting may be; a name that ends in * stands for all names there, those of a dataset's fields, say."""
_PLACES = {".".join(name.split(".")[:depth]) for name in RANGES for depth in range(1, name.count(".") + 1)}


def kind_of(name: str) -> Kind | None:
    """What the setting with that full name may be; None for one that the table does not have."""
    section, _, _ = name.rpartition(".")
    return RANGES.get(name) or RANGES.get(f"{section}.*")


def takes_names(section: str) -> bool:
    """Whether a section has a setting for any name."""
    return f"{section}.*" in RANGES


def settings(config: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """(full name, value) of every setting of a config."""
    for key, value in config.items():
        name = f"{section}.{key}" if section else str(key)
        if is_section(value):
            yield from settings(value, name)
        else:
            yield name, value


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as the program uses it: paths with their home expanded, all else as it is.

    Settings that the table does not have are left to those who read them.

    Raises:
      UserError: a value is out of its range; names key, value and range.
    """
    return _checked(config, "")


def _checked(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    result = {}
    for key, value in config.items():
        name = f"{section}.{key}" if section else str(key)
        if is_section(value):
            result[key] = _checked(value, name)
            continue
        if name in _PLACES:
            raise UserError(f"config.{name}={shown(value)}: is a section; set its keys, config.{name}.<key>")
        kind = kind_of(name)
        if kind is not None and not kind.holds(value):
            raise UserError(refusal(name, value, kind))
        try:
            result[key] = value if kind is None else kind.resolved(value)
        except UserError as error:
            raise UserError(f"config.{name}: {error}") from None
    return result


def refusal(name: str, value: Any, kind: Kind) -> str:
    """What to tell of a value that a setting cannot have."""
    near = ""
    if isinstance(kind, Choice) and isinstance(value, str):
        hint = nearest(value, kind.names)
        near = f"; {hint}" if hint.startswith("did") else ""
    return f"config.{name}={shown(value)}: give {kind.words}{near}"


def shown(value: Any) -> str:
    """A value in a message."""
    return f"'{value}'" if isinstance(value, str) else str(value)
