"""python -m em3_jax.serve: `em3 serve`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("serve", sys.argv[1:])
