"""The rows of a ranking run, and its model.

Sizes are those of the EM3 paper where it gives them (section 4.1): 2 queries, 1 layer, 4 heads, CIC
weight and temperature 0.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from em3_jax.config.kinds import Choice, Folder, Number, Several, Whole
from em3_jax.config.schema.encoders import Encoders
from em3_jax.config.schema.types import (
    Above,
    Backbone,
    ContentFusion,
    Count,
    Dropout,
    Field,
    Folders,
    Loss,
    Name,
    Names,
    NumberKind,
    Score,
    Share,
    Size,
    Sizes,
    Switch,
    Weight,
)
from em3_jax.core import amounts, event_features

HEADS = ("shared_bottom", "mmoe", "ple", "esmm")
AGGREGATORS = ("attentive", "multi_query", "sum", "mean", "max", "concat")
EventFeatures = Annotated[tuple[str, ...], Several(Choice(event_features.NAMES))]
AmountLoss = Annotated[str, Choice((*amounts.LOSSES, amounts.ORDINAL))]
Parts = Annotated[tuple[str, ...], Several(Choice(("item", "user", "similarity", "simtier")))]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random views of raw pictures in training, the same of an item in a step whatever the batch."""

    # rows and columns, in pixels, that are cut out at random; in prediction, the centre; 0 = all
    crop: Count = 0
    mirror: Switch = False  # whether half of the pictures are mirrored


