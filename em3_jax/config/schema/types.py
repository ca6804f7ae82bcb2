"""The kinds of settings that many sections have."""

from collections.abc import Mapping
from typing import Annotated

from em3_jax.config.kinds import Choice, Flag, Folder, Multiplier, Number, Pattern, Several, Text, Whole
from em3_jax.core import numbers

Size = Annotated[int, Whole(1)]
Count = Annotated[int, Whole(0)]
Above = Annotated[float, Number(above=True)]
Weight = Annotated[float, Number()]
Share = Annotated[float, Number(most=1.0)]
Dropout = Annotated[float, Number(most=1.0, below=True)]
Switch = Annotated[bool, Flag()]
Name = Annotated[str, Text()]
Field = Annotated[str, Text(empty="empty: none")]
Names = Annotated[tuple[str, ...], Several(Text())]
Platforms = Annotated[tuple[str, ...], Several(Choice(("cpu", "cuda", "tpu", "rocm")), least=1)]
Sizes = Annotated[tuple[int, ...], Several(Whole(1))]
SomeSizes = Annotated[tuple[int, ...], Several(Whole(1), least=1)]
Patterns = Annotated[tuple[str, ...], Several(Pattern())]
Folders = Mapping[str, Annotated[str, Folder(empty="empty: not used")]]
Multipliers = Annotated[tuple[tuple[str, float], ...], Several(Multiplier())]

FUSIONS = ("fq_former", "masked_fq_former", "one_flow", "two_flow", "mean")
Fusion = Annotated[str, Choice(FUSIONS, own=True)]
ContentFusion = Annotated[str, Choice((*FUSIONS, "as_they_are"), own=True)]
Score = Annotated[str, Choice(("dot", "mlp", "cosine", "mean"), own=True)]
Backbone = Annotated[str, Choice(("din", "deepfm", "dcnv2", "wide_deep", "deepctr"), own=True)]
NumberKind = Annotated[str, Choice(numbers.KINDS)]
Loss = Annotated[str, Choice(("binary_cross_entropy",), own=True)]
Optimizer = Annotated[str, Choice(("adam",), own=True)]
