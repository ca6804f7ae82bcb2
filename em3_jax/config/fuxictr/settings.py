"""The settings of a run, of the section of a model of FuxiCTR."""

import re
from collections.abc import Mapping
from typing import Any

from em3_jax.config.fuxictr.columns import WITH_HISTORY, Columns
from em3_jax.config.fuxictr.values import metric, one, penalty, several, shown, truth
from em3_jax.core.errors import UserError, nearest

OLD_NAMES = {
    "patience": "early_stop_patience", "attention_units": "attention_hidden_units",
    "attention_activations": "attention_hidden_activations", "attention_final_activation": "attention_output_activation",
    "din_query_field": "din_target_field", "din_history_field": "din_sequence_field", "dropout_rates": "net_dropout",
    "cross_layers": "num_cross_layers", "group_index": "group_id", "kernel_regularizer": "net_regularizer",
}  # fmt: skip
"""Names of keys in versions 1 and 2.0 -> today's."""
BACKBONES = {
    "DIN": "din", "DCNv2": "dcnv2", "DeepFM": "deepfm", "WideDeep": "wide_deep", "SIM": "din", "MMoE": "din",
    "SharedBottom": "din", "ShareBottom": "din", "PLE": "din",
}  # fmt: skip
HEADS = {"MMoE": "mmoe", "SharedBottom": "shared_bottom", "ShareBottom": "shared_bottom", "PLE": "ple"}
ITS_OWN = {
    "model", "dataset_id", "model_root", "model_dir", "model_id", "device",
    "num_workers", "workers", "verbose", "pickle_feature_encoder",
    "save_best_only", "debug_mode", "debug", "use_features", "feature_specs", "feature_config", "metrics", "monitor_mode",
    "gpu", "eval_interval", "every_x_epochs", "data_format", "data_root", "version", "streaming", "data_block_size",
    "partition_block_size", "use_hdf5", "hdf5", "padding", "source", "data_loader", "item_info", "user_info",
    "ordered_features", "rebuild_dataset",
}  # fmt: skip
"""Keys that say how the other program goes about it, and nothing of the model or the data."""
HIDDEN = ("dnn_hidden_units", "parallel_dnn_hidden_units", "hidden_units", "expert_hidden_units", "bottom_hidden_units")
NUMBERS: tuple[tuple[str, str, type], ...] = (
    ("embedding_dim", "tables.width", int),
    ("batch_size", "data.batch_size", int),
    ("epochs", "train.epochs", float),
    ("seed", "seed", int),
    ("early_stop_patience", "train.patience", int),
    ("eval_steps", "train.eval_every", int),
    ("net_dropout", "model.backbone_settings.dropout", float),
    ("num_cross_layers", "model.backbone_settings.cross_layers", int),
)
PLAIN: dict[str, tuple[Any, ...]] = {
    "optimizer": ("adam", "Adam"), "dnn_activations": ("relu", "ReLU"), "hidden_activations": ("relu", "ReLU"),
    "shuffle": (True,), "batch_norm": (False,), "layer_norm": (False,),
    "use_low_rank_mixture": (False,), "model_structure": ("parallel",),
    "attention_dropout": (0, 0.0), "attention_hidden_activations": ("relu", "ReLU"), "use_wide": (True,),
    "use_fm": (True,), "accumulation_steps": (1,), "loss_weight": ("EQ",), "gsu_type": ("hard",),
}  # fmt: skip
"""Key -> values that are so here anyhow."""
WHY = {
    "batch_norm": "the DNN has no batch norm", "dnn_activations": "hidden layers have ReLU",
    "hidden_activations": "hidden layers have ReLU", "optimizer": "dense parameters train by Adam",
    "attention_hidden_activations": "the attention's hidden layer has ReLU",
    "attention_dropout": "the attention has no dropout",
    "loss": "the loss is binary cross-entropy", "task": "runs rank clicks", "shuffle": "rows are shuffled",
    "model_structure": "cross layers and DNN stand side by side here",
    "use_low_rank_mixture": "cross layers are of full rank, one expert",
    "attention_dim": "the attention is as wide as an embedding", "num_heads": "the attention has one head",
    "alpha": "the search has no loss of its own", "beta": "the search has no loss of its own",
    "gate_hidden_units": "gates have no hidden layer", "num_layers": "experts have one level",
    "accumulation_steps": "each batch is a step",
    "embedding_initializer": "embeddings begin normal, see config.tables.init_scale",
    "loss_weight": "see config.model.heads.weights and learn_weights",
}  # fmt: skip