@dataclass(frozen=True, kw_only=True)
class Data:
    """The rows that are read, and in which batches."""

    root: Annotated[str, Folder()] = ""  # a folder made by `em3 prepare`
    label: Name = "click"  # label that is learnt: click, or a further one of the dataset
    # feature sets that make the content tokens; "image[0]" takes one token slot
    features: Names = ()
    codes: Names = ()  # code sets, made by `em3 codes`, that are item fields: a field a level
    # where the features lie; auto: on the device if they fit
    placement: Annotated[str, Choice(("auto", "device", "host"))] = "auto"
    # T, past events of a user that an example reads; 0 for models that read none
    history_length: Count = 50
    # event fields made of the row that reads them; recency: time since the event, in ranges that
    # double; position: from the newest
    event_features: EventFeatures = ()
    # event field, such as action, whose values have histories of their own
    histories_by: Field = ""
    # value of histories_by -> how many of its last events an example reads besides
    histories: Mapping[str, Size] = field(default_factory=dict)
    # item field, such as category or codes of content: past events of the candidate's value are read
    # besides, however long ago (SIM)
    similar_by: Field = ""
    # extracted feature sets: the past events whose items' content has the largest cosine with the
    # candidate's are read besides, in the place of similar_by (SIM's soft search, MUSE)
    similar_content: Names = ()
    similar_length: Size = 50  # similar events that are read; by similar_by the last ones
    similar_within: Count = 0  # last events of a user among which similar ones are sought; 0 = all
    batch_size: Size = 1024  # B, examples of all devices together
    # order of the training rows; by_item bounds how many candidates a batch has, by_group holds the
    # rows of a group, a session say, or else of a user, together
    order: Annotated[str, Choice(("shuffled", "chronological", "by_item", "by_group"))] = "shuffled"
    # most distinct candidates of a batch, of order by_item
    items_per_batch: Annotated[int, Whole(0, empty="0: as many as come")] = 0
    # share of the training rows that is read, drawn once; a smaller one is part of a larger
    rows_share: Annotated[float, Number(most=1.0, above=True)] = 1.0
    # whether the weights of the dataset's rows, if it has such, count in the loss; metrics have none
    row_weights: Switch = True
    # whether logits of training rows are lowered by how often their item is drawn as a negative (log-Q):
    # where negatives were drawn, by popularity say, scores and probabilities are those of all items
    # against each click
    log_q: Switch = False
    most_rows_per_user: Count = 0  # training rows of a user that are read, drawn once; 0 = all
    augment: Augment = Augment()
    # an id seen n times becomes `unknown` with probability alpha / (alpha + n)
    unknown_alpha: Weight = 0.25
    # ids that training shows fewer times are `unknown` throughout, like those that it never shows
    unknown_below: Size = 1
    # field -> least probability that an id of it becomes `unknown`
    unknown_floor: Mapping[str, Share] = field(default_factory=lambda: {"user": 0.0})

    @property
    def slots(self) -> int:
        """Of an example's history, in all."""
        return self.history_length + sum(self.histories.values()) + self.similar_slots

    @property
    def similar_slots(self) -> int:
        """Of them those of similar events."""
        return self.similar_length if self.similar_by or self.similar_content else 0

    @property
    def has_segments(self) -> bool:
        """Whether an example reads more than its last events."""
        return bool(self.histories or self.histories_by or self.similar_slots)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters beside the layers of the fusion module (EM3, section 3.3.2)."""

    rank: Count = 0  # rank of the adapters on every FC layer (eq. 9); 0 = there are none
    # where an adapter stops the gradient: the paper's way; weights: classical
    stop_gradient: Annotated[str, Choice(("output", "weights"))] = "output"


@dataclass(frozen=True, kw_only=True)
class FusionSettings:
    """What all fusion modules are built from; each uses what it knows."""

    width: Size = 64  # D, of the content embedding
    queries: Size = 2  # Q, learnt queries of the FQ-Former
    layers: Size = 1  # layers of the transformer
    heads: Size = 4  # heads of the transformer's attention; they divide the width
    ffn_width: Size = 128  # hidden width of the transformer's FFN
    dropout: Dropout = 0.0  # dropout of tokens and residual branches
    lora: Lora = Lora()
    # most items at once in a layer, computed again in the backward pass; 0 = all, kept
    layer_chunk: Count = 0


@dataclass(frozen=True, kw_only=True)
class BackboneSettings:
    """What all ranking models are built from; each uses what it knows."""

    hidden: Sizes = (64, 32)  # widths of the hidden layers of the DNN
    dropout: Dropout = 0.0  # dropout in the DNN
    attention_score: Score = "mlp"  # score of DIN's target attention on IDs
    attention_hidden: Size = 32  # hidden width of the score of DIN's attention, if it is an mlp
    # whether DIN's attention on IDs reads items by way of an FC layer, and the DNN its result times
    # the candidate as well; else items' fields side by side, and no such product, as DIN has it
    attention_layer: Switch = True
    # whether the weights of DIN's attention on IDs are a softmax of the scores; else they are the
    # scores, as DIN has them
    attention_softmax: Switch = True
    cross_layers: Size = 2  # cross layers of DCN v2


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Further labels, which are learnt beside config.data.label."""

    labels: Names = ()  # further labels of the dataset, a head each
    # further label that is an amount -> how it is learnt; log: squared error of log(1 + y);
    # cumulative_link: as a few ordered levels, such as stars (proportional odds)
    losses: Mapping[str, AmountLoss] = field(default_factory=dict)
    # how they share the model; esmm: of one further label, which clicked rows alone have, over all rows
    kind: Annotated[str, Choice(HEADS)] = "shared_bottom"
    experts: Size = 4  # experts of all labels, of mmoe and ple
    own_experts: Size = 1  # experts of each label besides, of ple
    hidden: Sizes = (32,)  # widths of a label's tower
    weights: Mapping[str, Weight] = field(default_factory=dict)  # label -> weight of its loss, else 1
    learn_weights: Switch = False  # whether each loss has a weight that trains (uncertainty)


@dataclass(frozen=True, kw_only=True)
class NumberSettings:
    """What embeddings of numbers are built from."""

    frequencies: Size = 16  # learnt frequencies of a periodic number
    frequency_scale: Above = 1.0  # standard deviation of these frequencies at first


