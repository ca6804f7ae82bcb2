"""The fusion module alone, on the catalogue: config -> `Work`."""

import jax
import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import Ranking
from em3_jax.core.types import State
from em3_jax.data import catalogue
from em3_jax.data.format import open_dataset
from em3_jax.features import placement
from em3_jax.tasks import work
from em3_jax.tasks.pretraining.task import METRICS
from em3_jax.tasks.pretraining.task import pretraining as pretraining_task
from em3_jax.tasks.ranking.setup import check_batches


def pretraining(config: Ranking, mesh: Mesh) -> work.Work:
    """The work of config.task = "pretraining"."""
    check_batches(config, mesh)
    data, model, own = config.data, config.model, config.pretraining
    dataset = open_dataset(data.root)
    task = pretraining_task(model.fusion, model.fusion_settings, own.temperature)
    content = placement.load_content(dataset, data.features, data.placement, mesh)
    train_items, held_out = catalogue.hold_out(dataset.num_items, own.hold_out)

    def validate(predict: work.Predict, state: State) -> dict[str, float]:
        source = catalogue.CataloguePass(held_out, config.eval.batch_size, content.on_host)
        results = jax.device_get([predict(state, source[k]) for k in range(len(source))])
        count = np.array([result["count"] for result in results])
        return {name: float(np.average([result[name] for result in results], weights=count)) for name in METRICS}

    return work.Work(
        task=task,
        dataset=dataset,
        feature_sets=content.sets,
        constants=content.tables,
        encoders={},
        source=catalogue.CatalogueSource(train_items, data.batch_size, config.seed, content.on_host),
        evaluation=None,
        headline=METRICS,
        validate=validate,
    )
