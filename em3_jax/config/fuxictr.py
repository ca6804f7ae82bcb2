"""An experiment of FuxiCTR in the terms of em3_jax: a mapping for `em3 prepare table`, and a recipe.

DIN, DCNv2, DeepFM and WideDeep are known. FuxiCTR has columns where em3_jax has users, items and
impressions: columns of ids are found by their names, or named; others become fields of the impressions.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from em3_jax.config import parse, recipes, schema
from em3_jax.core.errors import UserError, nearest

BACKBONES = {"DIN": "din", "DCNv2": "dcnv2", "DeepFM": "deepfm", "WideDeep": "wide_deep"}
USERS = ("user", "user_id", "userid", "uid", "msno", "reviewerID")
ITEMS = ("item", "item_id", "itemid", "iid", "movie_id", "adgroup_id", "song_id", "asin")
ITS_OWN = {
    "model", "dataset_id", "model_root", "num_workers", "verbose", "pickle_feature_encoder", "save_best_only", "debug_mode",
    "use_features", "feature_specs", "feature_config", "metrics", "monitor_mode", "gpu", "eval_steps", "eval_interval",
    "data_format", "data_root", "version", "streaming", "data_block_size", "partition_block_size", "use_hdf5", "hdf5",
    "padding", "source", "data_loader",
}  # fmt: skip
"""Keys that say how the other program goes about it, and nothing of the model or the data."""


class Converted(NamedTuple):
    """What an experiment becomes.

    Attributes:
      mapping: TOML for `em3 prepare table --mapping`.
      recipe: Python for `em3 train --config`.
      notes: what is not carried over, a line a key.
    """

    mapping: str
    recipe: str
    notes: list[str]


def convert(
    model: Mapping[str, Any], dataset: Mapping[str, Any], name: str, folder: Path, user: str = "", item: str = ""
) -> Converted:
    """The experiment in the terms of em3_jax.

    Args:
      model, dataset: its sections of the two files.
      name: of the experiment.
      folder: of the dataset's file, which its paths are relative to.
      user, item: columns of ids; "" = found by their names.

    Raises:
      UserError: the model is not known, or ids are not found.
    """
    data = _Data(dataset, model, folder, user, item)
    settings, notes = _settings(model)
    settings["data.root"], settings["data.history_length"] = "data", data.history_length
    _check(settings)
    lines = [f"    config.{key} = {value!r}" for key, value in settings.items()]
    plain_name = re.sub(r"[^\w .:/-]", "_", name)
    recipe = "\n".join(
        [
            f'"""{plain_name} of FuxiCTR, by `em3 convert-config`.',
            "",
            "em3 prepare table --mapping mapping.toml --out data",
            'em3 train --config=recipe.py --config.data.root=data --workdir=run"""',
            "",
            "from em3_jax.config import parse, schema",
            "",
            "",
            'def get_config(arg: str = ""):',
            "    config = parse.editable(schema.Ranking())",
            *lines,
            "    return config",
            "",
        ]
    )
    return Converted(data.mapping(), recipe, [*notes, *data.notes])


