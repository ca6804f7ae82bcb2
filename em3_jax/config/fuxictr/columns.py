"""The columns of a dataset of FuxiCTR, by what they are to em3_jax, and the mapping that says so."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.config.fuxictr.values import found, listed, one, shown, toml
from em3_jax.core.errors import UserError, nearest

USERS = ("user", "user_id", "userid", "user_index", "uid", "msno", "reviewerID")
ITEMS = (
    "item",
    "item_id",
    "itemid",
    "item_index",
    "iid",
    "movie_id",
    "adgroup_id",
    "ad_id",
    "song_id",
    "video_id",
    "asin",
)
SEQUENCES = ("item_seq", "full_item_seq", "item_history", "item_his")
"""Columns of items that are no feature of their own, as datasets with `item_info` have them."""
CATEGORIES = ("cate", "category", "cate_id", "category_id", "categories", "cat_id", "cid")
CARRIED = {
    "name",
    "active",
    "dtype",
    "type",
    "splitter",
    "max_len",
    "source",
    "padding",
    "vocab_size",
    "na_value",
    "fill_na",
}
CARRIED |= {"remap", "oov_idx", "padding_idx", "share_embedding"}


class Columns:
    """The columns of a dataset, by what they are.

    Args:
      dataset, model: sections of the two files.
      folder: that paths are relative to.
      user, item: columns of ids; "" = by their names.

    Attributes:
      labels: columns of labels, in order.
      length: most items of a history; 0 = there is none.
      category: column of the items by which similar events may be sought; "" = there is none.
      least: fewest training rows of a value that has an embedding of its own.
      is_user_read: whether the user's id is a feature of the model.
      user_info: file of the users' sequences that histories are the beginnings of; None without.
      notes: what is not carried over.

    Raises:
      UserError: files, ids, labels or sequences are not found.
    """

    def __init__(self, dataset: Mapping[str, Any], model: Mapping[str, Any], folder: Path, user: str, item: str):
        self.notes: list[str] = []
        self._dataset, self._folder = dataset, folder
        both = {**model, **{key: value for key, value in dataset.items() if value is not None}}
        self._files = [self._path(f"{part}_data", dataset.get(f"{part}_data")) for part in ("train", "valid", "test")]
        if self._files[1] == self._files[2]:
            del self._files[1]
            self.notes.append(
                "valid_data: is test_data, by which no step is chosen here; valid is the last tenth of train_data"
            )
        self._items, self.user_info = (
            Path(self._path(key, both[key])) if both.get(key) else None for key in ("item_info", "user_info")
        )
        self._columns = _columns(dataset, model.get("embedding_dim"), _header(self._files[0]), self.notes)
        self.labels = _labels(dataset.get("label_col"))
        of = {kind: [name for name, one in self._columns.items() if one["type"] == kind] for kind in KINDS}
        self._sequences = [name for name in of["sequence"] if not self._is_of_item(name)]
        self._find_ids(model, [*of["categorical"], *of["meta"]], user, item)
        self._group = self._group_of(both.get("group_id") or both.get("group_index"))
        weight = dataset.get("weight_col")
        self._weight = str(weight.get("name", "")) if isinstance(weight, Mapping) else str(weight or "")
        self._find_history(model, of["meta"], both.get("max_len"))
        own = [name for name in of["categorical"] if self._is_of_item(name)]
        self.category = found(own, CATEGORIES) or (own[0] if len(own) == 1 else "")
        self.least = one(int, "min_categr_count", dataset.get("min_categr_count") or 1)
        self._tell_of_numbers(of["numeric"])

    @property
    def ids(self) -> tuple[str, str]:
        """The columns of users' and items' ids."""
        return self._user, self._item

    def _path(self, key: str, given: Any) -> str:
        if isinstance(given, str) and re.match(r"[A-Za-z]:[\\/]", given):
            raise UserError(f"{key} {given}: a path of another system; give one that is here")
        if not isinstance(given, str) or not given:
            raise UserError(f"{key}: the dataset names no one file; give the section that has its three files")
        # FuxiCTR's scripts run in the folder above that of their configs.
        places = [(folder / given).resolve() for folder in (self._folder, self._folder.parent)]
        path = next((place for place in places if place.exists()), places[0])
        if path.suffix in (".npz", ".h5"):
            raise UserError(f"{key} {given}: holds what FuxiCTR has encoded; give the .csv or .parquet it was made of")
        return str(path)

    def _is_of_item(self, name: str) -> bool:
        """Whether the items' file has it."""
        return self._items is not None and listed(self._columns[name].get("source"))[:1] == ["item"]

    def _find_ids(self, model: Mapping[str, Any], single: list[str], user: str, item: str) -> None:
        names, features = [one for one in single if not self._is_of_item(one)], self._columns
        targets = [one for one in listed(model.get("din_target_field")) if one in names]
        self._item = item or found(targets, ITEMS) or next(iter(targets), "") or found(names, ITEMS)
        self._user = user or found(names, USERS)
        if model.get("model") not in WITH_HISTORY:  # ids are fields among others there
            free = [name for name in names if features[name]["type"] == "categorical"]
            free = [name for name in free if not features[name].get("preprocess")] or free
            free = [name for name in free if name not in (self._item, self._user)]
            for kind in ("item", "user"):
                if not getattr(self, f"_{kind}") and free:
                    setattr(self, f"_{kind}", free.pop(0))
                    self.notes.append(
                        f"{kind}: no column says it, and '{getattr(self, f'_{kind}')}' stands for it, a field like the "
                        f"others to the model; --{kind} names another"
                    )
        for kind, name in (("user", self._user), ("item", self._item)):
            if name not in names:
                said = (
                    f"no column '{name}' of single values; {nearest(name, names)}"
                    if name
                    else f"no column says the {kind}"
                )
                raise UserError(f"--{kind}: {said}; name the column of its ids")
        if self._user == self._item:
            raise UserError(f"--user, --item: both are '{self._user}'; name the columns of their ids")
        self.is_user_read = features[self._user]["type"] != "meta"

    def _group_of(self, given: Any) -> str:
        """The column by which gAUC is taken; "" where it is the user's, as it is without."""
        name = str(given or "")
        if name not in self._columns:
            if name:
                self.notes.append(f"group_id {name}: is no column; gAUC is that of users")
            return ""
        copied = re.fullmatch(r"copy_from\((\w+)\)", str(self._columns[name].get("preprocess", "")).strip())
        name = copied[1] if copied else name
        return "" if name == self._user else name

    def _find_history(self, model: Mapping[str, Any], meta: list[str], most: Any) -> None:
        """The sequence of items that stand for histories, and its length."""
        asked = list(dict.fromkeys(listed(model.get("din_sequence_field"))))
        asked = [
            name for name in asked if not any(note.startswith(f"feature {name}, preprocess") for note in self.notes)
        ]
        for name in asked:
            if name not in self._columns or self._columns[name]["type"] != "sequence":
                raise UserError(
                    f"din_sequence_field {name}: no active column of type sequence; {nearest(name, self._sequences)}"
                )
        shared = [name for name in self._sequences if self._columns[name].get("share_embedding") == self._item]
        chosen = [name for name in asked if self._columns[name].get("share_embedding") == self._item][:1] or asked[:1]
        if not chosen:
            chosen = shared[:1] or (self._sequences[:1] if model.get("model") in WITH_HISTORY else [])
        of_rows = "" if chosen or self._items is None or self.user_info else found(meta, SEQUENCES)
        self._history = chosen[0] if chosen else of_rows
        self._beside = [name for name in asked if name != self._history and name not in shared]
        for name in self._sequences:
            if name != self._history and name not in self._beside:
                why = "a second history of items" if name in shared else "several values a row, and no history"
                self.notes.append(f"feature {name}: {why}; left out")
        for name, column in self._columns.items():
            other = column.get("share_embedding")
            is_read = column["type"] == "categorical" or name in self._beside
            if other and is_read:
                self.notes.append(f"feature {name}, share_embedding {other}: it has embeddings of its own")
        if self.user_info is not None and "seq_len" not in self._columns:
            raise UserError(
                "user_info: no column 'seq_len' says how much of a user's sequence a row has; add it to feature_cols"
            )
        own = self._columns[self._history].get("max_len") if self._history else None
        most = most if own is None else own
        self.length = one(int, "max_len", 50 if most is None else most) if self._history or self.user_info else 0

    def _tell_of_numbers(self, numeric: list[str]) -> None:
        if numeric:
            self.notes.append(
                f"features {shown(', '.join(numeric))}: numbers become fields of ranges, each with an embedding; FuxiCTR "
                "multiplies one by the number"
            )

    def mapping(self, further: Sequence[str], amounts: Sequence[str], events: Path | None = None) -> str:
        """The TOML.

        Args:
          further, amounts: further labels that are learnt, of 0 and 1 or numbers.
          events: the table of the users' sequences that has been made, see `sequences`.
        """
        roles = {"user": self._user, "item": self._item, "label": self.labels[0]}
        roles |= {"group": self._group} if self._group else {}
        roles |= {"weight": self._weight} if self._weight else {}
        times = "order" if events else "none"
        lines = [f"interactions = {toml(self._files)}", 'split = "files"', f'time_unit = "{times}"']
        if events:
            roles["time"] = "seq_len"
            lines += [f"events_table = {toml(str(events))}", 'events = "none"']
        elif self._history:
            roles["history"] = self._history
            lines.append(f"history_separator = {toml(str(self._columns[self._history].get('splitter') or '^'))}")
            if self._beside:
                lines.append(f"history_fields = {toml({name: name for name in self._beside})}")
        for key, names in (("labels", further), ("amounts", amounts)):
            if names:
                lines.append(f"{key} = {toml({name: name for name in names})}")
        lines.append(f"columns = {toml(roles)}")
        taken = {self._user, self._item, *self.labels}
        if self._items is not None:
            lines += [f"items = {toml(str(self._items))}", "drop_unknown = true"]
        for key, names in self._fields(taken).items():
            if names:
                lines.append(f"{key} = {toml(names)}")
        return "\n".join([*lines, ""])

    def _fields(self, taken: set[str]) -> dict[str, list[str]]:
        """Option of the mapping -> columns."""
        result: dict[str, list[str]] = {
            "item_fields": [],
            "item_numbers": [],
            "context_fields": [],
            "context_numbers": [],
        }
        for name, column in self._columns.items():
            kind, group = column["type"], "item" if self._is_of_item(name) else "context"
            if name in taken or kind == "meta" or (group == "item" and name in ITEMS):
                continue
            if kind == "sequence" and group == "item":
                result["item_fields"].append(f"{name}:multi")
            elif kind in ("categorical", "numeric"):
                result[f"{group}_{'numbers' if kind == 'numeric' else 'fields'}"].append(name)
        return result


