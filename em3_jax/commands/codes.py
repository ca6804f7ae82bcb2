"""python -m em3_jax.codes: `em3 codes`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("codes", sys.argv[1:])
