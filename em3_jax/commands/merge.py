"""python -m em3_jax.merge: `em3 merge`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("merge", sys.argv[1:])
