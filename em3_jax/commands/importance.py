"""python -m em3_jax.importance: `em3 importance`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("importance", sys.argv[1:])
