"""Seals a stream whose rows were appended: em3 seal --workdir=runs/followed --data=data/sealed --out=runs/sealed

The rows that the run was trained on become a dataset as `em3 prepare` makes them, in the order of time, late
rows in their place; and the run becomes one on it, with tables of the ids that there are. All other commands
read both. The stream is not touched: it goes on as it was. The dataset is split by time, 80, 10 and 10 %, which
says nothing of what was trained on: that is all of it.
"""

import dataclasses
import itertools
import shutil
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from em3_jax import cli
from em3_jax.config.schema import Config, Retrieval
from em3_jax.config.schema.course import Tables
from em3_jax.core import paths, publish, sharding, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.core.types import State
from em3_jax.data.append import Store
from em3_jax.data.format import Dataset, hash_ids
from em3_jax.data.readers.log import write_log
from em3_jax.data.writer import DatasetWriter
from em3_jax.training import endless, growth, rundir, spread
from em3_jax.training.appended import store_of
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.curve import CURVE
from em3_jax.training.places import place_of_rows, places_of
from em3_jax.training.run import Run

SPLIT = (0.8, 0.1, 0.1)


def seal(directory: str | Path, data: str | Path, out: str | Path) -> Dataset:
    """Writes the dataset and the run; returns the dataset.

    Args:
      directory: folder of a run with config.stream.append.
      data: the dataset folder to make.
      out: the run's folder to make.

    Raises:
      UserError: it is another run, it has no checkpoint yet, its dataset is in use, or one of the folders is there.
    """
    run, out = Run.open(directory), publish.resolved(out)
    config = run.config
    if isinstance(config, Retrieval) or config.stream is None or not config.stream.append:
        raise UserError(
            f"{directory}: is no run whose rows are appended (config.stream.append); others read it as it is"
        )
    for option, folder in (("--out", out), ("--data", publish.resolved(data))):
        if folder.exists() and not (folder.is_dir() and publish.is_empty(folder)):
            raise UserError(f"{folder}: exists already and is not an empty folder; choose another {option}")
    own = config.stream
    with store_of(own, paths.local(config.data.root)) as store:
        saved, notes = _read(run)
        rows = notes["position"]["row"]
        _, _, built_at = notes["data_hash"].partition("@")
        before = store.view(rows, places_of(store.sizes(int(built_at)), own.spare)).fields
        dataset, seen = _write_dataset(store, rows, Path(data)), store.view(rows, store.sizes(rows))
        if config.tables.capacity:
            state = spread.with_all_ids(config.tables, run.folder, _state(saved), seen, _one_device())
        else:
            state = _fitted(saved, before, dataset.fields)
    stream = dataclasses.replace(own, append=False, follow="", on_bad_row="stop", spare=type(own).spare)
    of_data = dataclasses.replace(config.data, root=str(dataset.root))
    sealed: Any = dataclasses.replace(
        config,
        data=of_data,
        stream=dataclasses.replace(stream, **_UNUSED),  # type: ignore[arg-type]
        tables=dataclasses.replace(config.tables, **{name: getattr(Tables(), name) for name in endless.SETTINGS}),
    )
    _write_run(out, run, sealed, dataset, state, notes)
    return dataset


_UNUSED = {"poll_seconds": 5.0, "idle_seconds": 0.0}
"""Settings that only a stream that follows has, as they are without."""


