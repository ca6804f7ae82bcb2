"""The pairs of a retrieval run, its models and how it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from em3_jax.config.kinds import Choice, Folder
from em3_jax.config.schema.ranking import Lora
from em3_jax.config.schema.types import (
    Above,
    Count,
    Dropout,
    Fusion,
    Name,
    Names,
    Share,
    Size,
    SomeSizes,
    Switch,
    Weight,
)

Weights = Mapping[str, Weight]


def _of_modalities() -> Weights:
    """As MMRec's configs have them, as far as they tell."""
    return {"image": 0.1, "text": 0.9, "audio": 0.9}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The interactions that retrieval reads, and in which batches."""

    # a folder made by `em3 prepare mmrec`, without --as-clicks
    root: Annotated[str, Folder()] = "data/baby"
    # feature sets, e.g. image,text; * = all that the dataset has; () = none
    features: Names = ("*",)
    batch_size: Size = 2048  # B, pairs of all devices together
    # share of the training pairs that an epoch's user-item graph does without
    edge_dropout: Dropout = 0.0


@dataclass(frozen=True, kw_only=True)
class ItemGraph:
    """The graphs of nearest items, one a feature set."""

    # k, nearest items that an item is joined to; 0 = there are no item graphs
    neighbours: Count = 0
    include_self: Switch = True  # whether an item is its own nearest neighbour
    # weights of the item graphs' edges
    weights: Annotated[str, Choice(("binary", "cosine"))] = "binary"
    # how an item graph is normalised: by its rows, or on both sides
    normalisation: Annotated[str, Choice(("rows", "both"))] = "rows"


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What all models have."""

    width: Size = 64  # width of a user's and an item's vector


@dataclass(frozen=True, kw_only=True)
class _OnModalities(_Model):
    """What models with a graph of all modalities have."""

    # modality -> its share of the item graph; of those the data have, scaled to sum 1
    modality_weights: Weights = field(default_factory=_of_modalities)


@dataclass(frozen=True, kw_only=True)
class Bpr(_Model):
    """BPR: interactions alone, matrix factorisation."""

    l2: Weight = 0.1  # l2 penalty on squared norms


@dataclass(frozen=True, kw_only=True)
class LightGcn(_Model):
    """LightGCN: interactions alone, over the user-item graph."""

    layers: Count = 2  # layers over the user-item graph
    l2: Weight = 1e-4  # l2 penalty on squared norms


@dataclass(frozen=True, kw_only=True)
class Vbpr(_Model):
    """VBPR: BPR with a part that reads content."""

    content_width: Size = 64  # width of the part that reads content
    l2: Weight = 0.1  # l2 penalty on squared norms
    l2_content: Weight = 0.1  # l2 penalty on squared norms of what reads content


@dataclass(frozen=True, kw_only=True)
class SlmRec(_Model):
    """SLMRec: self-supervision over modalities."""

    layers: Count = 3  # layers over the user-item graph
    temperature: Above = 0.2  # temperature of the main contrast
    ssl_temperature: Above = 0.5  # temperature of the contrast over modalities
    ssl_weight: Weight = 0.01  # weight of the contrast over modalities


@dataclass(frozen=True, kw_only=True)
class Lattice(_Model):
    """LATTICE: item graphs that are learnt."""

    layers: Count = 2  # layers over the user-item graph
    item_layers: Count = 1  # layers over the item graph
    neighbours: Size = 10  # nearest items that a learnt graph keeps of an item
    frozen_share: Share = 0.9  # share of the given graph in the learnt one
    # steps from one search for the nearest items to the next; their weights are always the step's
    search_every: Size = 1
    l2: Weight = 1e-5  # l2 penalty on squared norms


@dataclass(frozen=True, kw_only=True)
class Bm3(_Model):
    """BM3: views of dropout, no negatives."""

    layers: Count = 1  # layers over the user-item graph
    dropout: Dropout = 0.5  # dropout that makes the views
    content_weight: Weight = 2.0  # weight of the losses that read content
    l2: Weight = 1e-3  # l2 penalty on squared norms


@dataclass(frozen=True, kw_only=True)
class Freedom(_OnModalities):
    """FREEDOM: frozen item graphs, a denoised user-item graph."""

    layers: Count = 2  # layers over the user-item graph
    item_layers: Count = 1  # layers over the item graph
    content_weight: Weight = 1e-3  # weight of the two modality losses


@dataclass(frozen=True, kw_only=True)
class ItemFusion:
    """The fusion module of EM3 in retrieval; its width is the model's."""

    queries: Size = 1  # Q, learnt queries of the FQ-Former
    layers: Size = 1  # layers of the transformer
    heads: Size = 4  # heads of the transformer's attention; they divide the width
    ffn_width: Size = 128  # hidden width of the transformer's FFN
    dropout: Dropout = 0.5  # dropout of tokens and residual branches
    # most items at once in a layer, computed again in the backward pass; 0 = all, kept
    layer_chunk: Count = 8192
    lora: Lora = Lora()


@dataclass(frozen=True, kw_only=True)
class Em3(_OnModalities):
    """EM3 as the paper has it, its fusion and CIC inside FREEDOM."""

    layers: Count = 2  # layers over the user-item graph
    item_layers: Count = 1  # layers over the item graph
    fusion: Fusion = "fq_former"  # how an item's tokens become one vector
    fusion_settings: ItemFusion = ItemFusion()
    cic_weight: Weight = 1e-3  # alpha, the weight of CIC
    cic_temperature: Above = 0.5  # temperature of the contrast of content and IDs
    # H, negatives of an item among the batch's distinct items; 0 = all of them
    cic_negatives: Count = 16


@dataclass(frozen=True, kw_only=True)
class Em3AsReleased(_OnModalities):
    """EM3 as its public code computes it."""

    layers: Count = 2  # layers over the user-item graph
    queries: Size = 1  # Q, learnt queries
    dropout: Dropout = 0.5  # dropout of tokens and residual branches
    cic_weight: Weight = 1e-3  # alpha, the weight of CIC
    cic_temperature: Above = 0.5  # temperature of the contrast of content and IDs


MODELS: dict[str, type] = {
    "em3": Em3,
    "em3_as_released": Em3AsReleased,
    "freedom": Freedom,
    "bm3": Bm3,
    "lattice": Lattice,
    "slmrec": SlmRec,
    "vbpr": Vbpr,
    "lightgcn": LightGcn,
    "bpr": Bpr,
}
"""Name of a model -> its settings, which its Linen module takes by name."""


@dataclass(frozen=True)
class ChosenBy:
    """Marks a section whose class another setting names; a part of the user's own takes any keys.

    Attributes:
      setting: of the same section.
      known: its value -> the class.
    """

    setting: str
    known: Mapping[str, type]

    def __hash__(self) -> int:  # of a type's metadata
        return hash(self.setting)


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """The model of task retrieval."""

    # which retrieval model is trained
    retrieval: Annotated[str, Choice(tuple(MODELS), own=True)] = "em3"
    retrieval_settings: Annotated[Any, ChosenBy("retrieval", MODELS)] = Em3()
    item_graph: ItemGraph = ItemGraph()


@dataclass(frozen=True, kw_only=True)
class EvalRetrieval:
    """How retrieval is measured: all items are ranked for each user."""

    metric: Name = "recall@20"  # metric that chooses the best step on validation
    user_block: Size = 512  # users that are ranked for at once; results do not depend on it
    item_block: Size = 8192  # items that are scored at once; results do not depend on it
    activity: SomeSizes = (1, 5, 10, 20)  # slices of users: from how many training pairs on each begins