def settings_of(model: Mapping[str, Any], columns: Columns) -> tuple[dict[str, Any], list[str]]:
    """(setting -> value, what is not carried over).

    Raises:
      UserError: the model is not known; a value is none; the first label is no click.
    """
    kind = str(model.get("model", ""))
    if kind not in BACKBONES:
        raise UserError(f"model '{kind}': not one that em3_jax has; {nearest(kind, BACKBONES)}")
    notes: list[str] = []
    given = {key: value for key, value in model.items() if key not in ITS_OWN and value is not None}
    settings: dict[str, Any] = {"model.backbone": BACKBONES[kind], "model.content": "none", "model.cic.weight": 0.0}
    settings |= {"tables.optimizer": "adam", "train.eval_every": 0, "optim.clip_norm": 10.0}
    settings |= {"data.history_length": columns.length}
    if "learning_rate" in given:
        rate = one(float, "learning_rate", given.pop("learning_rate"))
        settings |= {"optim.learning_rate": rate, "tables.learning_rate": rate}
    for key, setting, kind_of in NUMBERS:
        if key in given:
            settings[setting] = one(kind_of, key, given.pop(key))
    settings |= _of_ids(given, columns)
    for key, setting in (("embedding_regularizer", "tables.l2"), ("net_regularizer", "optim.l2")):
        if key in given:
            settings[setting] = penalty(key, given.pop(key), notes)
    settings.setdefault("train.patience", 2)
    settings["train.plateau_factor"] = (
        0.1 if truth("reduce_lr_on_plateau", given.pop("reduce_lr_on_plateau", True)) else 1.0
    )
    settings["eval.batch_size"] = max(int(settings.get("data.batch_size", 1024)), 1024)
    for key in HIDDEN:
        if key in given and (hidden := several(key, given.pop(key))):
            settings["model.backbone_settings.hidden"] = hidden
    settings |= _attention(kind, given, columns, notes) | _heads(kind, given, columns, notes)
    settings["eval.metric"] = metric(given.pop("monitor", "auc"), columns.labels if kind in HEADS else [], notes)
    for key, value in given.items():
        why = _not_carried(key, value, kind, settings)
        notes += [] if why is None else [f"{key} {shown(value)}: {why}"]
    return settings, notes


def _of_ids(given: dict[str, Any], columns: Columns) -> dict[str, Any]:
    """How ids become embeddings; takes its keys out of `given`."""
    found: dict[str, Any] = {"data.unknown_alpha": 0.0, "tables.init_scale": 1e-4}
    std = re.search(r"std\s*=\s*([0-9.]+(?:e[-+]?\d+)?)", str(given.get("embedding_initializer", "")))
    if std and "normal_" in given.pop("embedding_initializer"):
        found["tables.init_scale"] = float(std[1])
    if columns.least > 1:
        found["data.unknown_below"] = columns.least
    if not columns.is_user_read:
        found["data.unknown_floor.user"] = 1.0  # training never names one, and so its row tells nothing
    return found


