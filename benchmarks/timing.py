"""Timing on noisy machines: variants take turns within one process, and are compared by their minima."""

import time
from collections.abc import Callable

import jax
import numpy as np


def interleaved(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each call, name -> [repeats]; every variant runs once before, untimed."""
    for call in variants.values():
        jax.block_until_ready(call())
    seconds = {name: np.empty(repeats) for name in variants}
    for k in range(repeats):
        for name, call in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name][k] = time.perf_counter() - start
    return seconds


def milliseconds(seconds: np.ndarray) -> str:
    return f"{seconds.min() * 1e3:.1f} ms (median {np.median(seconds) * 1e3:.1f})"
