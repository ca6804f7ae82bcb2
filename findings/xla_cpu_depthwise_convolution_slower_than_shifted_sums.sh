#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a depthwise convolution, each channel with a window of its own, takes more than
# 8 times the CPU time of the same sum written as shifted images times a number a channel.
#
# jax.lax.conv_general_dilated (and flax.linen.Conv) with feature_group_count = channels, f32, NHWC. Its
# whole sister without groups is quick: with 144 channels it multiplies 144 times as many numbers in
# about the same time. The size * size shifted products compile to one vectorised loop, and give the
# same numbers. MobileNet, EfficientNet and ConvNeXt are made of such convolutions. Expected: the
# convolution is at least as fast as what anybody writes with slices.
#
# CPU time of all threads, the least of several calls, so that a busy machine changes little.
#
# Output seen:
#   jax 0.10.2 jaxlib 0.10.2
#   56 x 56, 144 channels, 3 x 3: depthwise    12.22 ms an image, whole   12.56, shifted    0.67
#   28 x 28, 240 channels, 5 x 5: depthwise     7.80 ms an image, whole   24.18, shifted    0.62
#   depthwise convolutions take at least 8 times as long as shifted sums, as described
#
# What to do: on CPUs pad the image, keep the padding out of the sum with jax.lax.optimization_barrier,
# and add up the shifted products. The gradients that JAX derives of that are slow again: give it your own.
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 (3.11) and its package index.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2

JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
"""CPU times of three convolutions of one shape."""
import sys
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

BATCH = 4


def conv(x, kernel, groups):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def shifted(x, kernel):
    size, (_, rows, columns, _) = len(kernel), x.shape
    side = (size // 2, size // 2)
    x = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), side, side, (0, 0))))
    places = [(i, j) for i in range(size) for j in range(size)]
    return sum(x[:, i : i + rows, j : j + columns] * kernel[i, j, 0] for i, j in places)


def least(function, *arrays):
    """(result, ms an image)."""
    function, times = jax.jit(function), []
    result = jax.block_until_ready(function(*arrays))
    for _ in range(15):
        start = time.process_time()
        jax.block_until_ready(function(*arrays))
        times.append(time.process_time() - start)
    return result, min(times) * 1e3 / BATCH


print("jax", version("jax"), "jaxlib", version("jaxlib"))
slow = True
for side, channels, size in ((56, 144, 3), (28, 240, 5)):
    random = np.random.default_rng(0)
    x = random.standard_normal((BATCH, side, side, channels)).astype(np.float32)
    kernel = random.standard_normal((size, size, 1, channels)).astype(np.float32)
    whole = random.standard_normal((size, size, channels, channels)).astype(np.float32)
    grouped, depthwise_ms = least(lambda x, kernel: conv(x, kernel, channels), x, kernel)
    _, whole_ms = least(lambda x, kernel: conv(x, kernel, 1), x, whole)
    found, shifted_ms = least(shifted, x, kernel)
    np.testing.assert_allclose(found, grouped, atol=1e-4)
    print(
        f"{side} x {side}, {channels} channels, {size} x {size}: depthwise {depthwise_ms:8.2f} ms an image, "
        f"whole {whole_ms:7.2f}, shifted {shifted_ms:7.2f}"
    )
    slow &= depthwise_ms > 8 * shifted_ms
if not slow:
    sys.exit("another behaviour than described")
print("depthwise convolutions take at least 8 times as long as shifted sums, as described")
PYTHON