def _attention(kind: str, given: dict[str, Any], columns: Columns, notes: list[str]) -> dict[str, Any]:
    """How histories are read; takes its keys out of `given`."""
    found: dict[str, Any] = {}
    if hidden := several("attention_hidden_units", given.pop("attention_hidden_units", ())):
        found |= {"model.backbone_settings.attention_score": "mlp"}
        found |= {"model.backbone_settings.attention_hidden": hidden[0]}
        if len(hidden) > 1:
            notes.append(f"attention_hidden_units {list(hidden)}: the attention has one hidden layer, of {hidden[0]}")
    given.pop("max_len", None)
    if kind in WITH_HISTORY:
        found["model.backbone_settings.attention_layer"] = False
    if kind == "DIN":
        found["model.backbone_settings.attention_softmax"] = truth(
            "din_use_softmax", given.pop("din_use_softmax", False)
        )
    if kind != "SIM":
        return found
    found["model.backbone_settings.attention_score"] = "dot"
    short, count = (one(int, key, given.pop(key, 50)) for key in ("short_seq_len", "topk"))
    found["data.history_length"] = min(short, columns.length)
    how = given.pop("gsu_type", "soft")
    if not columns.category:
        notes.append(
            f"topk {count}: similar events are sought by a category of the items, and no column of item_info says one; the last "
            f"{found['data.history_length']} are read; see config.data.similar_by"
        )
        return found
    found |= {"data.similar_by": columns.category, "data.similar_length": min(count, columns.length)}
    found["data.similar_within"] = columns.length
    if how != "hard":
        notes.append(
            f"gsu_type {how}: similar events are those of the candidate's '{columns.category}', the last of them"
        )
    return found


def _heads(kind: str, given: dict[str, Any], columns: Columns, notes: list[str]) -> dict[str, Any]:
    """What is learnt of the labels; takes its keys out of `given`."""
    labels = columns.labels
    tasks, losses = (_of_each(given.pop(key, None), labels) for key in ("task", "loss"))
    if kind not in HEADS:
        notes += [
            f"label {name}: further labels are columns of --labels; see docs/several_labels.md" for name in labels[1:]
        ]
    elif one(int, "num_tasks", given.pop("num_tasks", len(labels))) != len(labels) or len(labels) < 2:
        raise UserError(
            f"num_tasks: {kind} learns several labels, and label_col names {len(labels)}; name as many there"
        )
    amounts = {}
    for k, name in enumerate(labels if kind in HEADS else labels[:1]):
        is_amount = tasks[k] == "regression"
        if is_amount and not k:
            raise UserError(
                f"task regression of label {name}: the first label is one of 0 and 1, such as a click; put one first in "
                "label_col, and this one behind it"
            )
        if is_amount:
            amounts[name] = "squared"
        if losses[k] not in (None, *(("mse", "mse_loss") if is_amount else CROSS_ENTROPY)):
            notes.append(
                f"loss {losses[k]} of label {name}: is {'squared error' if is_amount else 'binary cross-entropy'} here"
            )
    if kind not in HEADS:
        return {}
    found: dict[str, Any] = {"model.heads.kind": HEADS[kind], "model.heads.labels": tuple(labels[1:])}
    found |= {f"model.heads.losses.{name}": loss for name, loss in amounts.items()}
    for key, setting in EXPERTS.items():
        if key in given:
            found[f"model.heads.{setting}"] = one(int, key, given.pop(key))
    if "tower_hidden_units" in given:
        found["model.heads.hidden"] = several("tower_hidden_units", given.pop("tower_hidden_units"))
    return found


EXPERTS = {"num_experts": "experts", "num_shared_experts": "experts", "num_specific_experts": "own_experts"}
CROSS_ENTROPY = ("binary_crossentropy", "binary_cross_entropy", "bce")


def _of_each(value: Any, labels: list[str]) -> list[Any]:
    """A value a label: of a list its own, of one alone that."""
    values = value if isinstance(value, list) else [value] * len(labels)
    return [*values, *[None] * len(labels)][: len(labels)]


def _not_carried(key: str, value: Any, kind: str, settings: Mapping[str, Any]) -> str | None:
    """Why a key is left out; None where it says what is so anyhow."""
    if key in ("din_target_field", "din_sequence_field", "group_id") or value in PLAIN.get(key, ()):
        return None
    if key in ("low_rank", "num_experts") and kind == "DCNv2":
        return None  # of a mixture, which `use_low_rank_mixture` speaks of
    if key == "stacked_dnn_hidden_units":
        return None if value == [] or "model.backbone_settings.hidden" in settings else WHY["model_structure"]
    return WHY.get(key, "no such setting here")
