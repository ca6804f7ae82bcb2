"""The keys of batches and of a service's requests: this is the only list of them.

Letters of shapes: B examples (of a request, its candidates), T history, S distinct items (of a pass
over the catalogue, its items), C of them whose content comes along (those to encode, or all S),
N tokens of an item, E their width, R distinct table rows, O and P the items and rows that devices
own, L words of a query, K slots of a history; V nodes of a graph, W entries of a group, G further groups, see
`sparse.Adjacency`; H further labels; D width of what is looked up. A field group's name stands for the columns of its
fields, user_numbers and the like for the numbers of a group that are read as values. Of clicks, S,
C, R, O and P are bucket sizes.
"""

from typing import NamedTuple

import numpy as np

F32, I32, BOOL = np.float32, np.int32, np.bool_


class Key(NamedTuple):
    """What stands under a key.

    Attributes:
      dtype: of the array; None = that of what it is read from.
      shape: its axes.
      meaning: in words.
      given: the setting without which a batch lacks the key; "" = a batch always has it.
      into: the key of the block that it holds positions of.
      named: there are several arrays, by name, such as that of a feature set.
      becomes: of a request's key, that of a batch which says the same of each example.
    """

    dtype: type[np.generic] | None
    shape: str
    meaning: str
    given: str = ""
    into: str = ""
    named: bool = False
    becomes: str = ""

    @property
    def axes(self) -> list[str]:
        """The letters of the shape."""
        return self.shape.split()


NONE = 1 << 30
"""In blocks, ids from here on stand for nothing: they fill a block, see `core.exchange`."""

Keys = dict[str, Key]

CATALOGUE: Keys = {
    "item_id": Key(I32, "S", "the items"),
    "item_mask": Key(BOOL, "S", "counts an item once in losses per item; False only fills"),
    "tokens": Key(None, "C N E", "the items' content", given="host_features", named=True),
    "tokens_mask": Key(BOOL, "C N", "there is such a token", given="host_features", named=True),
    # A step adds it, so no builder makes it: a `memory_bank.Stored`, whose arrays begin with S.
    "stored": Key(None, "S", "what the memory bank holds of the items", given="memory", named=True),
}
"""A batch of items, for training on content alone, and for computing something of every item."""

CLICKS: Keys = CATALOGUE | {
    "label": Key(F32, "B", "0 or 1"),
    "weight": Key(F32, "B", "0 = the row only fills the batch"),
    "further": Key(F32, "B H", "further labels, -1 = not observed", given="labels"),
    "item_position": Key(I32, "B", "the candidate", into="item_id"),
    # The history is the last T strictly earlier events, newest last; the mask says which there are.
    "history_position": Key(I32, "B T", "the events' items", into="item_id"),
    "history_mask": Key(BOOL, "B T", "there is such an event"),
    "history_row": Key(I32, "B T event", "fields of the events", into="row_id"),
    "user_row": Key(I32, "B user", "fields of the user", into="row_id"),
    "context_row": Key(I32, "B context", "fields of the impression", into="row_id"),
    "item_row": Key(I32, "S item", "fields of the items", into="row_id"),
    # Numbers that the model reads as values, NaN = missing; see `models.numbers`.
    "history_number": Key(F32, "B T event_numbers", "numbers of the events", given="event_numbers"),
    "user_number": Key(F32, "B user_numbers", "numbers of the user", given="user_numbers"),
    "context_number": Key(F32, "B context_numbers", "numbers of the impression", given="context_numbers"),
    "item_number": Key(F32, "S item_numbers", "numbers of the items", given="item_numbers"),
    # Its own id was neither never seen nor replaced by `unknown`.
    "item_is_known": Key(BOOL, "S", "the item's own id is in use"),
    # row_id[0] = 0 is the padding row, surplus rows lie beyond the table.
    "row_id": Key(I32, "R", "distinct table rows, sorted"),
    # In blocks, for several devices: how much there is to own, see `core.exchange`; all zeros.
    "item_room": Key(BOOL, "O", "of the items that a device owns", given="in_blocks"),
    "row_room": Key(BOOL, "P", "of the table rows that a device owns", given="in_blocks"),
    # In blocks, positions among the items that a device owns.
    "encode_position": Key(I32, "C", "the items to encode", given="encode", into="item_id"),
    "encode_mask": Key(BOOL, "C", "False only fills", given="encode"),
    # The dataset's group, the query, or the user: rows of one are no negatives of each other.
    "group": Key(I32, "B", "what the row belongs to", given="groups"),
    # Logarithms of how likely items are drawn, in training; see `data.sampling`.
    "log_kept": Key(F32, "B", "the candidate as a negative of a click", given="log_q"),
    "log_expected": Key(F32, "B", "candidates of a batch that are this one", given="log_q"),
    "log_present": Key(F32, "S", "the item in a batch", given="log_q"),
    "query_tokens": Key(I32, "B L", "words of the query, 0 = none", given="queries"),
}
"""A batch of interaction rows; see `data.batches`."""

PAIRS: Keys = {
    "user": Key(I32, "B", "of a training pair"),
    "positive": Key(I32, "B", "the item of the pair"),
    "negative": Key(I32, "B", "an item that this user has in no training pair"),
    # The graph of this epoch, users before items: a `sparse.Adjacency` by the names of its parts.
    "edge_sender": Key(I32, "V W", "first entries", given="edge_dropout"),
    "edge_weight": Key(F32, "V W", "theirs", given="edge_dropout"),
    "edge_more_receiver": Key(I32, "G", "rows of the further groups", given="edge_dropout"),
    "edge_more_sender": Key(I32, "G W", "their entries", given="edge_dropout"),
    "edge_more_weight": Key(F32, "G W", "theirs", given="edge_dropout"),
}
"""A batch of training pairs, for retrieval; see `data.pairs`."""

REQUEST: Keys = {
    "candidate_row": Key(I32, "B item", "fields of the candidates"),
    "history_row": Key(I32, "T item", "fields of the history's items"),
    "history_mask": Key(BOOL, "T", "there is such an event", becomes="history_mask"),
    "event_row": Key(I32, "T event", "fields of the events", becomes="history_row"),
    # Of several histories T are the events that some candidate's slots hold.
    "history_slot": Key(I32, "B K", "the event in each slot of a candidate, -1 = none", given="segments"),
    "user_row": Key(I32, "user", "fields of the user", becomes="user_row"),
    "context_row": Key(I32, "B context", "fields of the impressions", becomes="context_row"),
    "candidate_number": Key(F32, "B item_numbers", "numbers of the candidates", given="item_numbers"),
    "history_number": Key(F32, "T item_numbers", "numbers of the history's items", given="item_numbers"),
    "event_number": Key(
        F32, "T event_numbers", "numbers of the events", given="event_numbers", becomes="history_number"
    ),
    "user_number": Key(F32, "user_numbers", "numbers of the user", given="user_numbers", becomes="user_number"),
    "context_number": Key(
        F32, "B context_numbers", "numbers of the impressions", given="context_numbers", becomes="context_number"
    ),
    "candidate": Key(F32, "B D", "what was looked up of the candidates", named=True),
    "history": Key(F32, "T D", "the same of the history's items", named=True),
}
"""What a service asks of the ranking model: one user, one history; its rows are of the table."""

KEYS = CLICKS | PAIRS
BY_EXAMPLE = frozenset(name for name, key in KEYS.items() if key.axes[0] == "B")
BY_ITEM = frozenset(name for name, key in KEYS.items() if key.axes[0] in ("S", "C"))
