"""The fusion module alone, with the encoders before it, on the catalogue: config -> `Work`."""

import jax
import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import Ranking
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.data import catalogue
from em3_jax.data.format import open_dataset
from em3_jax.features import in_model, placement, raw_encoders, scratch_encoders
from em3_jax.features.prior import categories, labels, prior
from em3_jax.tasks import Task, work
from em3_jax.tasks.pretraining.category import METRICS as CATEGORY_METRICS
from em3_jax.tasks.pretraining.category import category as category_task
from em3_jax.tasks.pretraining.task import METRICS
from em3_jax.tasks.pretraining.task import pretraining as pretraining_task
from em3_jax.tasks.ranking.setup import check_batches
from em3_jax.tasks.raw import WithEncoders


def pretraining(config: Ranking, mesh: Mesh) -> work.Work:
    """The work of config.task = "pretraining"."""
    check_batches(config, mesh)
    data, model, own = config.data, config.model, config.pretraining
    if data.codes:
        raise UserError(
            f"config.data.codes: task pretraining reads no item fields, so no code set '{data.codes[0]}'; leave it out"
        )
    if model.quantiser.levels:
        raise UserError(
            f"config.model.quantiser.levels={model.quantiser.levels}: task pretraining has no clicks that codes could "
            "train with; leave it out"
        )
    dataset = open_dataset(data.root)
    is_raw = model.content == "raw"
    learns_category = own.loss == "category"
    if learns_category and model.encoder_prior:
        raise UserError(
            f"config.model.encoder_prior={model.encoder_prior}: encoders that read a category need "
            "not learn one; leave it out, or set config.pretraining.loss=contrast"
        )
    beside = prior(dataset, model.encoder_prior) if is_raw else None
    beside = labels(dataset, own.category_field) if learns_category else beside
    content = placement.load_content(dataset, data.features, data.placement, mesh, beside=beside)
    folders = {name: folder for name, folder in model.encoders.items() if folder and is_raw}
    scratch = scratch_encoders.scratch(config, dataset)
    encoders = raw_encoders.load(folders, content.sets, in_model.how(config, mesh.size), scratch)
    fusion: Task = pretraining_task(model.fusion, model.fusion_settings, own.temperature)
    if learns_category:
        fusion = category_task(model.fusion, model.fusion_settings, categories(dataset, own.category_field))
    metrics = CATEGORY_METRICS if learns_category else METRICS
    task = WithEncoders(fusion, encoders) if encoders else fusion
    train_items, held_out = catalogue.hold_out(dataset.num_items, own.hold_out)

    def validate(predict: work.Predict, state: State) -> dict[str, float]:
        source = catalogue.CataloguePass(held_out, config.eval.batch_size, content.on_host)
        results = jax.device_get([predict(state, source[k]) for k in range(len(source))])
        count = np.array([result["count"] for result in results])
        return {name: float(np.average([result[name] for result in results], weights=count)) for name in metrics}

    return work.Work(
        task=task,
        dataset=dataset,
        feature_sets=content.sets,
        beside=content.beside,
        constants=content.tables,
        encoders=dict(encoders),
        source=catalogue.CatalogueSource(train_items, data.batch_size, config.seed, content.on_host),
        evaluation=None,
        headline=metrics,
        validate=validate,
    )
