"""python -m em3_jax.curves: `em3 curves`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("curves", sys.argv[1:])
