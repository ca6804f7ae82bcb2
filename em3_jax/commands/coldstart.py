"""python -m em3_jax.coldstart: `em3 coldstart`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("coldstart", sys.argv[1:])
