"""Convolutions of images, as each kind of device does them best.

GPUs and TPUs have units for any convolution. XLA's programs for CPUs are quick where a convolution is a product of
matrices, and slow where it is not: one whose channels have a window each (depthwise) is computed one by one, 10 to 60
times slower than the same sum written as multiplications of the shifted image. So on CPUs:

    1 x 1        one product [B * Y * X, C] [C, D]; its gradients are 1.3 to 1.8 times as quick as the convolution's.
    depthwise    k * k shifted images times a number a channel each, summed in one pass. The gradient of the image is
                 such a sum again, of the gradient; that of the kernel sums row after row, while they are in the cache.
    else         the convolution.

benchmarks/NOTES.md has the times. Letters: B batch, Y and X rows and columns, C channels, D those of the result.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

Sides = tuple[tuple[int, int], tuple[int, int]]


class Window(NamedTuple):
    """How a kernel moves.

    Attributes:
      stride: of rows and columns.
      padding: zeros (before, after) the rows, and the columns.
      depthwise: each channel has a kernel of its own.
    """

    stride: int
    padding: Sides
    depthwise: bool


def convolve(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """[B, Y', X', D] in the dtype of `x`; sums are float32 on CPUs.

    Args:
      x: [B, Y, X, C] float.
      kernel: [size, size, C, D] of the same dtype, [size, size, 1, C] of depthwise ones.
      window: see `Window`.
    """
    is_point = kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0))
    return _chosen(x, kernel, window) if window.depthwise or is_point else _plain(x, kernel, window)


def _plain(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    groups = x.shape[-1] if window.depthwise else 1
    return jax.lax.conv_general_dilated(
        x, kernel, 2 * (window.stride,), window.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _chosen(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    plain = functools.partial(_plain, window=window)
    quick = functools.partial(_shifted if window.depthwise else _product, window=window)
    return jax.lax.platform_dependent(x, kernel, cpu=quick, default=plain)


def _forward(x, kernel, window):
    return _chosen(x, kernel, window), (x, kernel)


def _backward(window, saved, gradient):
    def of(function):
        return lambda x, kernel, gradient: jax.vjp(functools.partial(function, window=window), x, kernel)[1](gradient)

    quick = functools.partial(_shifted_backward, window=window) if window.depthwise else of(_product)
    return jax.lax.platform_dependent(*saved, gradient, cpu=quick, default=of(_plain))


_chosen.defvjp(_forward, _backward)


def _product(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    x = x[:, :: window.stride, :: window.stride]
    return jnp.einsum("byxc,cd->byxd", x, kernel[0, 0], preferred_element_type=jnp.float32).astype(x.dtype)


def _shifted(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    stride, padded = window.stride, _padded(x, window)
    rows, columns = (_steps(length, len(kernel), stride) for length in padded.shape[1:3])
    return _sum_of_shifted(padded, kernel, (rows, columns), stride).astype(x.dtype)


def _shifted_backward(
    x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `x` and `kernel`, in their dtypes."""
    return _of_images(x, kernel, gradient, window), _of_kernel(x, kernel, gradient, window)


def _of_images(x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    """The gradient, with zeros between where the stride left places out, under the kernel turned round."""
    size, sides = len(kernel), [(0, 0, 0)]
    for (before, _), length, steps in zip(window.padding, x.shape[1:3], gradient.shape[1:3], strict=True):
        covered = (steps - 1) * window.stride + 1
        sides.append((size - 1 - before, length + before - covered, window.stride - 1))
    spread = jax.lax.pad(gradient, jnp.zeros((), gradient.dtype), [*sides, (0, 0, 0)])
    spread = jax.lax.optimization_barrier(spread)
    return _sum_of_shifted(spread, kernel[::-1, ::-1], x.shape[1:3], 1).astype(x.dtype)


def _of_kernel(x: jax.Array, kernel: jax.Array, gradient: jax.Array, window: Window) -> jax.Array:
    size, stride, padded = len(kernel), window.stride, _padded(x, window)
    rows, columns = gradient.shape[1:3]

    def row(total: jax.Array, place: jax.Array) -> tuple[jax.Array, None]:
        image, y = place // rows, place % rows
        shape = (1, size, *padded.shape[2:])
        under = jax.lax.dynamic_slice(padded, (image, y * stride, 0, 0), shape)[0].astype(jnp.float32)
        by = jax.lax.dynamic_slice(gradient, (image, y, 0, 0), (1, 1, *gradient.shape[2:]))[0, 0].astype(jnp.float32)
        parts = [
            (under[i, j : j + (columns - 1) * stride + 1 : stride] * by).sum(axis=0)
            for i in range(size)
            for j in range(size)
        ]
        return total + jnp.stack(parts), None

    places = jnp.arange(len(x) * rows)
    total, _ = jax.lax.scan(row, jnp.zeros((size * size, x.shape[-1])), places)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _padded(x: jax.Array, window: Window) -> jax.Array:
    """`x` with its zeros, in memory: within the sum each place would ask whether it is one."""
    return jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *window.padding, (0, 0))))


def _steps(length: int, size: int, stride: int) -> int:
    return (length - size) // stride + 1


def _sum_of_shifted(padded: jax.Array, kernel: jax.Array, shape: tuple[int, int], stride: int) -> jax.Array:
    """[B, *shape, C] f32."""
    padded, kernel = padded.astype(jnp.float32), kernel.astype(jnp.float32)
    rows, columns = ((length - 1) * stride + 1 for length in shape)
    total = jnp.zeros(())
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            total = total + padded[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
    return total
