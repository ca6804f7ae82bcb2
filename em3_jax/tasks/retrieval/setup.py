"""Users and items as vectors, all items ranked for each user: config -> `Work`."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from em3_jax.config import parse, registry
from em3_jax.config.schema import Retrieval
from em3_jax.config.schema.retrieval import ItemGraph as ItemGraphSettings
from em3_jax.core import sharding, sparse
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.data.format import Dataset, FeatureSet, open_dataset
from em3_jax.data.item_graph import cached_item_graph, item_graph
from em3_jax.data.pairs import Pairs, PairSource, full_graph, training_pairs
from em3_jax.evaluation.retrieval import HEADLINE, FullRanking
from em3_jax.features import placement
from em3_jax.models.retrieval import Graphs, ItemGraph
from em3_jax.tasks import work
from em3_jax.tasks.retrieval.task import Catalogue, RetrievalTask


def retrieval(config: Retrieval, mesh: Mesh) -> work.Work:
    """The work of config.task = "retrieval"."""
    data, settings = config.data, config.eval
    sharding.check_divides(mesh, "data.batch_size", data.batch_size)
    dataset = open_dataset(data.root)
    if not dataset.meta.get("only_clicks"):
        raise UserError(
            f"{data.root}: its rows are clicks against negatives, and retrieval wants interactions alone; prepare it with "
            "`em3 prepare table` with --as-retrieval, or mmrec without --as-clicks"
        )
    pairs = training_pairs(dataset)
    sets = _feature_sets(dataset, data.features)
    features = {one.name: item_vectors(one) for one in sets}
    ranked = functools.cache(
        lambda name: FullRanking(
            dataset,
            pairs,
            name,
            sets,
            user_block=settings.user_block,
            item_block=settings.item_block,
            activity=settings.activity,
        )
    )
    ranked("valid")  # an empty one is an error now and not after the first epoch
    own = _with_weights(config.model.retrieval_settings, list(features))
    model = registry.retrieval(config.model.retrieval, own, pairs.num_users, pairs.num_items)
    item_graphs = _item_graphs(dataset, features, config.model.item_graph)
    present: dict[str, Any] = {name: vectors.any(axis=1) for name, vectors in features.items()}
    graphs = Graphs(_user_item_graph(pairs), item_graphs, present)

    def evaluate(predict: work.Predict, state: State, split: str, errors: bool = True) -> work.Report:
        slices, lists, by_user = ranked(split)(*predict(state, {}))
        return work.Report(slices, {"items": lists}, {"user": by_user})

    return work.Work(
        task=RetrievalTask(model),
        dataset=dataset,
        feature_sets=sets,
        constants=sharding.put(Catalogue(dict[str, Any](features), graphs), sharding.replicated(mesh)),
        encoders={},
        source=PairSource(pairs, batch_size=data.batch_size, seed=config.seed, edge_dropout=data.edge_dropout),
        evaluation=None,
        headline=HEADLINE,
        validate=lambda predict, state: ranked("valid").overall(*predict(state, {})),
        evaluate=evaluate,
    )


def _feature_sets(dataset: Dataset, names: tuple[str, ...]) -> list[FeatureSet]:
    """The feature sets that config.data.features names; "*" stands for all that the dataset has."""
    if "*" in names:
        names = tuple(sorted(path.name for path in (dataset.root / "features").glob("[!.]*") if path.is_dir()))
    return placement.load_features(dataset, names) if names else []


def _with_weights(of_model: Any, modalities: list[str]) -> Any:
    """The model's settings with the weights of the modalities at hand alone, scaled to sum 1.

    Args:
      of_model: a section of the schema; a mapping, of a model of the user's own.
    """
    is_own = isinstance(of_model, Mapping)
    given = (of_model if is_own else parse.entries(of_model)).get("modality_weights", {})
    weights = {name: value for name, value in given.items() if name in modalities}
    total = sum(weights.values())
    if not total:
        return of_model
    scaled = {"modality_weights": {name: value / total for name, value in weights.items()}}
    return {**of_model, **scaled} if is_own else dataclasses.replace(of_model, **scaled)


def _user_item_graph(pairs: Pairs) -> sparse.Adjacency:
    entries, nodes = full_graph(pairs), pairs.num_users + pairs.num_items
    return sparse.grouped(entries, nodes, width=sparse.group_width(len(entries.receiver), nodes))


def _item_graphs(
    dataset: Dataset, features: dict[str, np.ndarray], settings: ItemGraphSettings
) -> dict[str, ItemGraph]:
    """{modality: its item graph}, kept beside the features; {} where config.model.item_graph.neighbours is 0."""
    if not settings.neighbours:
        return {}
    folder = dataset.root / "features"
    make = item_graph
    if features and os.access(folder, os.W_OK):
        make = functools.partial(cached_item_graph, folder / ".item_graphs")
    graphs = {}
    for name, vectors in features.items():
        entries = make(vectors, **parse.entries(settings))
        matrices = [
            sparse.grouped(one, dataset.num_items, width=settings.neighbours)
            for one in (entries, sparse.transposed(entries))
        ]
        graphs[name] = ItemGraph(*matrices)
    return graphs


def item_vectors(features: FeatureSet) -> np.ndarray:
    """[I, E] f32: one vector an item, the mean of its valid tokens, as stored; zeros without one."""
    if features.is_raw:
        raise UserError(
            f"config.data.features: '{features.name}' is raw content, and retrieval reads vectors; extract it without --raw"
        )
    mask = np.asarray(features.mask)
    if features.tokens.shape[1] == 1:
        vectors = np.asarray(features.tokens[:, 0], np.float32)
        return vectors if mask.all() else np.where(mask, vectors, np.float32(0))
    tokens = np.where(mask[:, :, None], features.tokens, np.zeros((), features.tokens.dtype)).astype(np.float32)
    return tokens.sum(axis=1) / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
