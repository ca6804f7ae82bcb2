"""Gathers, and the sums by index that are their gradients, as each kind of device does them best.

The gradient of a gather adds up, for each row, what all positions that name it say. Its sum is f32,
whatever the activations are: a bf16 sum stops growing at 256 times its addend. And how it adds:

    CPU   a scatter, one addend after the other.
    GPU   atomic additions of a scatter queue where many positions name one row. Sorted by target,
          addends are summed a block at a time, as products with ones and zeros.
    TPU   reads a tile of 8 rows for each row that it gathers, and scatters one row after the other.
          Of up to `PRODUCT` rows the gather is a product with ones and zeros, forward and back,
          which is built in registers: of 51,200 rows of 6,720, 64 wide, a v5e moves 11 MB for it,
          281 MB for a gather. Of more rows it gathers, and adds as a GPU does.

All of them give the same numbers but for the order of a sum. docs/operations.md has the counts.

Letters: S rows, M positions, D width.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

PRODUCT = 16384  # rows that TPUs gather from by a product
FEW = 128  # rows of which GPUs sum by a product: event fields, say, which all positions name
_BLOCK = 32  # addends summed in one product; of more, its ones and zeros are what is moved


def rows(array: jax.Array, index: jax.Array, dtype: Any = None) -> jax.Array:
    """[*, ...] the rows `index` [*] i32 of `array` [S, ...], in its dtype or in another.

    The gradient is summed in f32 and rounded once, to the dtype of `array`. On CPUs, of arrays of 32
    bits or more, it is that of `jnp.take`, bit for bit.
    """
    # Its length is open in an exported program.
    return _rows(array, index, array.shape[0], jnp.dtype(dtype or array.dtype))


def sums(values: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """[length, ...] f32: row s is the sum of the rows k of `values` with index[k] = s.

    Args:
      values: [*, ...] float.
      index: [*] i32 in [0, length).
    """
    return _sums(values, index, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _sums(values: jax.Array, index: jax.Array, length: Any) -> jax.Array:
    size = length if isinstance(length, int) else PRODUCT + 1
    way = lambda most: functools.partial(_product_sums if size <= most else _block_sums, length=length)  # noqa: E731
    scattered = functools.partial(_scattered, length=length)
    if index.size == 0:
        return jnp.zeros((length, *values.shape[index.ndim :]), jnp.promote_types(values.dtype, jnp.float32))
    return jax.lax.platform_dependent(values, index, cpu=scattered, tpu=way(PRODUCT), default=way(FEW))


def _sums_forward(values, index, length):
    return _sums(values, index, length), (index, jnp.zeros((0,), values.dtype))


def _sums_backward(length, saved, gradient):
    index, like = saved
    return _take(gradient, index).astype(like.dtype), None


_sums.defvjp(_sums_forward, _sums_backward)


def _exact(array: jax.Array) -> Sequence[jax.Array]:
    """bf16 arrays that add up to `array`: what a matrix unit multiplies by one without loss."""
    if array.dtype == jnp.bfloat16:
        return (array,)
    parts, rest = [], array.astype(jnp.float32)
    for _ in range(3):  # 8 of the 24 bits in each
        # Not `astype`, whose rounding XLA may leave out where the result is widened again.
        parts.append(jax.lax.reduce_precision(rest, 8, 7))
        rest = rest - parts[-1]
    return [part.astype(jnp.bfloat16) for part in parts]


def _with_ones(form: str, index: jax.Array, length: int, array: jax.Array) -> jax.Array:
    """f32 product of `array` with ones and zeros [M, length], which position names which row."""
    ones = (index.reshape(-1, 1) == jnp.arange(length)).astype(jnp.bfloat16)
    products = [jnp.einsum(form, ones, part, preferred_element_type=jnp.float32) for part in _exact(array)]
    return functools.reduce(jnp.add, products)


def _product_rows(array: jax.Array, index: jax.Array) -> jax.Array:
    if array.dtype not in (jnp.bfloat16, jnp.float32):
        return _take(array, index)
    found = _with_ones("ms,sd->md", index, len(array), array.reshape(len(array), -1))
    return found.astype(array.dtype).reshape(*index.shape, *array.shape[1:])


def _product_sums(values: jax.Array, index: jax.Array, length: int) -> jax.Array:
    total = _with_ones("ms,md->sd", index, length, values.reshape(index.size, -1))
    return total.reshape(length, *values.shape[index.ndim :])


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take(array, index, axis=0)


def _scattered(values: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """`sums`, as the transpose of a gather."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    shape = jax.ShapeDtypeStruct((length, *values.shape[index.ndim :]), values.dtype)
    (total,) = jax.linear_transpose(lambda array: _take(array, index), shape)(values)
    return total


