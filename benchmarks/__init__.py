"""Full-size measurements, python -m benchmarks.<name>; what they gave stands in NOTES.md."""

import sys

from em3_jax.core import allocator

if sys.argv[0] == "-m" and "--default-malloc" not in sys.argv:  # called, and not imported by a test
    allocator.keep_large_blocks()  # before numpy and jax, which start threads; PyTorch gains by it as XLA does
