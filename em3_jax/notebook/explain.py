"""What a model looks at in a batch: the weights of its attentions, and how its logits move with content.

Attention is no proof of importance: what is looked at need not be used. `em3 importance` measures that.

Letters: B examples, T slots of a history, S distinct items of a batch, N tokens of an item, E their width.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import Batch, State
from em3_jax.models.attention import WEIGHTS
from em3_jax.models.encoders.fields import READ
from em3_jax.protocols import attention
from em3_jax.tasks import Inputs, Params, Task
from em3_jax.tasks.lemur.task import LemurTask
from em3_jax.tasks.ranking.task import RankingTask
from em3_jax.tasks.raw import WithEncoders
from em3_jax.training import step
from em3_jax.training.experiment import Experiment

CLASS_TOKEN = "class token"
Explained = Callable[[State, Batch, np.ndarray], dict[str, Any]]
"""(state, batch, [B] f32 weights of the logits whose sum the gradients are of) -> what `_explained` gives."""


class Explanation(NamedTuple):
    """What a model looks at in a batch of B examples; all are numpy arrays.

    Items are their rows in the dataset: `experiment.parts.work.dataset.item_table`.

    Attributes:
      logit: [B] f32, of the first label.
      item: [B] i32, the candidates.
      history_item: [B, T] i32, the items of the history, newest last; -1 = no such event.
      modalities: {layer of the fusion module: {modality: [B]}}, the share of the attention to the
        candidate's tokens, and to the "learnt queries" where these are read, too; those of a layer
        sum to 1. {} where the fusion module does not attend to the tokens of all modalities at once.
        Of LEMUR what its "class token" reads in the encoder's last layer.
      equal: the same if all tokens were read alike, to compare with.
      history: {attention: [B, T]}, the weights of the events, such as "id_attention" and
        "content_attention", whose mean entropy training logs as "<attention>_entropy"; 0 where there
        is no event. Of one that reads a part of the history T counts that part's slots: of
        LEMUR's the last `short_history`, but of its "decoder_layer<k>" all. {} where none attends.
      token_item: [S] i32, the distinct items whose content was read.
      gradients: {feature set: [S, N, E]} f32, the derivative of the logit of the example asked for,
        or of the sum of all, by each token; 0 at tokens that are not there. A feature set whose tokens
        are whole numbers, such as words and pixels that LEMUR reads, has none; where encoders stand
        before the ranker, they are by what these give.
    """

    logit: np.ndarray
    item: np.ndarray
    history_item: np.ndarray
    modalities: dict[str, dict[str, np.ndarray]]
    equal: dict[str, dict[str, np.ndarray]]
    history: dict[str, np.ndarray]
    token_item: np.ndarray
    gradients: dict[str, np.ndarray]


def make_explained(parts: Experiment) -> Explained:
    """The compiled function behind `explanation`.

    Raises:
      UserError: the task scores no single examples, or there are several devices.
    """
    task, program = parts.work.task, parts.program
    inner = task.task if isinstance(task, WithEncoders) else task
    if not isinstance(inner, RankingTask | LemurTask):
        raise UserError(f"explain: task {parts.config.task} scores no single examples; tasks ranking and lemur do")
    if program.mesh.size > 1:
        raise UserError("explain: is for one device; set config.mesh.data=1 and config.mesh.model=1")
    apply = step.make_apply(task, functools.partial(_explained, task), program.mesh, parts.work.shards)
    return lambda state, batch, of: apply((state.params, of), state.tables, state.memory, parts.work.constants, batch)


def explanation(
    parts: Experiment, explained: Explained, state: State, batch: Batch, example: int | None
) -> Explanation:
    """What the model of `state` looks at in `batch`; arguments as of `Experiment.explain`.

    Raises:
      UserError: there is no such example.
    """
    size = len(batch["label"])
    if example is not None and not 0 <= example < size:
        raise UserError(f"explain: no example {example}; the batch has those from 0 to {size - 1}")
    of = np.asarray(np.full(size, True) if example is None else np.arange(size) == example, np.float32)
    found = jax.device_get(explained(state, batch, of))
    on_host = jax.device_get({name: one for name, one in batch.items() if not isinstance(one, Mapping)})
    items, candidate = on_host["item_id"], on_host["item_position"]
    of_candidates: list[dict[str, dict[str, np.ndarray]]] = [
        {
            layer: {name: share[candidate] for name, share in of_layer[kind].items()}
            for layer, of_layer in found["shares"].items()
        }
        for kind in ("layers", "equal")
    ]
    content, there = items, on_host["item_mask"]
    if isinstance(parts.work.task, LemurTask):  # reads those items alone that the batch names for it
        content, there = items[on_host["encode_position"]], on_host["encode_mask"]
    return Explanation(
        logit=found["logit"],
        item=items[candidate],
        history_item=np.where(on_host["history_mask"], items[on_host["history_position"]], -1),
        modalities=of_candidates[0],
        equal=of_candidates[1],
        history=found["history"],
        token_item=content[there],
        gradients={name: gradient[there] for name, gradient in found["gradients"].items()},
    )


def _explained(task: Task, given: tuple[Params, jax.Array], inputs: Inputs) -> dict[str, Any]:
    """{"logit" [B], "history", "shares", "gradients"} of a batch; `given` are parameters, and weights [B] of the logits."""
    params, of = given
    if isinstance(task, WithEncoders):
        inputs, task = task.encoded(params, inputs), task.task
    assert isinstance(task, RankingTask | LemurTask)  # or it was refused
    attend = task.attend
    tokens = {
        name: one.astype(jnp.float32) for name, one in inputs.tokens.items() if jnp.issubdtype(one.dtype, jnp.floating)
    }

    def total(tokens: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        logit, kept = attend(params, inputs._replace(tokens=inputs.tokens | tokens))
        return jnp.sum(of * logit), (logit, kept)

    gradients, (logit, kept) = jax.grad(total, has_aux=True)(tokens)
    if isinstance(task, LemurTask):
        shares = _of_encoder(task, kept["encoder"], inputs)
    else:
        shares = attention.shares(task, kept, inputs)
    history = _of_history(kept, len(logit))
    return {"logit": logit, "history": history, "shares": shares, "gradients": gradients}


def _of_encoder(task: LemurTask, kept: Mapping[str, Any], inputs: Inputs) -> attention.Shares:
    """As `attention.shares`, [S], of the class token in the last layer of LEMUR's encoder; 0 of items it does not read."""
    names = (CLASS_TOKEN, *(name for name, _ in task.encoder.module.layouts))
    read = kept[READ][0].astype(jnp.float32)  # [1 + M, C, N]
    equal = read / jnp.maximum(read.sum(axis=(0, 2)), 1)[:, None]
    place = jnp.where(inputs.batch["encode_mask"], inputs.batch["encode_position"], len(inputs.batch["item_id"]))

    def of_items(weights: jax.Array) -> dict[str, jax.Array]:
        nothing = jnp.zeros(len(inputs.batch["item_id"]), jnp.float32)
        of_sets = weights.sum(axis=2)  # [1 + M, C]
        return {name: nothing.at[place].set(one, mode="drop") for name, one in zip(names, of_sets, strict=True)}

    return {
        layer: {"layers": of_items(read * weights.mean(axis=1)), "equal": of_items(equal)}
        for layer, weights in attention.attentions(kept).items()
    }


def _of_history(kept: Mapping[str, Any], size: int) -> dict[str, jax.Array]:
    """Attention -> its weights [B, T] among what modules have kept by their paths."""
    others = {name: one for name, one in kept.items() if name not in ("fusion", "encoder")}
    found = {}
    for path, leaf in trees.named_leaves(others).items():
        first, *rest = path.split("/")[:-1]  # what is kept is a tuple
        if leaf.ndim == 2 and len(leaf) == size:
            name = "_".join(["id" if first == "backbone" else first, *rest])
            found[name.removesuffix(f"_{WEIGHTS}")] = leaf.astype(jnp.float32)
    return found