def _block_sums(values: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """`sums` of values sorted by target; see `_run_sums`.

    A marker of each target is sorted in before its addends: zero itself, it tells where they begin.
    """
    flat = values.reshape(index.size, -1).astype(jnp.promote_types(values.dtype, jnp.float32))
    marks = 2 * jnp.arange(length, dtype=jnp.int32)
    key = jnp.concatenate([marks, 2 * index.ravel().astype(jnp.int32) + 1])
    key, row = jax.lax.sort((key, jnp.arange(-length, index.size, dtype=jnp.int32)), num_keys=1)
    addend = jnp.where((row >= 0)[:, None], _take(flat, jnp.maximum(row, 0)), 0.0)
    # The markers by themselves are those of all targets, in order.
    number = jnp.arange(len(key), dtype=jnp.int32)
    _, start = jax.lax.sort((jnp.where(key % 2 == 0, key, 2 * length), number), num_keys=1)
    total = _run_sums(addend, key // 2, start[:length])
    return total.reshape(length, *values.shape[index.ndim :])


def _run_sums(values: jax.Array, target: jax.Array, start: jax.Array) -> jax.Array:
    """[*, D] f32 sums of the runs of equal `target` [N] i32 ascending, of `values` [N, D], which begin at `start` [*].

    In blocks: a product with the ones and zeros of who belongs to whom gives the sums of a block's
    targets, in their order. A run that goes on in the next blocks is the first in each of them; so
    what is left are runs of these blocks' first sums, a problem of the same kind, a block smaller.
    """
    blocks = -(-len(target) // _BLOCK)
    surplus = blocks * _BLOCK - len(target)
    of_block = jnp.pad(target, (0, surplus), mode="edge").reshape(blocks, _BLOCK)
    is_new = jnp.pad(of_block[:, 1:] != of_block[:, :-1], ((0, 0), (1, 0)))
    place = jnp.cumsum(is_new, axis=1, dtype=jnp.int32)  # of its target among the block's
    belongs = (place[:, None, :] == jnp.arange(_BLOCK)[:, None]).astype(values.dtype)
    addend = jnp.pad(values, ((0, surplus), (0, 0))).reshape(blocks, _BLOCK, -1)
    partial = jnp.einsum("bpk,bkd->bpd", belongs, addend, precision=jax.lax.Precision.HIGHEST)  # [blocks, places, D]
    total = _take(partial.reshape(blocks * _BLOCK, -1), start // _BLOCK * _BLOCK + place.ravel()[start])
    if blocks == 1:
        return total
    first, after = of_block[:, 0], jnp.minimum(start // _BLOCK + 1, blocks - 1)
    goes_on = jnp.pad(first[1:] == of_block[:-1, -1], (1, 0))
    more = _run_sums(jnp.where(goes_on[:, None], partial[:, 0], 0.0), first, after)
    follows = (after > start // _BLOCK) & (first[after] == target[start])
    return total + jnp.where(follows[:, None], more, 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(array: jax.Array, index: jax.Array, length: Any, dtype: Any) -> jax.Array:
    array = array.astype(dtype)
    if isinstance(length, int) and length <= PRODUCT:
        return jax.lax.platform_dependent(array, index, tpu=_product_rows, default=_take)
    return _take(array, index)


def _rows_forward(array, index, length, dtype):
    return _rows(array, index, length, dtype), (index, jnp.zeros((0,), array.dtype))


def _rows_backward(length, dtype, saved, gradient):
    index, like = saved
    return sums(gradient, index, length).astype(like.dtype), None


_rows.defvjp(_rows_forward, _rows_backward)
