"""Clicks against impressions that were not clicked: config -> `Work`."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import Lemur, OnClicks, Ranking
from em3_jax.config.schema.ranking import Data, RankingSettings
from em3_jax.core import amounts, sharding
from em3_jax.core.amounts import Amount
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import Fields
from em3_jax.core.labels import LOG_KEPT, Labels, parted
from em3_jax.core.types import WHOLE, Shards, State
from em3_jax.data import sampling
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.codes import CodeSet, read_codes, with_codes
from em3_jax.data.event_features import with_event_features
from em3_jax.data.format import Dataset, FeatureSet, observed, open_dataset
from em3_jax.data.known import as_trained
from em3_jax.data.number_columns import with_numbers
from em3_jax.data.pipeline import BY_ITEM, bucket_sizes, evaluation_source, training_rows, training_source
from em3_jax.data.segments import Segments, segments
from em3_jax.evaluation import groups as groups_evaluation
from em3_jax.evaluation import labels as labels_evaluation
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.features import in_model, placement, raw_encoders, scratch_encoders
from em3_jax.features.prior import prior
from em3_jax.models import similarity
from em3_jax.tables import id_table, packing
from em3_jax.tasks import Task, work
from em3_jax.tasks.cic import BATCH
from em3_jax.tasks.ranking.task import RankingTask
from em3_jax.tasks.ranking.task import ranking as ranking_task
from em3_jax.tasks.raw import WithEncoders

ALL = 1 << 30  # events of a history: what is sought may be of any time
OF_HISTORY = ("user", *similarity.PARTS)  # the parts of content that are of it


def shards_of(mesh: Mesh) -> Shards:
    """What of each batch this process builds: blocks of its own devices, or all of it where there is one."""
    return sharding.device_blocks(mesh) if mesh.size > 1 else WHOLE


def check_batches(config: OnClicks, mesh: Mesh, parts: int = 0) -> None:
    """Refuses batches that do not divide over the mesh, see `sharding.check_divides`."""
    sharding.check_divides(mesh, "data.batch_size", config.data.batch_size, parts)
    sharding.check_divides(mesh, "eval.batch_size", config.eval.batch_size, parts)


def check_order(data: Data) -> None:
    """Refuses a bound on the items of a batch without the order that keeps it, and the reverse."""
    most, by_item = data.items_per_batch, data.order == BY_ITEM
    if by_item and not 1 <= most <= data.batch_size:
        raise UserError(
            f"config.data.items_per_batch={most}: order {BY_ITEM} needs a number of candidates from 1 "
            f"to config.data.batch_size, {data.batch_size}"
        )
    if most and not by_item:
        raise UserError(
            f"config.data.items_per_batch={most}: order '{data.order}' takes items as they come; set "
            f"config.data.order={BY_ITEM}, or leave it out"
        )


def _check_history(config: Ranking, task: RankingTask) -> None:
    """Refuses what a history of length 0 never shows, and a longer one whose items nothing reads."""
    length, parts = config.data.slots, config.model.content_parts
    where = f"config.data.history_length={length}:"
    of_history = [name for name in parts if name in OF_HISTORY] if task.uses_content else []
    if not length and of_history:
        raise UserError(
            f"{where} config.model.content_parts '{of_history[0]}' reads the history; set 1 or more, "
            "or config.model.content_parts=item"
        )
    backbone_reads = getattr(task.model.backbone, "reads_history", True)
    if length and task.uses_content and not (of_history or backbone_reads or task.contrast):
        raise UserError(
            f"{where} neither backbone {config.model.backbone} nor content reads the history, whose "
            "items would be encoded for nothing; set 0"
        )


def ranking(config: Ranking, mesh: Mesh, dataset: Dataset | None = None) -> work.Work:
    """The work of config.task = "ranking".

    Args:
      dataset: where it is open already; None = that of config.data.
    """
    data = config.data
    dataset = with_numbers(open_clicks(data, dataset), config.model.numbers, config.model.all_numbers)
    parts = segments_of(dataset, data)
    named = [] if parts is None else [(one.name, one.length) for one in parts.parts]
    fields = in_table(dataset.fields, config.tables.capacity)
    of_labels, first = amounts_of(dataset, config), _first_amount(dataset, config)
    task = ranking_task(fields, config.model, of_labels, named, dataset.numbers, first)
    _check_history(config, task)
    shards = shards_of(mesh)
    check_batches(config, mesh, shards.total if shards.in_blocks else 0)
    content = placement.Content([], (), {})
    if task.uses_content:
        beside = prior(dataset, config.model.encoder_prior)
        place = place_of(config)
        content = placement.load_content(dataset, data.features, place, mesh, shards.in_blocks, beside)
    how = in_model.how(config, mesh.size) if task.uses_content else in_model.PLAINLY
    scratch = scratch_encoders.scratch(config, dataset)
    encoders = raw_encoders.load(task.encoders, content.sets, how, scratch)
    task_with_encoders = WithEncoders(task, encoders) if encoders else task
    encode = "candidates" if encoders and data.slots and not _reads_history(config, task) else "none"
    return work_on_clicks(config, mesh, dataset, task_with_encoders, content, encoders, encode=encode, parts=parts)


def _first_amount(dataset: Dataset, config: Ranking) -> str:
    """The name of the first label, if that is an amount; refuses settings that are of clicks."""
    label = config.data.label
    if label not in dataset.amounts:
        return ""
    where = f"config.data.label={label}: is an amount, and"
    if config.stream is not None:
        raise UserError(f"{where} a stream is scored by clicks; learn it beside one, config.model.heads.labels={label}")
    if config.model.loss != RankingSettings.loss:
        raise UserError(
            f"{where} config.model.loss is of clicks; leave it out, config.model.heads.losses.{label} says how"
        )
    return label


def in_table(fields: Fields, capacity: int) -> Fields:
    """The fields as a model sees them whose table has `capacity` rows, of which those of events' fields are the last; 0 = as they
    are."""
    if not capacity:
        return fields
    own, *others = fields.user
    return replace(fields, user=(replace(own, size=own.size + capacity - fields.num_rows), *others))


def place_of(config: OnClicks) -> str:
    """config.data.placement; of a table of fixed size, "host": on devices the content of all items would be as long as these."""
    return "host" if config.tables.capacity else config.data.placement


def amounts_of(dataset: Dataset, config: OnClicks) -> dict[str, Amount]:
    """The labels that are amounts, as they begin: of the training rows that have one.

    Raises:
      UserError: a label is no amount and has a loss of one, or the reverse; no training row has one.
    """
    heads, result = config.model.heads, {}
    where, known = "config.model.heads.losses", ", ".join((*amounts.LOSSES, amounts.ORDINAL))
    for name in (config.data.label, *heads.labels):
        is_amount = name in dataset.amounts
        if is_amount and name not in heads.losses:
            raise UserError(f"{where}: label '{name}' is an amount; say how it is learnt, {where}.{name}={known}")
        if not is_amount and name in heads.losses and name in heads.labels:
            raise UserError(f"{where}.{name}: label '{name}' is 0 or 1 and has no loss of amounts; leave it out")
        if is_amount and heads.kind == "esmm" and heads.labels:
            raise UserError(f"config.model.heads.kind=esmm: label '{name}' is an amount; choose shared_bottom or mmoe")
        if is_amount:
            values = np.asarray(dataset.label(name)[np.asarray(dataset.split_rows("train", config.data.label))])
            if not (values := values[observed(values)]).size:
                raise UserError(f"config.model.heads.labels: no training row has a '{name}'; leave it out")
            try:
                result[name] = amounts.fitted(heads.losses[name], values)
            except ValueError as error:
                hint = "choose a loss of amounts, " + ", ".join(amounts.LOSSES)
                raise UserError(f"{where}.{name}={heads.losses[name]}: label '{name}' {error}; {hint}") from None
    return result


def _reads_history(config: Ranking, task: RankingTask) -> bool:
    """Whether anything reads the content of the history's items; CIC does of all items of a batch."""
    return task.contrast is not None or any(name in OF_HISTORY for name in config.model.content_parts)