KINDS = ("categorical", "numeric", "sequence", "meta")
WITH_HISTORY = ("DIN", "SIM")


def _columns(dataset: Mapping[str, Any], width: Any, there: set[str], notes: list[str]) -> dict[str, dict[str, Any]]:
    """Name -> what feature_cols says of it, of active columns.

    Args:
      width: of an embedding.
      there: columns of the training file; empty where it cannot be read.
    """
    result: dict[str, dict[str, Any]] = {}
    groups = dataset.get("feature_cols") or []
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        raise UserError("feature_cols: is no list of columns, each with a name; is this the section of a dataset?")
    told: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        for name in listed(group.get("name")):
            if str(group.get("active", True)).lower() in ("false", "0", "no"):
                continue
            kind, made_by = str(group.get("type", "categorical")), str(group.get("preprocess") or "")
            is_made = made_by.startswith("copy_from") or (made_by and there and name not in there)
            if kind not in KINDS:
                told.setdefault((f"type {kind}", "is not known; left out"), []).append(name)
            elif kind != "meta" and is_made:
                told.setdefault((f"preprocess {made_by}", "no column of the files; left out"), []).append(name)
            else:
                result[name] = {**group, "type": kind}
    for name, column in result.items():
        keys = {key: value for key, value in column.items() if key not in CARRIED and value is not None}
        if column["type"] == "meta":
            keys.pop("preprocess", None)
        if str(keys.get("feature_encoder", "")).startswith("layers.MaskedAveragePooling"):
            keys.pop("feature_encoder")  # what a history is in such models anyhow
        if width is not None and keys.get("embedding_dim") == width:
            keys.pop("embedding_dim")
        for key, value in sorted(keys.items()):
            told.setdefault((f"{key} {shown(value)}", "not carried over"), []).append(name)
    notes += [f"feature {shown(', '.join(names))}, {what}: {why}" for (what, why), names in told.items()]
    if not any(column["type"] != "meta" for column in result.values()):
        raise UserError("feature_cols: names no active column; is this the section of a dataset?")
    return result


def _header(path: str) -> set[str]:
    """The columns of a file; empty where it cannot be read."""
    try:
        if path.endswith(".parquet"):
            return set(pq.read_schema(path).names)
        with open(path, encoding="utf-8", newline="") as file:
            return set(next(csv.reader(file), ()))
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError, csv.Error):
        return set()


def _labels(given: Any) -> list[str]:
    """The columns of the labels, in order."""
    labels = given if isinstance(given, list) else [given]
    names = [name for each in labels if isinstance(each, Mapping) for name in listed(each.get("name"))]
    if not names:
        raise UserError("label_col: names no column; is this the section of a dataset?")
    return names
