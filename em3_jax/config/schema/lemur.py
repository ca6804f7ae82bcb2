"""The model of LEMUR."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from em3_jax.config.kinds import Choice, Number, Several, Whole
from em3_jax.config.schema.ranking import BackboneSettings, Cic
from em3_jax.config.schema.types import Above, Backbone, Folders, Loss, Name, Size, Switch, Weight

Modules = Annotated[tuple[str, ...], Several(Choice(("short", "long", "similarity")))]


@dataclass(frozen=True, kw_only=True)
class FieldEncoder:
    """LEMUR's own encoder of words, pictures and vectors."""

    width: Size = 64  # of its layers
    layers: Size = 2  # of the transformer
    heads: Size = 4  # they divide the width
    mlp_width: Size = 128  # hidden width of the FFN
    output: Size = 64  # of an item's representation
    # the representation reads the mean of each feature set beside the class token
    means: Switch = True


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How LEMUR's encoder reads what an item consists of."""

    patch: Size = 8  # side of picture patches, in pixels
    # text field -> how many of its tokens are read; all of a field that is not named
    lengths: Mapping[str, Size] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Query:
    """The query of an example, words of a context field."""

    # context field whose values are the queries' texts, if the dataset has it
    field: Name = "query"
    length: Size = 10  # words read of each
    vocabulary: Annotated[int, Whole(2)] = 8192  # numbers that words are hashed to
    layers: Size = 2  # of the query encoder


@dataclass(frozen=True, kw_only=True)
class Sqdc:
    """LEMUR's contrast of query and document."""

    weight: Weight = 0.03  # lambda; 0 leaves it out
    scale: Above = 10.0  # T, of the cosines
    # whether rows of one query, or of one user without, are no negatives of each other
    mask_group: Switch = True


@dataclass(frozen=True, kw_only=True)
class LemurSettings:
    """The model of task lemur, and its losses."""

    encoder: FieldEncoder = FieldEncoder()
    layout: Layout = Layout()
    # raw feature set -> folder of a converted encoder that reads it first
    encoders: Folders = field(default_factory=lambda: {"text": "", "image": ""})
    # or all: every history item in every step, what the bank saves
    encode: Annotated[str, Choice(("candidates", "all"))] = "candidates"
    # p: share of a batch's distinct candidates that are encoded; the others come from the bank
    forward_percent: Annotated[float, Number(most=100.0, above=True)] = 100.0
    # q <= p: share of them that take a gradient
    backward_percent: Annotated[float, Number(most=100.0)] = 100.0
    # of the ranking loss; 0: the encoder alone, on SQDC, whose scores choose the step
    ranking_weight: Weight = 1.0
    ranking_gradient: Switch = True  # whether the click's gradient reaches the encoder
    # whether it does through history slots whose items are encoded in this step
    history_gradient: Switch = True
    # what of the history is read, see the README
    history_modules: Modules = ("short", "long", "similarity")
    short_history: Size = 50  # last events for target attention and the backbone
    query: Query = Query()
    query_history: Size = 30  # last events that stand in for the query
    decoder_layers: Size = 2  # of the cross-attention over the long history
    decoder_hidden: Size = 64  # hidden width of its FFN
    backbone: Backbone = "din"  # the ranking model that content plugs into
    backbone_settings: BackboneSettings = BackboneSettings()
    sqdc: Sqdc = Sqdc()
    cic: Cic = Cic(weight=0.0)  # of the items encoded in the step
    loss: Loss = "binary_cross_entropy"  # of the logits
