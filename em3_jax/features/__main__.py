"""python -m em3_jax.features: `em3 features`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("features", sys.argv[1:])
