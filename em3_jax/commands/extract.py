"""python -m em3_jax.extract: `em3 extract`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("extract", sys.argv[1:])