def _read(run: Run) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """(leaf name -> array, notes) of the newest checkpoint."""
    checkpoints = Checkpoints(run.folder)
    try:
        saved = checkpoints.read(jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
        return saved, checkpoints.restore(saved, int(saved["step"]))[1]
    finally:
        checkpoints.close()


def _write_dataset(store: Store, rows: int, root: Path) -> Dataset:
    """The first rows, as a dataset of its own in `root`."""
    seen = store.view(rows, store.sizes(rows))
    columns, how = seen.interactions, store.how
    fields, ids, tables = seen.fields, {}, {}
    for kind, table in (("user", seen.user_table), ("item", seen.item_table)):
        ids[kind] = pa.array(itertools.islice(store.words(kind), table.num_rows), pa.string())
        tables[f"{kind}s"] = table.set_column(0, "id", ids[kind])
    is_event = {"clicks": columns["label"] == 1, "all": np.ones(rows, bool), "none": np.zeros(rows, bool)}[how.events]
    of_kind = {
        kind: {name: columns[f"{kind}_{name}"] for name in names}
        for kind, names in (("label", how.labels), ("amount", how.amounts), ("context", how.context.values()))
    }
    with DatasetWriter(root) as writer:
        write_log(
            writer,
            user=columns["user"],
            item=columns["item"],
            time=columns["time"],
            label=np.asarray(columns["label"] == 1),
            split=SPLIT,
            is_event=is_event,
            context=of_kind["context"],
            event={name: store.event_values(name)[:rows] for name in how.event.values()},
            labels=of_kind["label"],
            amounts=of_kind["amount"],
            weight=columns.get("weight"),
        )
        for name, one in seen.sets.items():
            manifest = {"encoder": one.manifest["encoder"]}
            writer.features(name, one.tokens, one.mask, manifest, hash_ids(ids["item"]))
        return writer.finish(
            name=store.root.name,
            **tables,
            fields=fields,
            vocabularies=seen.meta["vocabularies"],
            text_columns=[],
            provenance=f"rows appended to {store.root.name}, sealed",
            label_rule=how.rule,
            split_rule="by time, 80, 10 and 10 %; all rows were trained on by the stream",
            source_hash=store.hash,
            time_unit=store.unit,
            extra={"labels": {name: name for name in how.labels}, "amounts": dict(how.amounts), "only_clicks": False},
        )


def _fitted(saved: dict[str, jax.Array], before: Fields, now: Fields) -> State:
    """The state with tables and memory of the ids that there are, as long as a run on one device has them.

    Args:
      before: as long as the tables of the checkpoint.
      now: of the ids that there are.
    """
    place = place_of_rows(now, before)
    items, mesh = now.item[0].size - 2, _one_device()

    def fit(name: str, leaf: jax.Array) -> jax.Array:
        rows = place if name.startswith("tables/") else np.arange(items) if name.startswith("memory/") else None
        if rows is None:
            return leaf
        beyond = [(0, sharding.padded(len(rows), mesh) - len(rows))] + [(0, 0)] * (leaf.ndim - 1)
        return jnp.pad(jnp.take(leaf, rows, axis=0), beyond)

    return _state({name: fit(name, leaf) for name, leaf in saved.items()})


def _state(leaves: dict[str, jax.Array]) -> State:
    """The state of leaves by their names."""
    tree = flax.traverse_util.unflatten_dict(leaves, sep="/")
    return State(*(tree.get(field.name, {}) for field in dataclasses.fields(State)))


def _one_device() -> Mesh:
    return sharding.make_layout(1, 1, ()).mesh


def _write_run(out: Path, run: Run, config: Config, dataset: Dataset, state: State, notes: dict[str, Any]) -> None:
    """The run's folder; run.json is what makes it one, and comes last."""
    out.mkdir(parents=True, exist_ok=True)
    growth.remember(out, dataset)
    checkpoints = Checkpoints(out, dataset.meta["data_hash"])
    try:
        checkpoints.save("latest", state, notes | {"data_hash": dataset.meta["data_hash"]})
    finally:
        checkpoints.close()
    if (run.folder / CURVE).exists():
        shutil.copyfile(run.folder / CURVE, out / CURVE)
    hashes = {name: dataset.features(name).manifest["hash"] for name in run.record["features"]}
    rundir.claim(out, config, dataset.meta["data_hash"], hashes)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument(
        "--workdir", type=paths.local, required=True, help="the folder of a run with config.stream.append"
    )
    parser.add_argument("--data", type=paths.local, required=True, help="the dataset folder to make")
    parser.add_argument("--out", type=paths.local, required=True, help="the run's folder to make")
    args = parser.parse_args()
    dataset = seal(args.workdir, args.data, args.out)
    rows = len(dataset.interactions["time"])
    said = f"{dataset.root}: {rows:,} rows; the run on it: {args.out}"
    following = f"em3 eval --workdir={args.out} --split=test"
    terminal.result(said, next_command=following, root=str(dataset.root), rows=rows, workdir=str(args.out))
