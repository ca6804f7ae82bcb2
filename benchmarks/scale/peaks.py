"""What the machine can do at best, measured: matrix products and copies."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import interleaved

SIZES = {"cpu": (1024, 2048), "gpu": (4096, 8192, 16384), "tpu": (4096, 8192, 16384)}
COPY_BYTES = {"cpu": 1 << 28, "gpu": 1 << 31, "tpu": 1 << 31}


def matrix_peak(dtype: jnp.dtype, repeats: int = 5) -> float:
    """FLOP/s of the fastest square product, 2 n^3 operations, on one device."""
    product = jax.jit(jnp.matmul)
    best = 0.0
    for size in SIZES.get(jax.default_backend(), SIZES["gpu"]):
        x = jax.random.normal(jax.random.key(0), (size, size), dtype)
        seconds = interleaved({"product": lambda x=x: product(x, x)}, repeats)["product"].min()
        best = max(best, 2.0 * size**3 / seconds)
    return best


def copy_peak(repeats: int = 5) -> float:
    """Bytes/s read and written by a copy on one device."""
    count = COPY_BYTES.get(jax.default_backend(), COPY_BYTES["gpu"]) // 4
    x = jnp.arange(count, dtype=jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    seconds = interleaved({"copy": lambda: copy(x)}, repeats)["copy"].min()
    return float(2 * np.float64(x.nbytes) / seconds)
