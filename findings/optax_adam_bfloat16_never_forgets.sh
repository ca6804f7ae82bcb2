#!/usr/bin/env bash
# optax 0.2.8 (jax 0.10.2): with parameters in bfloat16, Adam's second moment never decays at the
# default b2 = 0.999.
#
# Adam's state takes the dtype of the parameters; mu_dtype changes the first moment alone, there is
# nothing of the kind for the second. b2 becomes a bfloat16 constant when the update is traced, and
# the numbers next to 1 there are 1 - 1/256 and 1: from 0.99805 on, b2 is exactly 1. What is added
# is still (1 - b2) g^2. So the second moment grows with a large gradient and stays where it is for
# ever; bias correction goes on counting with 0.999. A parameter that has seen large gradients, as
# all do at the start, takes too small steps from then on. Expected: the coarse rounding of bfloat16
# (a per cent or so), and an average that forgets.
#
# 100 gradients of 8, then 5,000 of 0.25 (b2 = 0.999 should have forgotten 99.3 % of the former):
#
# Output seen:
#   optax 0.2.8, jax 0.10.2; 0.999 in bfloat16 is 1.0
#   parameters   gradients  b2      2nd moment after 100  after 5,100  last step / learning rate
#   float32      float32    0.999                 6.0933       0.1030                      0.7765
#   bfloat16     bfloat16   0.999                 6.2812       6.2812                      0.1011
#   bfloat16     bfloat16   0.99                 37.2500       0.0630                      1.0156
#   float32      bfloat16   0.999                 6.0900       0.1030                      0.7774
#   never forgets, as described
#
# What to do: keep the parameters that the optimizer sees in float32 and cast them for the forward
# pass (gradients may be bfloat16: the last row), or use a b2 of at most 0.998
# (that one acts as 0.9961).
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 (3.11 or newer) and its
# package index; runs on the CPU.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --target "$folder/packages" optax==0.2.8 jax==0.10.2 jaxlib==0.10.2

cat >"$folder/moments.py" <<'PYTHON'
"""Adam's second moment, and the step, after large gradients and then small ones."""
import sys

import jax
import jax.numpy as jnp
import optax

f32, bf16 = jnp.float32, jnp.bfloat16


def train(dtype, gradient_dtype, b2):
    """(second moment after the large gradients, after all, last step at a learning rate of 1)."""
    adam = optax.scale_by_adam(b2=b2)
    gradients = jnp.concatenate([jnp.full(100, 8.0), jnp.full(5000, 0.25)]).astype(gradient_dtype)

    def step(state, gradient):
        update, state = adam.update(gradient, state)
        return state, (state.nu, update)

    moments, updates = jax.lax.scan(step, adam.init(jnp.ones((), dtype)), gradients)[1]
    return float(moments[99]), float(moments[-1]), float(updates[-1])


rounded = float(jnp.asarray(0.999, bf16))
print(f"optax {optax.__version__}, jax {jax.__version__}; 0.999 in bfloat16 is {rounded}")
head = "parameters   gradients  b2      2nd moment after 100  after 5,100  "
print(head + "last step / learning rate")
seen = {}
for case in ((f32, f32, 0.999), (bf16, bf16, 0.999), (bf16, bf16, 0.99), (f32, bf16, 0.999)):
    names = [case[0].__name__, case[1].__name__, str(case[2])]
    peak, last, update = seen[tuple(names)] = train(*case)
    print(f"{names[0]:12} {names[1]:10} {names[2]:6} {peak:21.4f} {last:12.4f} {update:27.4f}")
stuck = seen["bfloat16", "bfloat16", "0.999"]
forgets = [peak > 10 * last for key, (peak, last, _) in seen.items() if seen[key] is not stuck]
holds = rounded == 1 and stuck[0] == stuck[1] and stuck[2] < 0.2 and all(forgets)
print("never forgets, as described" if holds else "this has changed")
sys.exit(not holds)
PYTHON

PYTHONPATH="$folder/packages" JAX_PLATFORMS=cpu python3 "$folder/moments.py"
