"""The model of LEMUR."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from em3_jax.config.kinds import Choice, Number, Several, Whole
from em3_jax.config.schema.encoders import Encoders
from em3_jax.config.schema.ranking import BackboneSettings, Cic, Heads, NumberSettings
from em3_jax.config.schema.types import Above, Backbone, Folders, Loss, Name, NumberKind, Size, Switch, Weight

Modules = Annotated[tuple[str, ...], Several(Choice(("short", "long", "similarity")))]


@dataclass(frozen=True, kw_only=True)
class FieldEncoder:
    """LEMUR's own encoder of words, pictures and vectors."""

    width: Size = 64  # width of the encoder's layers
    layers: Size = 2  # layers of the encoder's transformer
    heads: Size = 4  # heads of the attention in the encoder; they divide the width
    mlp_width: Size = 128  # hidden width of the FFN in the encoder
    output: Size = 64  # width of an item's representation
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
    length: Size = 10  # words that are read of each query
    vocabulary: Annotated[int, Whole(2)] = 8192  # numbers that the words of queries are hashed to
    layers: Size = 2  # layers of the query encoder


@dataclass(frozen=True, kw_only=True)
class Sqdc:
    """LEMUR's contrast of query and document."""

    weight: Weight = 0.03  # lambda, the weight of SQDC; 0 leaves it out
    scale: Above = 10.0  # T, the factor of SQDC's cosines
    # whether rows of one query, or of one user without, are no negatives of each other
    mask_group: Switch = True
    # whether documents' scores are lowered by how often a batch shows them (sampling bias, log-Q)
    log_q: Switch = False


@dataclass(frozen=True, kw_only=True)
class LemurSettings(Encoders):
    """The model of task lemur, and its losses."""

    encoder: FieldEncoder = FieldEncoder()
    layout: Layout = Layout()
    # raw feature set -> folder of a converted encoder that reads it first, or name of a known one, or
    # of one that trains from scratch, cnn:<name>
    encoders: Folders = field(default_factory=lambda: {"text": "", "image": ""})
    # which items a step encodes: the candidates alone, or all of the history too, what the bank
    # saves
    encode: Annotated[str, Choice(("candidates", "all"))] = "candidates"
    # p: share of a batch's distinct candidates that are encoded; the others come from the bank
    forward_percent: Annotated[float, Number(most=100.0, above=True)] = 100.0
    # q <= p: share of a batch's distinct candidates whose encoding takes a gradient
    backward_percent: Annotated[float, Number(most=100.0)] = 100.0
    # weight of the ranking loss; 0: the encoder alone, on SQDC, whose scores choose the step
    ranking_weight: Weight = 1.0
    ranking_gradient: Switch = True  # whether the click's gradient reaches the encoder
    # whether the click's gradient reaches the encoder through history slots whose items this step
    # encodes
    history_gradient: Switch = True
    # what of the history is read, see docs/lemur.md
    history_modules: Modules = ("short", "long", "similarity")
    short_history: Size = 50  # last events of a user that target attention and the backbone read
    query: Query = Query()
    query_history: Size = 30  # last events that stand in for the query where the dataset has none
    decoder_layers: Size = 2  # layers of the cross-attention over the long history
    # hidden width of the FFN of the cross-attention over the long history
    decoder_hidden: Size = 64
    backbone: Backbone = "din"  # the ranking model that content plugs into
    backbone_settings: BackboneSettings = BackboneSettings()
    # number, such as price -> how it is read, see the model of task ranking
    numbers: Mapping[str, NumberKind] = field(default_factory=dict)
    all_numbers: NumberKind = "ranges"  # the same of all numbers that model.numbers does not name
    number_settings: NumberSettings = NumberSettings()
    sqdc: Sqdc = Sqdc()
    cic: Cic = Cic(weight=0.0)  # of the items encoded in the step
    loss: Loss = "binary_cross_entropy"  # loss of the logits
    heads: Heads = Heads()
