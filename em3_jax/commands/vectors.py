"""python -m em3_jax.vectors: `em3 vectors`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("vectors", sys.argv[1:])
