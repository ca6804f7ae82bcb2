"""python -m em3_jax.export: `em3 export`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("export", sys.argv[1:])
