"""python -m em3_jax.prepare: `em3 prepare`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("prepare", sys.argv[1:])
