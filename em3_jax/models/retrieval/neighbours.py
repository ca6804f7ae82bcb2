"""Graphs of nearest items, found on the device: who is nearest, and products that weights learn by.

Nothing here has a row and a column for each item. Who is nearest is searched a block of rows at a
time; all else reads the I k chosen pairs. Gradients of what reads a neighbour are products with the
transposed graph, which gather like the graph itself: a scatter adds one row after the other.

Letters: I items, D width, k neighbours, E = I k entries, W entries of a group, G further groups
(see `core.sparse`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.core.sparse import FEWEST_GROUPS, Adjacency, most_groups
from em3_jax.models.retrieval.propagation import product

_BLOCK = 256  # rows of the similarity matrix at once
_CHUNK = 32  # of its columns
_WIDTH = 16  # W of the transposed graph, whose rows differ in length
_KEYS = 1 << 32  # that a u32 tells apart


class Neighbours(NamedTuple):
    """The items that each item reads, and by whom each is read.

    Attributes:
      sender: [I, k] i32 the items that item i reads.
      entry: [I, W] i32 the first entries, i k + slot, that read item i, ascending; E where there are fewer.
      more_receiver: [G] i32 ascending, the item of each further group; I in groups that are padding.
      more_entry: [G, W] i32 the entries of further groups; E where a group is not full.
    """

    sender: jax.Array
    entry: jax.Array
    more_receiver: jax.Array
    more_entry: jax.Array

    def matrix(self, weight: jax.Array) -> Adjacency:
        """[I, I] with weight[i, slot] at (i, sender[i, slot]), `weight` [I, k] f32."""
        padding = jnp.zeros((FEWEST_GROUPS, self.sender.shape[1]), jnp.int32)
        receiver = jnp.full(FEWEST_GROUPS, len(self.sender), jnp.int32)
        return Adjacency(self.sender, weight, receiver, padding, padding.astype(weight.dtype))

    def transpose(self, weight: jax.Array) -> Adjacency:
        """The transpose of `matrix(weight)`."""
        items, count = self.sender.shape
        flat = jnp.append(weight.ravel(), jnp.zeros((), weight.dtype))
        reader = lambda entry: jnp.minimum(entry // count, items - 1)  # noqa: E731
        first, more = self.entry, self.more_entry
        return Adjacency(reader(first), flat[first], self.more_receiver, reader(more), flat[more])


def neighbours(sender: jax.Array) -> Neighbours:
    """Who reads whom, where item i reads the items sender[i] of `sender` [I, k] i32."""
    items, entries = len(sender), sender.size
    column, entry = _by_column(sender)
    bounds = jnp.arange(items + 1, dtype=jnp.int32)
    start = jnp.searchsorted(column, bounds).astype(jnp.int32)  # of each column's entries
    entry = jnp.append(entry, entries)
    slot = jnp.arange(_WIDTH, dtype=jnp.int32)

    def group(begin: jax.Array, end: jax.Array) -> jax.Array:
        place = begin[:, None] + slot
        return jnp.where(place < end[:, None], entry[jnp.minimum(place, entries)], entries)

    further = jnp.maximum(-(-jnp.diff(start) // _WIDTH) - 1, 0)  # groups of each column after its first
    before = jnp.cumsum(further)
    number = jnp.arange(most_groups(entries, _WIDTH), dtype=jnp.int32)
    row = jnp.searchsorted(before, number, side="right").astype(jnp.int32)  # I behind the last
    known = jnp.minimum(row, items - 1)
    begin = start[known] + (number - (before - further)[known] + 1) * _WIDTH
    more = group(begin, jnp.where(row < items, start[known + 1], 0))
    return Neighbours(sender, group(start[:-1], start[1:]), row, more)


def _by_column(sender: jax.Array) -> tuple[jax.Array, jax.Array]:
    """([E] i32 the columns of all entries, ascending; [E] i32 these entries, ascending in each)."""
    entries = sender.size
    column, entry = sender.ravel(), jnp.arange(entries, dtype=jnp.int32)
    if len(sender) * entries > _KEYS:
        column, entry = jax.lax.sort((column, entry), num_keys=1)
        return column, entry
    # One number for both: CPUs sort it five times as fast as two.
    key = jax.lax.sort(column.astype(jnp.uint32) * entries + entry.astype(jnp.uint32))
    return (key // entries).astype(jnp.int32), (key % entries).astype(jnp.int32)


@jax.custom_vjp
def normalised(x: jax.Array, near: Neighbours) -> jax.Array:
    """[I, k] the weights of D^-1/2 S D^-1/2, S_ij = max(<x_i, x_j>, 0) for the j that i reads.

    D are the sums of the rows of S; an item whose sum is 0 reads none and is read by none. It is
    differentiable in x [I, D].
    """
    return _normalised(x, near)[0]


def _normalised(x: jax.Array, near: Neighbours) -> tuple[jax.Array, jax.Array, jax.Array]:
    """([I, k] the weights, [I, k] those of S, [I] D^-1/2)."""
    similar = jnp.maximum(_products(x, x, near.sender), 0.0)
    degree = similar.sum(axis=1)
    scale = jnp.where(degree > 0, jax.lax.rsqrt(jnp.where(degree > 0, degree, 1.0)), 0.0)
    slots = [scale * similar[:, k] * scale[near.sender[:, k]] for k in range(similar.shape[1])]
    return jnp.stack(slots, axis=1), similar, scale


def _products(x: jax.Array, y: jax.Array, sender: jax.Array) -> jax.Array:
    """[I, k] inner products of the rows of x [I, D] with rows `sender` [I, k] of y [I, D]."""
    return jnp.stack([jnp.sum(x * gather.rows(y, sender[:, k]), axis=1) for k in range(sender.shape[1])], axis=1)


def _normalised_forward(x, near):
    weight, similar, scale = _normalised(x, near)
    return weight, (x, near, similar, scale)


def _normalised_backward(saved, gradient):
    x, near, similar, scale = saved
    slots = range(similar.shape[1])
    read = [scale[near.sender[:, k]] for k in slots]
    of_reader = sum(gradient[:, k] * similar[:, k] * read[k] for k in slots)
    as_read = jnp.stack([gradient[:, k] * similar[:, k] * scale for k in slots], axis=1)
    of_read = product(near.transpose(as_read), jnp.ones((len(x), 1), x.dtype), take=gather.rows)[:, 0]
    of_degree = -0.5 * scale**3 * (of_reader + of_read)
    of_similar = [jnp.where(similar[:, k] > 0, gradient[:, k] * scale * read[k] + of_degree, 0.0) for k in slots]
    weight = jnp.stack(of_similar, axis=1)
    of_row = product(near.matrix(weight), x, take=gather.rows)
    return of_row + product(near.transpose(weight), x, take=gather.rows), None


normalised.defvjp(_normalised_forward, _normalised_backward)


@jax.custom_vjp
def along(near: Neighbours, weight: jax.Array, h: jax.Array) -> jax.Array:
    """[I, D] S h, where S has weight[i, slot] at (i, sender[i, slot]).

    It is differentiable in `weight` [I, k] and in h [I, D].
    """
    return product(near.matrix(weight), h, take=gather.rows)


def _along_backward(saved, gradient):
    near, weight, h = saved
    return None, _products(gradient, h, near.sender), product(near.transpose(weight), gradient, take=gather.rows)


along.defvjp(lambda near, weight, h: (along(near, weight, h), (near, weight, h)), _along_backward)


def nearest(x: jax.Array, count: int) -> jax.Array:
    """[I, count] i32 the rows with the largest inner product with each row of x [I, D].

    Equal ones go by index. The product is made a block of rows at a time, and the largest of a row
    lie in the chunks with the largest maxima, so only those are searched for them.
    """
    items, blocks, chunks = len(x), -(-len(x) // _BLOCK), -(-len(x) // _CHUNK)
    rows = jnp.pad(x, ((0, blocks * _BLOCK - items), (0, 0))).reshape(blocks, _BLOCK, -1)
    columns = jnp.pad(x, ((0, chunks * _CHUNK - items), (0, 0)))
    # Zeros fill the last chunk and may raise its maximum, so it may be chosen for nothing.
    most = min(count + 1, chunks)

    def search(row: jax.Array) -> jax.Array:
        score = (row @ columns.T).reshape(_BLOCK, chunks, _CHUNK)
        chunk = jnp.sort(jax.lax.top_k(score.max(axis=2), most)[1], axis=1)  # ascending, for equal scores
        candidates = jnp.take_along_axis(score, chunk[:, :, None], axis=1)
        item = chunk[:, :, None] * _CHUNK + jnp.arange(_CHUNK)
        candidates = jnp.where(item < items, candidates, -jnp.inf).reshape(_BLOCK, -1)
        found = jax.lax.top_k(candidates, count)[1]
        return jnp.take_along_axis(item.reshape(_BLOCK, -1), found, axis=1)

    return jax.lax.map(search, rows).reshape(-1, count)[:items]
