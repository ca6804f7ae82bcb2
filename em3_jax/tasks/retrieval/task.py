"""Retrieval: embeddings of all users and all items, whose dot product orders the items. The equations stand with each model."""

from typing import NamedTuple

import flax.linen as nn
import jax

from em3_jax.core import rng
from em3_jax.core.sparse import Adjacency
from em3_jax.core.types import Batch
from em3_jax.models.retrieval import Graphs
from em3_jax.tasks import Task


class Catalogue(NamedTuple):
    """What lies on the device for the whole run.

    Attributes:
      features: {modality: [I, E] f32}.
      graphs: the full user-item graph, and the item graphs.
    """

    features: dict[str, jax.Array]
    graphs: Graphs


class RetrievalInputs(NamedTuple):
    """What the task sees of a step: the catalogue, with the graph of the batch if it brings one, and the batch."""

    features: dict[str, jax.Array]
    graphs: Graphs
    batch: Batch


def inputs(rows: None, catalogue: Catalogue, batch: Batch) -> RetrievalInputs:
    """The inputs; a batch with edges (see `data.pairs`) trains on the graph they make, all else on the full one."""
    graphs = catalogue.graphs
    if "edge_sender" in batch:
        graphs = graphs._replace(user_item=Adjacency(*(batch[f"edge_{name}"] for name in Adjacency._fields)))
    return RetrievalInputs(catalogue.features, graphs, batch)


def retrieval(model: nn.Module) -> Task:
    """The task of a retrieval model, see `models.retrieval`; `predict` gives (users [U, D], items [I, D])."""

    def pairs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        return batch["user"], batch["positive"], batch["negative"]

    def init(key: jax.Array, x: RetrievalInputs):
        names = ("params", "dropout", "negatives")
        rngs = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        return {"model": model.init(rngs, x.features, x.graphs, *pairs(x.batch), method="loss")["params"]}

    def loss(params, x: RetrievalInputs, key: jax.Array, step: jax.Array):
        rngs = {name: rng.stream(key, name, step) for name in ("dropout", "negatives")}
        variables = {"params": params["model"]}
        return model.apply(variables, x.features, x.graphs, *pairs(x.batch), method="loss", rngs=rngs)

    def predict(params, x: RetrievalInputs) -> tuple[jax.Array, jax.Array]:
        return model.apply({"params": params["model"]}, x.features, x.graphs, train=False)

    return Task(init, loss, predict, None, {}, inputs)
