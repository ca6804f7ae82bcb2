"""python -m em3_jax.missing: `em3 missing`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("missing", sys.argv[1:])
