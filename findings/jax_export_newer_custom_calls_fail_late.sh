#!/usr/bin/env bash
# jax 0.11.2 -> 0.10.2: of the programs that the newer jax.export writes, the older one runs those
# without a custom call. It takes the others too, and fails when they are first called.
#
# Each program with a symbolic dimension is among those that fail, since jax writes a check of its
# shape (custom call shape_assertion) into it, which cannot be left out (DisabledSafetyCheck has no
# such entry in 0.11.2). It is not the dimension as such, and not the check as such: a Cholesky
# factorisation of a static shape fails as well. 0.11.2 writes custom calls as vhlo.custom_call_v2,
# which 0.10.2 has not heard of.
#
# The documentation promises three weeks of forward compatibility, which these versions exceed.
# That an older jax may fail is no surprise, but how is: `deserialize` checks the calling
# convention, which is 10 in both, and returns; a trial with a program of static shapes succeeds;
# the exception says only "Failed to deserialize StableHLO", the reason goes to standard error.
# Expected: `deserialize` refuses what cannot run. The other way round (0.10.2 -> 0.11.2) all
# programs run.
#
# Output seen (without the lines on standard error):
#   made by 0.11.2:
#     static    calling convention 10, custom call: no
#     symbolic  calling convention 10, custom call: yes
#     cholesky  calling convention 10, custom call: yes
#   run by 0.10.2:
#     static    deserialized; runs
#     symbolic  deserialized; when called: INVALID_ARGUMENT: Failed to deserialize StableHLO
#     cholesky  deserialized; when called: INVALID_ARGUMENT: Failed to deserialize StableHLO
#   made by 0.10.2:
#     static    calling convention 10, custom call: no
#     symbolic  calling convention 10, custom call: yes
#     cholesky  calling convention 10, custom call: yes
#   run by 0.11.2:
#     static    deserialized; runs
#     symbolic  deserialized; runs
#     cholesky  deserialized; runs
#   fails late, as described
#
# What to do: keep the jax that serves at least as new as the one that exports. Where that cannot
# be, export static shapes, a program for each size, look for "custom_call" in `mlir_module()` of
# what was made (the older jax cannot show it either), and call each program once before relying
# on it.
#
# Exits with 0 while that holds, with 1 once it does not; with 77 where there is no Python 3.12 or
# newer, which jax 0.11 needs. Needs its package index too; runs on the CPU.
set -euo pipefail

python=
for name in python3.12 python3.13 python3; do
  if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
    python=$name
    break
  fi
done
if [ -z "$python" ]; then
  echo "skipped: needs Python 3.12 or newer as python3.12, python3.13 or python3"
  exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for version in 0.10.2 0.11.2; do
  "$python" -m pip install --quiet --target "$folder/$version" "jax==$version" "jaxlib==$version" \
    flatbuffers==25.12.19
done

cat >"$folder/programs.py" <<'PYTHON'
"""Makes programs, or runs those made: programs.py make|run FOLDER."""
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

mode, folder = sys.argv[1], pathlib.Path(sys.argv[2])
shapes = {"static": (4, 4), "symbolic": (*export.symbolic_shape("rows"), 4), "cholesky": (4, 4)}
for name, shape in shapes.items():
    function = jnp.linalg.cholesky if name == "cholesky" else lambda x: 2 * x
    if mode == "make":
        argument = jax.ShapeDtypeStruct(shape, jnp.float32)
        made = export.export(jax.jit(function), platforms=["cpu"])(argument)
        (folder / name).write_bytes(made.serialize())
        has_call = "yes" if "custom_call" in made.mlir_module() else "no"
        convention = made.calling_convention_version
        print(f"  {name:9} calling convention {convention}, custom call: {has_call}")
        continue
    program = export.deserialize(bytearray((folder / name).read_bytes()))
    matrix = np.eye(4, dtype=np.float32)
    try:
        end = "runs" if np.array_equal(program.call(matrix), function(matrix)) else "differs"
    except jax.errors.JaxRuntimeError as error:
        end = f"when called: {error}"
    print(f"  {name:9} deserialized; {end}")
PYTHON

programs() {
  PYTHONPATH="$folder/$1" JAX_PLATFORMS=cpu "$python" "$folder/programs.py" "$2" "$folder/made-$3"
}
for pair in "0.11.2 0.10.2" "0.10.2 0.11.2"; do
  read -r maker runner <<<"$pair"
  mkdir "$folder/made-$maker"
  echo "made by $maker:"
  programs "$maker" make "$maker"
  echo "run by $runner:"
  programs "$runner" run "$maker"
done | tee "$folder/seen"

expected="made by 0.11.2:
  static    calling convention 10, custom call: no
  symbolic  calling convention 10, custom call: yes
  cholesky  calling convention 10, custom call: yes
run by 0.10.2:
  static    deserialized; runs
  symbolic  deserialized; when called: INVALID_ARGUMENT: Failed to deserialize StableHLO
  cholesky  deserialized; when called: INVALID_ARGUMENT: Failed to deserialize StableHLO
made by 0.10.2:
  static    calling convention 10, custom call: no
  symbolic  calling convention 10, custom call: yes
  cholesky  calling convention 10, custom call: yes
run by 0.11.2:
  static    deserialized; runs
  symbolic  deserialized; runs
  cholesky  deserialized; runs"
if [ "$(cat "$folder/seen")" = "$expected" ]; then
  echo "fails late, as described"
else
  echo "this has changed"
  exit 1
fi