def work_on_clicks(
    config: OnClicks,
    mesh: Mesh,
    dataset: Dataset,
    task: Task,
    content: placement.Content,
    encoders: Mapping[str, in_model.RawEncoder],
    *,
    encode: str = "none",
    queries: tuple[str, np.ndarray] | None = None,
    make_memory: Callable = dict,
    parts: Segments | None = None,
) -> work.Work:
    """The work of a task on clicks.

    Args:
      task: what is optimized.
      content: what it reads of the items' content.
      encoders: the raw encoders, whose weights are among the parameters.
      encode, queries: see `BatchBuilder`.
      make_memory: see `work.Work`.
      parts: what the slots of a history hold; None = the last events.
    """
    data, table = config.data, config.tables
    what, asked = task.labels, groups_evaluation.Asked(config.eval.at, config.eval.group_by)
    groups_evaluation.check(dataset, asked)
    check_order(data)
    by_group = bool(config.model.cic.weight) and config.model.cic.negatives_from != BATCH
    rows = training_rows(dataset, data.label, data.most_rows_per_user, data.rows_share)
    log_q = _log_q(config, dataset, rows, what.first)
    given = content.on_host, encode, queries, what.names, parts, by_group, log_q
    make_builder = lambda dataset: _builder(dataset, data, *given)  # noqa: E731
    key = f"{data.label}-{data.most_rows_per_user}"
    key += f"-{data.rows_share:g}" if data.rows_share < 1 else ""
    known = as_trained(dataset, rows, data.history_length if parts is None else ALL, key)
    builder = make_builder(known)
    row_optimizer = id_table.row_optimizer(table.optimizer, table.learning_rate)
    num_rows = table.capacity or dataset.fields.num_rows
    length = sharding.padded(num_rows, mesh)
    shards, unit = shards_of(mesh), math.lcm(64, mesh.size)
    form = packing.form_on(mesh, dealt=shards.in_blocks)
    evaluation = functools.cache(lambda split: evaluation_source(builder, split, config.eval.batch_size, shards, unit))
    place = functools.partial(sharding.place, mesh, shards)

    def evaluate(predict: work.Predict, state: State, split: str, errors: bool = True) -> work.Report:
        source = evaluation(split)
        logits = ranking_evaluation.predict(source, lambda batch: predict(state, batch), place)
        # Slices are those of the dataset, not of what this run knows: all runs have the same rows in them.
        rows = np.asarray(source.rows)
        less = log_q[LOG_KEPT][dataset.interactions["item"][rows]] if LOG_KEPT in log_q else None
        return _measured(config, dataset, rows, logits, content.sets, what, less, errors)

    def validate(predict: work.Predict, state: State) -> dict[str, float]:
        report = evaluate(predict, state, "valid", False)
        return report.slices["all"] | labels_evaluation.to_choose_by(report.slices["all"], report.labels)

    return work.Work(
        task=task,
        dataset=known,
        feature_sets=content.sets,
        beside=content.beside,
        constants=content.tables,
        encoders=dict(encoders),
        source=training_source(
            builder,
            rows,
            batch_size=data.batch_size,
            seed=config.seed,
            order=data.order,
            most_items=data.items_per_batch,
            shards=shards,
            unit=unit,
        ),
        evaluation=evaluation,
        headline=(*ranking_evaluation.headline(dataset, asked, what), *labels_evaluation.headline(what, asked)),
        make_tables=lambda key: id_table.init(
            key, num_rows, table.width, table.init_scale, row_optimizer, length, form
        ),
        row_optimizer=row_optimizer,
        table_l2=table.l2,
        validate=validate,
        evaluate=evaluate,
        shards=shards,
        make_memory=make_memory,
        code_sets=_code_sets(dataset, data),
        sought_sets=() if parts is None else parts.sets,
        builder=make_builder,
        buckets=lambda samples: bucket_sizes(builder, samples, shards, unit),
    )


