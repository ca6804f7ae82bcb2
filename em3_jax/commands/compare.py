"""python -m em3_jax.compare: `em3 compare`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("compare", sys.argv[1:])
