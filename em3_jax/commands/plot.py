"""python -m em3_jax.plot: `em3 plot`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("plot", sys.argv[1:])
