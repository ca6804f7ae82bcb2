"""Retrieval: embeddings of all users and all items, whose dot product orders the items.

The equations stand with each model. Letters: B pairs, U users, I items, E width of an item's
vector, D width of an embedding.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from em3_jax.core import rng
from em3_jax.core.sparse import Adjacency
from em3_jax.core.types import Batch
from em3_jax.models.encoders import STATISTICS
from em3_jax.models.retrieval import Graphs
from em3_jax.tasks import Loss, Params, Task


class Catalogue(NamedTuple):
    """What lies on the device for the whole run.

    Attributes:
      features: {modality: [I, E] f32}.
      graphs: the full user-item graph, and the item graphs.
    """

    features: dict[str, jax.Array]
    graphs: Graphs


class GraphInputs(NamedTuple):
    """What the task sees of a step.

    Attributes:
      features, graphs: those of the catalogue, with the graph of the batch if it brings one.
      batch: the batch.
    """

    features: dict[str, jax.Array]
    graphs: Graphs
    batch: Batch


@dataclasses.dataclass(frozen=True, eq=False)
class RetrievalTask(Task):
    """The task of a retrieval model.

    Attributes:
      model: see `models.retrieval`; its method `loss` gives (loss [], named scalars).
    """

    model: nn.Module

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> GraphInputs:
        """The catalogue, which is `constants`, and the batch; there are no `rows`.

        A batch with edges (see `data.pairs`) trains on the graph they make, all else on the full
        one.
        """
        graphs = constants.graphs
        if "edge_sender" in batch:
            edges = Adjacency(*(batch[f"edge_{name}"] for name in Adjacency._fields))
            graphs = graphs._replace(user_item=edges)
        return GraphInputs(constants.features, graphs, batch)

    def init(self, key: jax.Array, inputs: GraphInputs) -> Params:
        names = ("params", "dropout", "negatives")
        rngs = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        arguments = (inputs.features, inputs.graphs, *_pairs(inputs.batch))
        return {"model": self.model.init(rngs, *arguments, method="loss")["params"]}

    def loss(self, params: Params, inputs: GraphInputs, key: jax.Array, step: jax.Array) -> Loss:
        rngs = {name: rng.stream(key, name, step) for name in ("dropout", "negatives")}
        variables = {"params": params["model"]}
        arguments = (inputs.features, inputs.graphs, *_pairs(inputs.batch))
        result: Any = self.model.apply(variables, *arguments, method="loss", rngs=rngs, mutable=[STATISTICS])
        (loss, aux), moved = result
        if moved:
            aux |= {"statistics": {"model": moved[STATISTICS]}}
        return loss, aux

    def predict(self, params: Params, inputs: GraphInputs) -> tuple[jax.Array, jax.Array]:
        """(users [U, D], items [I, D]) embeddings."""
        variables = {"params": params["model"]}
        result: Any = self.model.apply(variables, inputs.features, inputs.graphs, train=False)
        return result


def _pairs(batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(users, their items, items that are none of theirs), each [B] i32."""
    return batch["user"], batch["positive"], batch["negative"]
