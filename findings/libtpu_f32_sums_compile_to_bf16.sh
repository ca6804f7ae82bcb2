#!/usr/bin/env bash
# libtpu 0.0.42 with jax 0.10.2: a sum that is asked for in f32, and only its result rounded to bf16,
# compiles to a reduction in bf16: its accumulator is bf16 in the program, as if nothing had been asked.
#
# jnp.sum(x.astype(f32), axis=0).astype(bf16), and jnp.sum of bf16, which does the same by itself,
# are traced as convert, reduce in f32, convert. For TPU v5e and v6e what comes out is one reduce of
# bf16, with an addition of bf16 for its combiner, 4,096 addends or not; the same program for a CPU
# keeps f32. Expected: the accumulator that the program names, above all as 4,096 ones need 13 bits
# and bf16 has 8. No option of JAX is set. Gradients of biases and of normalisation scales are such
# sums, over all examples of a batch.
#
# With an operation between the sum and the conversion, reduce_precision to the same 8 and 7 bits, f32
# stays. That is what to do, or to leave the result in f32. Compiled ahead of time, no TPU needed;
# whether a chip adds the bf16 it was told to, a program does not tell.
#
# Output seen:
#   jax 0.10.2 libtpu 0.0.42
#   v5e  sum in f32, rounded: bf16   jnp.sum of bf16: bf16   reduce_precision between: f32
#   v6e  sum in f32, rounded: bf16   jnp.sum of bf16: bf16   reduce_precision between: f32
#   as described
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 (3.11) and its package index.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_ACCELERATOR_TYPE=v5litepod-4 TPU_WORKER_HOSTNAMES=localhost
export ALLOW_MULTIPLE_LIBTPU_LOAD=1
"$work/venv/bin/python" - 2> "$work/log" <<'PYTHON' || { cat "$work/log" >&2; exit 1; }
import re
import sys
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

print("jax", version("jax"), "libtpu", version("libtpu"))
wide = lambda x: jnp.sum(x.astype(jnp.float32), axis=0)
ways = {
    "sum in f32, rounded": lambda x: wide(x).astype(jnp.bfloat16),
    "jnp.sum of bf16": lambda x: jnp.sum(x, axis=0),
    "reduce_precision between": lambda x: jax.lax.reduce_precision(wide(x), 8, 7).astype(jnp.bfloat16),
}
seen = []
for chip in ("v5e", "v6e"):
    devices = topologies.get_topology_desc(topology_name=f"{chip}:2x2", platform="tpu").devices
    where = NamedSharding(Mesh(np.array(devices[:1]), ("d",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((4096, 64), jnp.bfloat16, sharding=where)
    types = []
    for way in ways.values():
        program = jax.jit(way).lower(x).compile().as_text()
        types += re.findall(r"= (\w+)\[[\d,]*\]\S* reduce\(", program)
    print(chip, "", "   ".join(f"{name}: {one}" for name, one in zip(ways, types)))
    seen.append(types)
as_described = seen == [["bf16", "bf16", "f32"]] * 2
print("as described" if as_described else "NOT as described")
sys.exit(not as_described)
PYTHON
