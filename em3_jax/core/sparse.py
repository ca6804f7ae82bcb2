"""Sparse square matrices: by their entries, as graphs are built on the host, and in groups, as products on the device read them.

A product that gathers a row per entry and sums the rows by receiver writes E rows and reads them again. In groups, W entries of a
receiver are summed in registers. Every receiver has a first group, whose sum is written where it belongs; only the further ones
of long rows are written apart and added. benchmarks/retrieval.py has what that saves.

Letters: N rows and columns, E entries, W entries of a group, G further groups, at least two.
"""

from typing import NamedTuple

import jax
import numpy as np

_WIDEST = 8
FEWEST_GROUPS = 2  # see `models.retrieval.propagation.product`


class Entries(NamedTuple):
    """A matrix [N, N] by its entries, in the order of the rows.

    Attributes:
      receiver: [E] i32 ascending, the row: who reads.
      sender: [E] i32, the column: who is read.
      weight: [E] f32.
    """

    receiver: np.ndarray
    sender: np.ndarray
    weight: np.ndarray


class Adjacency(NamedTuple):
    """A matrix [N, N] by groups of W entries of one row each.

    Attributes:
      sender: [N, W] i32, the columns of each row's first entries.
      weight: [N, W] f32; 0 where a row is shorter.
      more_receiver: [G] i32 ascending, the row of each further group; N in groups that are padding.
      more_sender: [G, W] i32, the columns of its entries.
      more_weight: [G, W] f32; 0 where a group is not full.
    """

    sender: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    more_receiver: np.ndarray | jax.Array
    more_sender: np.ndarray | jax.Array
    more_weight: np.ndarray | jax.Array


def transposed(entries: Entries) -> Entries:
    order = np.argsort(entries.sender, kind="stable")
    return Entries(entries.sender[order], entries.receiver[order], entries.weight[order])


def group_width(entries: int, nodes: int) -> int:
    """W: the power of two from twice the mean number of entries of a row up, at most 8."""
    width = 1
    while width < _WIDEST and width * nodes < 2 * entries:
        width *= 2
    return width


def most_groups(entries: int, width: int) -> int:
    """A bound on the further groups of any matrix of so many entries: before each, its row has filled a group."""
    return max(entries // width, FEWEST_GROUPS)


def grouped(entries: Entries, nodes: int, *, width: int, groups: int | None = None) -> Adjacency:
    """The matrix in groups, in numpy.

    Args:
      entries: the matrix.
      nodes: N.
      width: W.
      groups: G, at least as many as there are; None = so many, or two. `most_groups` is enough for any matrix of a size.
    """
    receiver, sender, weight = entries
    degree = np.bincount(receiver, minlength=nodes)
    further = np.maximum(-(-degree // width) - 1, 0)  # groups of each row after its first
    if groups is None:
        groups = max(int(further.sum()), FEWEST_GROUPS)
    within = np.arange(len(receiver)) - (np.cumsum(degree) - degree)[receiver]
    # Groups lie one after the other: the first ones of all rows, then the further ones row by row.
    number = (nodes - 1 + np.cumsum(further) - further)[receiver] + within // width
    place = np.where(within < width, receiver, number) * width + within % width
    senders, weights = np.zeros((nodes + groups) * width, np.int32), np.zeros((nodes + groups) * width, np.float32)
    senders[place], weights[place] = sender, weight
    sender_of, weight_of = senders.reshape(-1, width), weights.reshape(-1, width)
    row = np.full(groups, nodes, np.int32)
    row[: further.sum()] = np.repeat(np.arange(nodes, dtype=np.int32), further)
    first, more = slice(nodes), slice(nodes, None)
    return Adjacency(sender_of[first], weight_of[first], row, sender_of[more], weight_of[more])
