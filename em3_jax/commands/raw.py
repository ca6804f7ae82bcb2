"""python -m em3_jax.raw: `em3 raw`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("raw", sys.argv[1:])
