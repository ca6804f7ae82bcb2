"""python -m reproduce: `em3 reproduce`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("reproduce", sys.argv[1:])
