"""python -m em3_jax.analyze: `em3 analyze`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("analyze", sys.argv[1:])
