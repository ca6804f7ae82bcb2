"""What the tasks of content alone share: the fusion module, and the embeddings that it makes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from em3_jax.features.prior import LABELS
from em3_jax.models.fusion.chunks import as_type
from em3_jax.tasks import Inputs, Params, Task

Content = tuple[dict[str, jax.Array], dict[str, jax.Array]]
"""(tokens {modality: [S, N, E] f32}, their masks {modality: [S, N] bool})."""


@dataclasses.dataclass(frozen=True, eq=False)
class FusionTask(Task):
    """A task that trains a fusion module without any click.

    Attributes:
      fusion: module from content tokens to embeddings [S, D].
    """

    fusion: nn.Module

    @property
    def uses_content(self) -> bool:
        return True

    @property
    def embeds(self) -> bool:
        return True

    def embed(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.fused(params, *content(inputs), train=False)

    def fused(
        self, params: Params, tokens: dict[str, jax.Array], masks: dict[str, jax.Array], **options: Any
    ) -> jax.Array:
        """[S, D] embeddings of items with these tokens, see `content`; `options` are the module's."""
        result: Any = self.fusion.apply({"params": params["model"]["fusion"]}, tokens, masks, **options)
        return result


def content(inputs: Inputs) -> Content:
    """What the fusion module reads of the inputs; labels that stand among the tokens are none of it."""
    tokens = {name: one for name, one in inputs.tokens.items() if name != LABELS}
    return as_type(tokens), {name: inputs.tokens_mask[name] for name in tokens}