def _measured(
    config: OnClicks,
    dataset: Dataset,
    rows: np.ndarray,
    logits: np.ndarray,
    sets: Sequence[FeatureSet],
    what: Labels,
    log_kept: np.ndarray | None,
    errors: bool,
) -> work.Report:
    """What a run says of interaction rows [n], and what is behind it.

    Args:
      logits: [n], or [n, 1 + H].
      sets, what, log_kept: see `ranking_evaluation.Scored`.
      errors: whether to find how each user moves the metrics, too.
    """
    asked, label = groups_evaluation.Asked(config.eval.at, config.eval.group_by), config.data.label
    logits, further = parted(logits, what)
    arrays = {"logits": logits} | {f"logits_{name}": one for name, one in further.items()}
    arrays |= {} if log_kept is None else {LOG_KEPT: log_kept}
    share = config.eval.popular_share
    scored = ranking_evaluation.Scored(dataset, rows, logits, sets, share, label, asked, what, log_kept)
    others = labels_evaluation.Further.of(dataset, rows, further, label, what, asked)
    moved_by = ranking_evaluation.errors(scored) if errors else {}
    others.add_errors(moved_by, {kind: np.asarray(dataset.interactions[kind][rows]) for kind in moved_by})
    return work.Report(ranking_evaluation.evaluate(scored), arrays, moved_by, others.report())


