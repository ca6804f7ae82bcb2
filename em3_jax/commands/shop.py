"""python -m em3_jax.shop: `em3 shop`."""

import sys

from em3_jax.__main__ import call

if __name__ == "__main__":
    call("shop", sys.argv[1:])
