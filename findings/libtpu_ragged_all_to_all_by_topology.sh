#!/usr/bin/env bash
# libtpu 0.0.42 with jax 0.10.2: jax.lax.ragged_all_to_all is compiled or refused by the shape of the
# slice, and where it is compiled a row of 64 bf16 numbers takes four times its bytes.
#
# v5e 4x4 takes it, v5e 8x8, the larger slice of the same chip, refuses it: "Ragged all-to-all is
# currently not supported in limited ICI routing settings". v6e 8x8 takes it. Expected: a collective
# that a chip has, it has on all its slices; the padded jax.lax.all_to_all is compiled for all of them.
# Where it is compiled, its buffer of bf16 [1024, 64], 131 kB, stands in the program as
# bf16 [1024, 2, 128], 524 kB: a row takes 128 lanes of 32 bits whatever its width. So ragged parts,
# which are there to send nothing but what is needed, send more than padded ones that are up to four
# times too long. No option of JAX is set.
#
# Compiled ahead of time, no TPU needed; nothing is run.
#
# Output seen:
#   jax 0.10.2 libtpu 0.0.42
#   v5e:4x4  padded: compiled   ragged: compiled, bf16[1024,2,128]
#   v5e:8x8  padded: compiled   ragged: refused
#   v6e:8x8  padded: compiled   ragged: compiled, bf16[1024,2,128]
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

ROWS, WIDTH = 1024, 64


def padded(x, offset, size):
    return jax.lax.all_to_all(x, "d", 0, 0, tiled=True)


def ragged(x, offset, size):
    return jax.lax.ragged_all_to_all(x, jnp.zeros_like(x), offset, size, offset, size, axis_name="d")


def outcome(devices, function):
    mesh = Mesh(np.array(devices), ("d",))
    where = NamedSharding(mesh, PartitionSpec("d"))
    shape = lambda size, dtype: jax.ShapeDtypeStruct(size, dtype, sharding=where)
    count = len(devices)
    arguments = (
        shape((count * ROWS, WIDTH), jnp.bfloat16), shape((count * count,), jnp.int32), shape((count * count,), jnp.int32)
    )
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=(PartitionSpec("d"),) * 3, out_specs=PartitionSpec("d"), check_vma=False
    )
    try:
        program = jax.jit(mapped).lower(*arguments).compile().as_text()
    except jax.errors.JaxRuntimeError as error:
        if "Ragged all-to-all is currently not supported" not in str(error):
            raise
        return "refused"
    found = re.search(r"= \(?(bf16\[[\d,]*\])[^=]* ragged-all-to-all", program)
    return f"compiled, {found[1]}" if found else "compiled"


print("jax", version("jax"), "libtpu", version("libtpu"))
seen = {}
for name in ("v5e:4x4", "v5e:8x8", "v6e:8x8"):
    devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    seen[name] = outcome(devices, padded), outcome(devices, ragged)
    print(f"{name}  padded: {seen[name][0]}   ragged: {seen[name][1]}")
wide = ("compiled", f"compiled, bf16[{ROWS},2,128]")
as_described = seen == {"v5e:4x4": wide, "v5e:8x8": ("compiled", "refused"), "v6e:8x8": wide}
print("as described" if as_described else "NOT as described")
sys.exit(not as_described)
PYTHON