def _log_q(config: OnClicks, dataset: Dataset, rows: np.ndarray | range, is_amount: str) -> dict[str, np.ndarray]:
    """Key of batches -> [I] what log-Q corrections take off, of those that are asked for.

    Raises:
      UserError: they are of drawn negatives, and the label is an amount, or its negatives are known not to be drawn.
    """
    data, model, size = config.data, config.model, config.data.batch_size
    result = {}
    if config.stream is not None and (
        data.log_q or model.cic.log_q or (isinstance(config, Lemur) and config.model.sqdc.log_q)
    ):
        raise UserError("log_q: of a stream it is not known beforehand how often an item is drawn; leave it out")
    if data.log_q and is_amount:
        raise UserError(
            f"config.data.log_q: is of drawn negatives, and label '{data.label}' is an amount; leave it out"
        )
    if data.log_q:
        sampling.check_drawn(dataset, data.label)
        result[LOG_KEPT] = sampling.log_kept(dataset, rows, data.label)
    if model.cic.weight and model.cic.log_q:
        # What LEMUR contrasts is encoded in the step: candidates.
        length = data.history_length if isinstance(config, Ranking) else 0
        result["log_present"] = sampling.log_present(dataset, rows, size, length)
    if isinstance(config, Lemur) and config.model.sqdc.weight and config.model.sqdc.log_q:
        result["log_expected"] = sampling.log_expected(dataset, rows, size)
    return result


def open_clicks(data: Data, dataset: Dataset | None = None) -> Dataset:
    """The dataset of config.data, with its codes among its item fields and what is made of events among those of events.

    Args:
      dataset: as it lies there, where it is open already.

    Raises:
      UserError: it is one of clicks alone; a code set is not there, or is named twice.
    """
    dataset = dataset or open_dataset(data.root)
    if dataset.meta.get("only_clicks"):
        raise UserError(
            f"{data.root}: holds clicks alone, nothing to rank them against; prepare it with --negatives 3 (mmrec: --as-clicks)"
        )
    if data.event_features and not data.slots:
        raise UserError("config.data.event_features: config.data.history_length=0 reads no events; leave them out")
    return with_event_features(with_codes(dataset, _code_sets(dataset, data)), data.event_features)


def segments_of(dataset: Dataset, data: Data) -> Segments | None:
    """What the slots of a history hold; None = the last events alone."""
    if not data.similar_slots and (data.similar_within or data.similar_length != Data.similar_length):
        raise UserError(
            "config.data.similar_length, similar_within: are of config.data.similar_by or similar_content, which name "
            "nothing"
        )
    if not data.has_segments:
        return None
    similar = (data.similar_by, data.similar_length, data.similar_within, tuple(data.similar_content))
    return segments(dataset, data.history_length, data.histories_by, dict(data.histories), *similar)


def _code_sets(dataset: Dataset, data: Data) -> list[CodeSet]:
    """Those that config.data.codes names."""
    if twice := [name for k, name in enumerate(data.codes) if name in data.codes[:k]]:
        raise UserError(f"config.data.codes: '{twice[0]}' is named twice; name it once")
    return [read_codes(dataset, name) for name in data.codes]


def _builder(
    dataset: Dataset,
    data: Data,
    host_features: tuple[FeatureSet, ...],
    encode: str,
    queries: Any,
    labels: tuple[str, ...],
    parts: Segments | None,
    groups: bool,
    log_q: Mapping[str, np.ndarray],
) -> BatchBuilder:
    known = [field.name for _, fields in dataset.fields.groups() for field in fields]
    for name in data.unknown_floor:
        if name not in known:
            raise UserError(f"config.data.unknown_floor.{name}: no such field; {nearest(name, known)}")
    return BatchBuilder(
        dataset,
        history_length=data.history_length,
        unknown_alpha=data.unknown_alpha,
        unknown_floor=dict(data.unknown_floor),
        unknown_below=data.unknown_below,
        host_features=host_features,
        label=data.label,
        encode=encode,
        queries=queries,
        row_weights=data.row_weights,
        labels=labels,
        segments=parts,
        groups=groups,
        log_q=log_q,
    )