@dataclass(frozen=True, kw_only=True)
class Cic:
    """Content-ID-Contrastive learning (EM3, eq. 11 to 13)."""

    weight: Weight = 0.1  # alpha, the weight of CIC; 0 leaves it out
    temperature: Above = 0.1  # temperature of the contrast of content and IDs
    negatives: Count = 64  # H, negatives of an item; 0 = all other items of the batch
    # whose candidates an example's negatives are: of its batch, or of its group, such as a session, or
    # else its user, in the batch, all of them; an example whose group has no other item in the batch is
    # left out, or with group_or_batch has those of the batch; by group the mean is over samples
    negatives_from: Annotated[str, Choice(("batch", "group", "group_or_batch"))] = "batch"
    # whether the contrast is corrected for how likely a batch names an item (sampling bias, log-Q), so
    # that popular items are no negatives more often than their share of the catalogue
    log_q: Switch = False
    width: Size = 64  # width of the space that content and IDs are projected to
    id_fields: Names = ("item",)  # item fields whose embeddings stand for the ID
    # the mean is over distinct items, or over samples' candidates
    over: Annotated[str, Choice(("items", "samples"))] = "items"


@dataclass(frozen=True, kw_only=True)
class Quantiser:
    """Codes of the content embedding that train with the click (residual quantisation)."""

    levels: Count = 0  # codes of an item; 0: the embedding is read as it is
    size: Annotated[int, Whole(2, 1 << 16)] = 4  # codes of a level
    # weight of the loss that draws embeddings to their codes; codes follow them without, and it holds
    # them where they began
    commitment: Weight = 0.0


@dataclass(frozen=True, kw_only=True)
class RankingSettings(Encoders):
    """The model of tasks ranking and pretraining, and its losses."""

    # how content is read; none: IDs alone; pre_extracted: vectors as they are; raw: with encoders
    content: Annotated[str, Choice(("none", "pre_extracted", "end_to_end", "raw"))] = "end_to_end"
    # content that the backbone reads: c_A, u_A (table 6); similarity: cosines with the history;
    # simtier: their histogram
    content_parts: Parts = ("item", "user")
    # how the content of past items becomes u_A; multi_query: the candidate's IDs ask too
    content_aggregator: Annotated[str, Choice(AGGREGATORS)] = "attentive"
    content_score: Score = "dot"  # score of the target attention on content
    # hidden width of the score of the attention on content, if it is an mlp
    content_hidden: Size = 32
    # whether the target attention on content reads the history's event fields, a rating say
    content_events: Switch = False
    # whether DIN's attention on IDs adds a learnt multiple of the content's cosines to its scores (SA-TA)
    similar_attention: Switch = False
    # feature set -> folder of its encoder, name of a known one, or of one that trains from scratch:
    # cnn:cnn, cnn:se, cnn:cbam, cnn:cscnn, cnn:deepctr, cnn:vgg16, cnn:dicm, cnn:hccm
    encoders: Folders = field(default_factory=dict)
    backbone: Backbone = "din"  # the ranking model that content plugs into
    backbone_settings: BackboneSettings = BackboneSettings()
    # number, such as price -> how it is read: as the field of its ranges, or as a value: standardised by
    # the training rows, log: the same of sign(x) log(1 + |x|), piecewise: PLE, or periodic
    numbers: Mapping[str, NumberKind] = field(default_factory=dict)
    all_numbers: NumberKind = "ranges"  # the same of all numbers that model.numbers does not name
    number_settings: NumberSettings = NumberSettings()
    # how an item's tokens become one vector (table 3); as_they_are: without any layer, their means
    # side by side
    fusion: ContentFusion = "fq_former"
    fusion_settings: FusionSettings = FusionSettings()
    # most items at once in training, computed again in the backward pass; 0 = all, kept
    fusion_chunk: Count = 0
    quantiser: Quantiser = Quantiser()
    cic: Cic = Cic()
    loss: Loss = "binary_cross_entropy"  # loss of the logits
    heads: Heads = Heads()
    # precision of activations; parameters, table rows, logits, losses and sums of gradients stay
    # f32
    precision: Annotated[str, Choice(("f32", "bf16"))] = "f32"
