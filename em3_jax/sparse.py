"""Sparse square matrices: by their entries, as graphs are built on the host, and in groups, as products on the device read them.

A product that gathers a row per entry and sums the rows by receiver writes E rows and reads them again. In groups, W entries of a
receiver are summed in registers, and E / W rows are written; benchmarks/retrieval.py has what that saves.

Letters: N rows and columns, E entries, W entries of a group, G groups.
"""

from typing import NamedTuple

import jax
import numpy as np

_WIDEST = 8


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
      receiver: [G] i32 ascending, the row of each group; N in groups that are padding.
      sender: [G, W] i32, the columns.
      weight: [G, W] f32; 0 where a group is not full.
    """

    receiver: np.ndarray | jax.Array
    sender: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array


def transposed(entries: Entries) -> Entries:
    order = np.argsort(entries.sender, kind="stable")
    return Entries(entries.sender[order], entries.receiver[order], entries.weight[order])


def group_width(entries: int, nodes: int) -> int:
    """W: the power of two from the mean number of entries of a row up, at most 8."""
    width = 1
    while width < _WIDEST and width * nodes < entries:
        width *= 2
    return width


def most_groups(entries: int, nodes: int, width: int) -> int:
    """A bound on the groups of any matrix of so many entries: every row may have one that is not full."""
    return (entries + (width - 1) * min(nodes, entries)) // width


def grouped(entries: Entries, nodes: int, *, width: int, groups: int | None = None) -> Adjacency:
    """The matrix in groups, in numpy.

    Args:
      entries: the matrix.
      nodes: N.
      width: W.
      groups: G, at least as many as there are; None = no padding. `most_groups` is enough for all matrices of a size.
    """
    receiver, sender, weight = entries
    degree = np.bincount(receiver, minlength=nodes)
    count = -(-degree // width)  # groups of each row
    if groups is None:
        groups = int(count.sum())
    first_entry, first_group = np.cumsum(degree) - degree, np.cumsum(count) - count
    within = np.arange(len(receiver)) - first_entry[receiver]
    place = (first_group[receiver] + within // width) * width + within % width
    senders, weights = np.zeros(groups * width, np.int32), np.zeros(groups * width, np.float32)
    senders[place], weights[place] = sender, weight
    row = np.full(groups, nodes, np.int32)
    row[: count.sum()] = np.repeat(np.arange(nodes, dtype=np.int32), count)
    return Adjacency(row, senders.reshape(groups, width), weights.reshape(groups, width))
