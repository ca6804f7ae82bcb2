"""The ranking model as a service runs it: one user, one history, any number of candidates; ids and looked-up embeddings only.

Compiled ahead of time into files that need none of the training code (`jax.export`), one for each
number of candidates.

Letters: b candidates of a request, T history, V table rows, W widths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from em3_jax.core import trees
from em3_jax.core.batch import REQUEST, Key
from em3_jax.core.fields import Fields
from em3_jax.core.numbers import NO_NUMBERS, Numbers
from em3_jax.tasks import Inputs, Task

PLATFORMS = ("cpu", "cuda", "tpu")


def scorer(task: Task, unflatten: Any) -> Any:
    """The function (params, table, request) -> logits [b] f32, of a task with further labels [b, 1 + H].

    Its arguments:
      params: {leaf name: array}.
      table: [V, W] f32, the ID embedding table.
      request: see `core.batch.REQUEST`.

    Args:
      task: see `Task.score`.
      unflatten: {leaf name: array} -> params.
    """

    def score(params: dict[str, jax.Array], table: jax.Array, request: dict[str, Any]) -> jax.Array:
        number, length = request["candidate_row"].shape[0], request["history_row"].shape[0]

        def for_all(array: jax.Array) -> jax.Array:
            return jnp.broadcast_to(array, (number, *array.shape))

        both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), request["candidate"], request["history"])
        candidate = jnp.arange(number, dtype=jnp.int32)
        batch = {"label": jnp.zeros(number), "item_id": jnp.arange(number + length)}
        batch["item_row"] = jnp.concatenate([request["candidate_row"], request["history_row"]])
        if "candidate_number" in request:
            batch["item_number"] = jnp.concatenate([request["candidate_number"], request["history_number"]])
        slot = request.get("history_slot")  # [b, K] where each candidate has events of its own in its slots
        place = for_all(jnp.arange(length, dtype=jnp.int32)) if slot is None else jnp.maximum(slot, 0)
        batch |= {"item_position": candidate, "history_position": number + place}
        for name, key in REQUEST.items():
            if not key.becomes or name not in request:
                continue
            if slot is not None and key.axes[0] == "T":
                batch[key.becomes] = _in_slots(request[name], slot)
            else:
                batch[key.becomes] = request[name] if key.axes[0] == "B" else for_all(request[name])
        of_task = task.score_all if task.labels.names else task.score
        return of_task(unflatten(params), Inputs(table, both, {}, batch)).astype(jnp.float32)

    return score


def _in_slots(of_event: jax.Array, slot: jax.Array) -> jax.Array:
    """[b, K, ...] what is said of events [T, ...], in the slots that hold them; -1 holds none."""
    found = jnp.take(of_event, jnp.maximum(slot, 0), axis=0, mode="clip")
    if found.dtype == jnp.bool_:  # of which onnxruntime has no choice
        return found & (slot >= 0)
    nothing = jnp.nan if jnp.issubdtype(found.dtype, jnp.floating) else jnp.zeros((), found.dtype)
    return jnp.where((slot >= 0).reshape(*slot.shape, *(1,) * (found.ndim - 2)), found, nothing)


def request_shapes(
    fields: Fields,
    length: int,
    looked_up: Mapping[str, int],
    number: int,
    slots: int = 0,
    numbers: Numbers = NO_NUMBERS,
) -> dict[str, Any]:
    """The shapes of a request.

    Args:
      number: b.
      length: T.
      looked_up: name -> width of what is looked up of an item.
      slots: K of a model of several histories; 0 = it reads one.
      numbers: that are read as values; of groups without, a request has none.
    """
    sizes = {group: sum(field.length for field in of) for group, of in fields.groups()}
    given = {f"{group}_numbers": len(of) for group, of in numbers.groups()}
    given |= {"segments": slots} if slots else {}
    sizes |= {"B": number, "T": length, "K": slots} | given

    def shape(key: Key, **more: int) -> jax.ShapeDtypeStruct:
        of = sizes | more
        return jax.ShapeDtypeStruct(tuple(of[axis] for axis in key.axes), key.dtype)

    def shapes(key: Key) -> Any:
        return {name: shape(key, D=width) for name, width in looked_up.items()}

    keys = {name: key for name, key in REQUEST.items() if not key.given or key.given in given}
    return {name: shapes(key) if key.named else shape(key) for name, key in keys.items()}


def compile_ahead(
    task: Task, params: Any, table: jax.ShapeDtypeStruct, request: dict[str, Any], platforms: Sequence[str]
) -> export.Exported:
    """The program of `scorer`, for the number of candidates that the request has.

    Args:
      params: of the task.
      request: of `request_shapes`.
    """
    structure = jax.tree.structure(params)
    names = list(trees.named_leaves(params))
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in trees.named_leaves(params).items()}

    def unflatten(flat: dict[str, jax.Array]):
        return jax.tree.unflatten(structure, [flat[name] for name in names])

    program = jax.jit(scorer(task, unflatten))
    return export.export(program, platforms=tuple(platforms))(shapes, table, request)
