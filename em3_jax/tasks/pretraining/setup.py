"""The fusion module alone, on the catalogue: config -> `Work`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from em3_jax.config import sections
from em3_jax.core.types import State
from em3_jax.data import catalogue
from em3_jax.data.format import open_dataset
from em3_jax.features import placement
from em3_jax.tasks import work
from em3_jax.tasks.pretraining.task import METRICS
from em3_jax.tasks.pretraining.task import pretraining as pretraining_task
from em3_jax.tasks.ranking.setup import settings


class PretrainingSettings(NamedTuple):
    """config.pretraining: `temperature` of the contrast, share of the items to `hold_out` for validation."""

    temperature: float
    hold_out: float


def pretraining(config: Mapping[str, Any], mesh: Mesh, num_steps: Callable[[int, int], int]) -> work.Work:
    """The work of config.task = "pretraining"; arguments as of `experiment.build`."""
    data, _, eval_settings = settings(config, mesh)
    own = sections.call(PretrainingSettings, config["pretraining"], "config.pretraining")
    model = config["model"]
    dataset = open_dataset(data.root)
    task = pretraining_task(
        fusion=model["fusion"], fusion_settings=model["fusion_settings"], temperature=own.temperature
    )
    content = placement.load_content(dataset, data.features, data.placement, mesh)
    train_items, held_out = catalogue.hold_out(dataset.num_items, own.hold_out)
    steps = num_steps(len(train_items), data.batch_size)

    def validate(predict: Callable) -> Callable:
        source = catalogue.CataloguePass(held_out, eval_settings.batch_size, content.on_host)

        def report(state: State) -> dict[str, float]:
            results = jax.device_get([predict(state, source[k]) for k in range(len(source))])
            count = np.array([result["count"] for result in results])
            return {name: float(np.average([result[name] for result in results], weights=count)) for name in METRICS}

        return report

    return work.Work(
        task=task,
        dataset=dataset,
        feature_sets=content.sets,
        constants=content.tables,
        encoders={},
        source=catalogue.CatalogueSource(train_items, data.batch_size, config["seed"], steps, content.on_host),
        evaluation=None,
        headline=METRICS,
        eval=eval_settings,
        make_tables=lambda key: {},
        row_optimizer=None,
        table_l2=0.0,
        validate=validate,
        evaluate=None,
    )
