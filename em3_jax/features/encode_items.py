"""Items through an encoder into a feature set, batch by batch, and what is told of those without content.

What extraction and raw sets share: each distinct image or text is read once, what cannot be read is
masked and listed, and a run that was stopped goes on after the last batch that is written.
"""

import collections
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from em3_jax.core import terminal
from em3_jax.core.errors import UserError
from em3_jax.core.progress import Progress
from em3_jax.data.content import Content
from em3_jax.data.features import FeatureWriter
from em3_jax.data.format import Dataset
from em3_jax.data.pipeline import batches
from em3_jax.features import encoding

IN_FLIGHT = 2  # batches that the device has been given and not yet returned
MAX_THREADS = 32
NAMED = 3  # files that cannot be used, in what is printed; the report has all of them


def content_hash(content: Content, wanted: np.ndarray) -> str:
    """Of the values and of which slots show them and are `wanted` [I, M]: the plan of an extraction has it."""
    digest = hashlib.sha256("\0".join(content.values).encode("utf-8", "surrogatepass"))
    for array in (content.index, wanted):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def encode(
    writer: FeatureWriter, made: encoding.Encoder, content: Content, wanted: np.ndarray, strict: bool, name: str
) -> None:
    """Encodes the `wanted` [I, M] slots, each distinct content once, from the first batch that is not written yet."""
    values = np.unique(content.index[wanted])
    source = made.source(values)
    finished = _items_finished(source, content, wanted)
    kept = int((content.index >= 0).any(axis=1).sum() - finished.sum())
    print(f"{name}: {finished.sum():,} items to encode{f', {kept:,} kept' if kept else ''}", flush=True)
    if len(source):
        print(f"{len(values):,} distinct {made.summary(source)}", flush=True)
        terminal.explain("distinct")
    if writer.done:
        print(f"going on after batch {writer.done:,} of {len(source):,}", flush=True)
    encode = _on_all_devices(made, writer.tokens.dtype) if made.params else functools.partial(made.encode, None)
    is_wanted = wanted.ravel()
    pending: collections.deque[tuple[int, dict, tuple[jax.Array, jax.Array]]] = collections.deque()
    progress = Progress(int(finished.sum()), int(finished[: writer.done].sum()), unit="item")

    def write(k: int, batch: dict, output: tuple[jax.Array, jax.Array]) -> None:
        members = source.members(k)
        tokens, mask = (np.asarray(array)[: len(members)] for array in output)
        failed = np.array([bool(problem) for problem in batch["problems"]])
        units, rows = content.units_of(members)
        units, rows = units[is_wanted[units]], rows[is_wanted[units]]
        notes = [[int(members[row]), batch["problems"][row]] for row in np.flatnonzero(failed)]
        if strict and notes:
            raise UserError(
                f"{content.values[notes[0][0]]}: {notes[0][1]}; mend it, or leave out --strict to mask such items"
            )
        writer.write(units, tokens[rows], (mask & ~failed[:, None])[rows], batch["digest"][rows], notes)
        progress.advance(int(finished[k]))

    stream = batches(source, start=writer.done, threads=min(os.cpu_count() or 1, MAX_THREADS))
    for k, batch in enumerate(stream, writer.done):
        pending.append((k, batch, encode(*batch.pop("inputs"))))
        if len(pending) > IN_FLIGHT:
            write(*pending.popleft())
    for one in pending:
        write(*one)
    progress.close()


def _on_all_devices(made: encoding.Encoder, dtype: np.dtype) -> Callable:
    """Inputs of a batch -> its (tokens in `dtype`, mask), the rows spread over the devices."""
    mesh = jax.make_mesh((len(jax.local_devices()),), ("data",), (AxisType.Auto,), devices=jax.local_devices())
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(made.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
    def encode(params, *inputs):
        tokens, mask = made.encode(params, *inputs)
        return tokens.astype(dtype), mask

    return lambda *inputs: encode(params, *jax.device_put(inputs, by_row))


def _items_finished(source, content: Content, wanted: np.ndarray) -> np.ndarray:
    """[batches] how many items have their last wanted slot in each batch."""
    batch_of = np.zeros(len(content.values), np.int64)
    for k in range(len(source)):
        batch_of[source.members(k)] = k
    last = np.where(wanted, batch_of[content.index], -1).max(axis=1, initial=-1)
    return np.bincount(last[last >= 0], minlength=len(source))


def report(dataset: Dataset, content: Content, writer: FeatureWriter, modality: str) -> list[tuple[str, str, str]]:
    """(item id, source, problem) of every item without content and every image that could not be used."""
    problems = {value: problem for notes in writer.notes for value, problem in notes}
    ids, rows = dataset.item_table.column("id").to_pylist(), []
    bad = np.isin(content.index, list(problems))
    for item in np.flatnonzero(bad.any(axis=1) | (content.index < 0).all(axis=1)):
        values = [int(value) for value in content.index[item] if value in problems]
        rows += [(str(ids[item]), content.values[value], problems[value]) for value in values]
        rows += [] if values else [(str(ids[item]), "", f"no {modality}")]
    return rows


def describe(folder: Path, manifest: dict) -> str:
    """What a person wants to know of a feature set just made, as some lines; the first files that could not be used by name."""
    counts, shape = manifest["counts"], " x ".join(map(str, manifest["shape"]))
    missing, unusable = counts["items"] - counts["items_with_content"], counts.get("unusable", 0)
    text = f"{folder}: {shape} {manifest['dtype']}, {counts['items_with_content']:,} of {counts['items']:,} items have content"
    told = folder / "report.tsv"
    if (missing or unusable) and told.is_file():
        text += f"\n  {missing:,} items without, {unusable:,} files unusable: see {told}"
        rows = (line.split("\t") for line in told.read_text(encoding="utf-8").splitlines()[1:])
        named = list(dict.fromkeys(f"{source}: {problem}" for _, source, problem in rows if source))
        text += "".join(f"\n    {one}" for one in named[:NAMED])
        text += f"\n    and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return text
