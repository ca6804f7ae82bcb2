"""Raw content: the encoders are part of the model, before any other task."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from em3_jax.features import encoding
from em3_jax.features.tokens import standardise
from em3_jax.tasks import Inputs, Task


def with_encoders(task: Task, encoders: Mapping[str, encoding.RawEncoder]) -> Task:
    """`task` on raw content: in each step encoders make tokens of it, and their weights are among the parameters.

    Args:
      task: a task on content tokens.
      encoders: feature set -> its encoder; other feature sets hold tokens already. `init` gives params["encoders"][name]
        as zeros: pretrained weights have no place in a compiled program.
    """

    def encoded(params, inputs: Inputs) -> Inputs:
        tokens, masks = dict(inputs.tokens), dict(inputs.tokens_mask)
        for name, encoder in encoders.items():
            found, masks[name] = encoder.encode(params["encoders"][name], tokens[name], masks[name])
            tokens[name] = standardise(found, masks[name])
        return inputs._replace(tokens=tokens, tokens_mask=masks)

    def init(key: jax.Array, inputs: Inputs):
        zeros = {"encoders": {name: jax.tree.map(jnp.zeros_like, encoder.params) for name, encoder in encoders.items()}}
        return task.init(key, encoded(zeros, inputs)) | zeros

    return task._replace(
        init=init,
        loss=lambda params, inputs, key, step: task.loss(params, encoded(params, inputs), key, step),
        predict=lambda params, inputs: task.predict(params, encoded(params, inputs)),
        embed=lambda params, inputs: task.embed(params, encoded(params, inputs)),
        lookup=lambda params, inputs: task.lookup(params, encoded(params, inputs)),
    )
