"""LEMUR: the encoder inside the ranker, histories from a memory bank: config -> `Work`."""

import functools
from typing import Any

import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import Lemur
from em3_jax.config.schema.lemur import Layout, Query
from em3_jax.core import sharding
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.core.values import canonical
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.data.number_columns import with_numbers
from em3_jax.data.texts import hashed_words
from em3_jax.features import in_model, placement, raw_encoders, scratch_encoders
from em3_jax.features.prior import prior
from em3_jax.models.encoders.fields import ImageLayout, TextLayout, VectorLayout
from em3_jax.tables import memory_bank, packing
from em3_jax.tasks import work
from em3_jax.tasks.lemur.task import lemur as lemur_task
from em3_jax.tasks.ranking.setup import (
    amounts_of,
    check_batches,
    in_table,
    open_clicks,
    place_of,
    segments_of,
    shards_of,
    work_on_clicks,
)


def lemur(config: Lemur, mesh: Mesh, dataset: Dataset | None = None) -> work.Work:
    """The work of config.task = "lemur".

    Args:
      dataset: where it is open already; None = that of config.data.
    """
    shards = shards_of(mesh)
    check_batches(config, mesh, shards.total if shards.in_blocks else 0)
    data, model = config.data, config.model
    if not data.history_length:
        raise UserError("config.data.history_length=0: task lemur reads histories; set 1 or more")
    dataset = with_numbers(open_clicks(data, dataset), model.numbers, model.all_numbers)
    if data.label in dataset.amounts:
        raise UserError(
            f"config.data.label={data.label}: is an amount, and task lemur contrasts clicks; learn it beside a label of 0 "
            f"and 1, config.model.heads.labels={data.label}"
        )
    parts, of_labels = segments_of(dataset, data), amounts_of(dataset, config)
    folders = {name: folder for name, folder in model.encoders.items() if folder}
    beside = prior(dataset, model.encoder_prior)
    content = placement.load_content(dataset, data.features, place_of(config), mesh, shards.in_blocks, beside)
    own = [features for features in content.sets if features.name not in folders]
    converted = [features for features in content.sets if features.name in folders]
    scratch = scratch_encoders.scratch(config, dataset)
    raw = raw_encoders.load(folders, converted, in_model.how(config, mesh.size), scratch)
    layouts = _layouts(own, model.layout) | {name: VectorLayout() for name in raw}
    layouts = {features.name: layouts[features.name] for features in content.sets}
    queries = _queries(dataset, model.query)
    given: dict[str, Any] = {"has_queries": queries is not None, "numbers": dataset.numbers, "amounts": of_labels}
    fields, table = in_table(dataset.fields, config.tables.capacity), config.tables
    task = lemur_task(fields, layouts, raw, model, last=data.history_length, **given)
    items = table.bank_capacity or table.capacity or dataset.num_items
    rows, width = sharding.padded(items, mesh), model.encoder.output
    form = packing.form_on(mesh, dealt=shards.in_blocks)
    return work_on_clicks(
        config,
        mesh,
        dataset,
        task,
        content,
        raw,
        encode=model.encode,
        queries=queries,
        make_memory=functools.partial(memory_bank.init, rows, width, form),
        parts=parts,
    )


def _queries(dataset: Dataset, settings: Query) -> tuple[str, np.ndarray] | None:
    """(name of the context field, [field size, length] words of its values); None where the dataset has no such field."""
    field = settings.field
    found = next((spec for spec in dataset.fields.context if spec.name == field), None)
    if found is None:
        return None
    words = [canonical(value) or "" for value in dataset.meta["vocabularies"]["context"][field]]
    table = np.zeros((found.size, settings.length), np.int32)
    table[FIRST_KNOWN : FIRST_KNOWN + len(words)] = hashed_words(words, settings.length, settings.vocabulary)
    return field, table


def _layouts(sets: list[FeatureSet], settings: Layout) -> dict[str, Any]:
    """Feature set -> layout of those that the encoder reads as they are."""
    patch, lengths = settings.patch, settings.lengths
    result: dict[str, Any] = {}
    fields: dict[str, int] = {}
    for features in sets:
        raw = features.manifest.get("raw")
        if raw is None:
            result[features.name] = VectorLayout()
        elif "fields" in raw:
            own = dict(raw["fields"])
            keep = tuple(min(lengths.get(name, length), length) for name, length in own.items())
            result[features.name] = TextLayout(tuple(own.items()), keep, raw["vocabulary"])
            fields |= own
        elif "shape" in raw and "below" not in features.manifest:
            height, width, _ = raw["shape"]
            if height % patch or width % patch:
                raise UserError(
                    f"config.model.layout.patch={patch} does not divide the pictures of '{features.name}', {height} x {width}"
                )
            result[features.name] = ImageLayout(height, width, patch)
        else:
            raise UserError(
                f"config.data.features: '{features.name}' is what {features.manifest['encoder']} is to read; set "
                f"config.model.encoders.{features.name} to its folder, or make it with `em3 raw`"
            )
    for name in lengths:
        if name not in fields:
            raise UserError(f"config.model.layout.lengths.{name}: no such text field; {nearest(name, fields)}")
    return result