def _settings(model: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(setting -> value, what is not carried over)."""
    kind = str(model.get("model", ""))
    if kind not in BACKBONES:
        raise UserError(f"model '{kind}': not one that em3_jax has; {nearest(kind, BACKBONES)}")
    notes: list[str] = []
    given = {key: value for key, value in model.items() if key not in ITS_OWN and value is not None}
    settings: dict[str, Any] = {"model.backbone": BACKBONES[kind], "model.content": "none", "model.cic.weight": 0.0}
    settings |= {"tables.optimizer": "lazy_adam", "train.eval_every": 0, "optim.clip_norm": 10.0}
    if "learning_rate" in given:
        rate = _one(float, "learning_rate", given.pop("learning_rate"))
        settings |= {"optim.learning_rate": rate, "tables.learning_rate": rate}
    for key, setting, kind_of in (
        ("embedding_dim", "tables.width", int),
        ("batch_size", "data.batch_size", int),
        ("epochs", "train.epochs", float),
        ("seed", "seed", int),
        ("early_stop_patience", "train.patience", int),
        ("net_dropout", "model.backbone_settings.dropout", float),
        ("num_cross_layers", "model.backbone_settings.cross_layers", int),
    ):
        if key in given:
            settings[setting] = _one(kind_of, key, given.pop(key))
    if "embedding_regularizer" in given:
        settings["tables.l2"] = _penalty(given.pop("embedding_regularizer"), notes)
    settings["eval.batch_size"] = max(int(settings.get("data.batch_size", 1024)), 1024)
    for key in ("dnn_hidden_units", "parallel_dnn_hidden_units", "hidden_units"):
        if key in given:
            settings["model.backbone_settings.hidden"] = _several(key, given.pop(key))
    if hidden := _several("attention_hidden_units", given.pop("attention_hidden_units", ())):
        settings |= {"model.backbone_settings.attention_score": "mlp"}
        settings |= {"model.backbone_settings.attention_hidden": hidden[0]}
        if len(hidden) > 1:
            notes.append(f"attention_hidden_units {list(hidden)}: the attention has one hidden layer, of {hidden[0]}")
    settings["eval.metric"] = _metric(given.pop("monitor", "auc"), notes)
    notes += [
        f"{key} {_shown(value)}: {why}"
        for key, value in given.items()
        if (why := _not_carried(key, value, BACKBONES[kind], settings)) is not None
    ]
    notes.append("reduce_lr_on_plateau, which FuxiCTR always does: rates stay; see config.optim.decay_steps")
    return settings, notes


def _not_carried(key: str, value: Any, backbone: str, settings: Mapping[str, Any]) -> str | None:
    """Why a key is left out; None where it says what is so anyhow."""
    plain = {
        "optimizer": ("adam",), "loss": ("binary_crossentropy", "binary_cross_entropy"), "task": ("binary_classification",),
        "dnn_activations": ("relu", "ReLU"), "hidden_activations": ("relu", "ReLU"), "shuffle": (True,),
        "batch_norm": (False,), "use_low_rank_mixture": (False,), "model_structure": ("parallel",), "attention_dropout": (0, 0.0),
        "net_regularizer": (0, 0.0, "0"), "din_use_softmax": (True,), "use_wide": (True,), "use_fm": (True,),
    }  # fmt: skip
    told = {"din_target_field", "din_sequence_field", "group_id"}
    if key in told or value in plain.get(key, ()):
        return None
    if key in ("low_rank", "num_experts") and backbone == "dcnv2":
        return None  # of a mixture that is not used
    if key == "stacked_dnn_hidden_units":
        return None if "model.backbone_settings.hidden" in settings else "cross layers and DNN stand side by side here"
    why = {
        "net_regularizer": "no penalty on the net's weights; config.optim.weight_decay is the decoupled one",
        "batch_norm": "the DNN has no batch norm", "dnn_activations": "hidden layers have ReLU",
        "hidden_activations": "hidden layers have ReLU", "optimizer": "dense parameters train by Adam",
        "attention_hidden_activations": "the attention's hidden layer has ReLU",
        "attention_dropout": "the attention has no dropout", "din_use_softmax": "weights of the attention are a softmax",
        "loss": "the loss is binary cross-entropy", "task": "runs rank clicks", "shuffle": "rows are shuffled",
        "model_structure": "cross layers and DNN stand side by side here",
    }  # fmt: skip
    return why.get(key, "no such setting here")


def _check(settings: Mapping[str, Any]) -> None:
    """Refuses values that a config cannot have."""
    config = parse.editable(schema.Ranking())
    for name, value in settings.items():
        recipes.change(config, name, value)
    parse.parse(config)


def _one(kind: Callable[[Any], Any], key: str, value: Any) -> Any:
    """A number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{key} {_shown(value)}: is no number; mend it") from None


def _several(key: str, value: Any) -> tuple[int, ...]:
    """Whole numbers: a list, one alone, or a text of either."""
    value = yaml.safe_load(value) if isinstance(value, str) else value
    return tuple(_one(int, key, one) for one in (value if isinstance(value, list | tuple) else [value]))


def _penalty(value: Any, notes: list[str]) -> float:
    """The l2 part of a regularizer: a number, "l2(1e-5)", "l1_l2(1e-6,1e-5)"; others are told."""
    text = str(value).strip().lower()
    if text in ("none", "", "null"):
        return 0.0
    number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
    if found := re.fullmatch(rf"(?:l2(?:_reg)?\()?{number}\)?", text):
        return float(found[1])
    found = re.fullmatch(rf"l1_l2(?:_reg)?\({number},\s*{number}\)", text)
    notes.append(f"embedding_regularizer {_shown(value)}: of it the l2 part alone, if it has one")
    return float(found[2]) if found else 0.0


def _metric(monitor: Any, notes: list[str]) -> str:
    """What chooses the step."""
    monitor = monitor or "auc"
    first = next(iter(monitor)) if isinstance(monitor, Mapping) else monitor
    if isinstance(monitor, Mapping) and len(monitor) > 1:
        notes.append(f"monitor {dict(monitor)}: {first} alone chooses the step")
    known = {"auc": "auc", "logloss": "logloss", "gauc": "gauc", "binary_crossentropy": "logloss"}
    if str(first).lower() not in known:
        notes.append(f"monitor {first}: no metric here; auc chooses the step")
    return known.get(str(first).lower(), "auc")


def _shown(value: Any) -> str:
    return str(value).replace("\n", " ")[:80]


class _Data:
    """The columns of a dataset, by what they are.

    Attributes:
      history_length: T.
      notes: what is not carried over.
    """

    def __init__(self, dataset: Mapping[str, Any], model: Mapping[str, Any], folder: Path, user: str, item: str):
        self.notes: list[str] = []
        self._files = [self._path(dataset, folder, part) for part in ("train", "valid", "test")]
        self._columns = _columns(dataset, self.notes)
        names = list(self._columns)
        target, sequence = (_listed(model.get(key)) for key in ("din_target_field", "din_sequence_field"))
        sequences = [name for name in names if self._columns[name].get("type") == "sequence"]
        plain = [name for name in names if name not in sequences]
        self._item = item or next((one for one in target if one in plain), "") or _found(plain, ITEMS)
        self._user = user or _found(plain, USERS)
        for kind, name in (("user", self._user), ("item", self._item)):
            if name not in plain:
                said = (
                    f"no column '{name}' of single values; {nearest(name, plain)}"
                    if name
                    else f"no column says the {kind}"
                )
                raise UserError(f"--{kind}: {said}; name the column of its ids")
        if self._user == self._item:
            raise UserError(f"--user, --item: both are '{self._user}'; name the columns of their ids")
        self._label = _label(dataset.get("label_col"), self.notes)
        self._sequences = [one for one in dict.fromkeys(sequence) if one in sequences]
        for name in sequence:
            if name not in sequences:
                raise UserError(
                    f"din_sequence_field {name}: no active column of type sequence; {nearest(name, sequences)}"
                )
        if not self._sequences and sequences and model.get("model") == "DIN":
            self._sequences = sequences[:1]
        for name in sequences:
            if name not in self._sequences:
                self.notes.append(f"feature {name}: a sequence that no attention reads; left out")
        history = self._columns[self._sequences[0]] if self._sequences else {}
        most = history.get("max_len")
        self.history_length = _one(int, "max_len", 50 if most is None else most) if self._sequences else 0
        for key in ("min_categr_count",):
            if dataset.get(key, 1) != 1:
                self.notes.append(f"{key} {dataset[key]}: rare values keep ids; see config.data.unknown_alpha")

    def _path(self, dataset: Mapping[str, Any], folder: Path, part: str) -> str:
        given = dataset.get(f"{part}_data")
        if isinstance(given, str) and re.match(r"[A-Za-z]:[\\/]", given):
            raise UserError(f"{part}_data {given}: a path of another system; give one that is here")
        if not isinstance(given, str) or not given:
            raise UserError(f"{part}_data: the dataset names no one file; give the section that has its three files")
        path = (folder / str(given)).resolve()
        if path.suffix in (".npz", ".h5"):
            raise UserError(
                f"{part}_data {given}: holds what FuxiCTR has encoded; give the .csv or .parquet it was made of"
            )
        return str(path)

    def mapping(self) -> str:
        """The TOML."""
        roles = {"user": self._user, "item": self._item, "label": self._label}
        lines = [f"interactions = {_toml(self._files)}", 'split = "files"', 'time_unit = "none"']
        if self._sequences:
            roles["history"] = self._sequences[0]
            splitter = self._columns[self._sequences[0]].get("splitter") or "^"
            lines.append(f"history_separator = {_toml(str(splitter))}")
            if others := self._sequences[1:]:
                fields = {one: one for one in others}
                lines.append(f"history_fields = {_toml(fields)}")
        taken = {self._user, self._item, self._label}
        of_kind: dict[str, list[str]] = {"categorical": [], "numeric": []}
        for name, column in self._columns.items():
            if name not in taken and column.get("type") in of_kind:
                of_kind[column["type"]].append(name)
        lines.append(f"columns = {_toml(roles)}")
        for key, kind in (("context_fields", "categorical"), ("context_numbers", "numeric")):
            if of_kind[kind]:
                lines.append(f"{key} = {_toml(of_kind[kind])}")
        return "\n".join([*lines, ""])


def _columns(dataset: Mapping[str, Any], notes: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> what feature_cols says of it, of active columns."""
    result: dict[str, dict[str, Any]] = {}
    known = {"name", "active", "dtype", "type", "splitter", "max_len", "source", "padding", "vocab_size", "na_value"}
    groups = dataset.get("feature_cols") or []
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise UserError("feature_cols: is no list of columns, each with a name; is this the section of a dataset?")
    for group in groups:
        for name in _listed(group.get("name")):
            if str(group.get("active", True)).lower() in ("false", "0", "no"):
                continue
            kind = group.get("type", "categorical")
            if kind == "meta":
                continue
            if kind not in ("categorical", "numeric", "sequence"):
                notes.append(f"feature {name}: type {kind} is not known; left out")
                continue
            result[name] = dict(group)
            for key in sorted(set(group) - known):
                if group[key] is not None:
                    notes.append(f"feature {name}, {key} {_shown(group[key])}: not carried over")
    if not result:
        raise UserError("feature_cols: names no active column; is this the section of a dataset?")
    return result


def _label(given: Any, notes: list[str]) -> str:
    """The column of the label, of several the first."""
    labels = given if isinstance(given, list) else [given]
    names = [name for one in labels if isinstance(one, Mapping) for name in _listed(one.get("name"))]
    if not names:
        raise UserError("label_col: names no column; is this the section of a dataset?")
    notes += [f"label {name}: further labels are columns of --labels; see the README" for name in names[1:]]
    return names[0]


def _listed(value: Any) -> list[str]:
    """A name, several, or groups of several, as a list of names."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [name for one in value for name in _listed(one)]
    return [str(value)]


def _found(names: list[str], known: tuple[str, ...]) -> str:
    """The column whose name says what it is; "" where none does."""
    by_small = {name.lower(): name for name in names}
    return next((by_small[one.lower()] for one in known if one.lower() in by_small), "")


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(str(value), ensure_ascii=False)  # a text of TOML is one of JSON
