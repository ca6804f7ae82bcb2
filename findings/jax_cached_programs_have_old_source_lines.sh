#!/usr/bin/env bash
# jax 0.10.2: a program from the persistent compilation cache tells the source lines of whoever compiled
# it first. The key of the cache leaves them out, and the text of what is found has them.
#
# Two functions at different lines, with the same operations, in two processes that share
# JAX_COMPILATION_CACHE_DIR: the second process's `compiled.as_text()` names the file and line of the
# first's, a file that it never imported. So do profiles and memory dumps of that program. Expected:
# lines of the source that was traced, or none. Whatever finds the place of an operation by the
# compiled text (cost by line, a check that names the line to mend) has to compile without the cache:
# jax.config.update("jax_enable_compilation_cache", False).
#
# Output seen:
#   jax 0.10.2
#   first process, traced at one.py:3: one.py:3
#   second process, traced at two.py:6: one.py:3
#   second process, without the cache: two.py:6
#   as described
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 (3.11) and its package index.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
printf 'import jax.numpy as jnp\ndef f(x):\n    return jnp.sort(jnp.tanh(x @ x), axis=0)\n' > "$work/one.py"
printf 'import jax.numpy as jnp\n\n\n\ndef f(x):\n    return jnp.sort(jnp.tanh(x @ x), axis=0)\n' > "$work/two.py"
cat > "$work/show.py" <<'PYTHON'
import importlib
import re
import sys
from pathlib import Path

import jax

f = importlib.import_module(sys.argv[1]).f
text = jax.jit(f).lower(jax.ShapeDtypeStruct((64, 64), "float32")).compile().as_text()
files = dict(re.findall(r'^(\d+) "([^"]*)"$', text.split("FunctionNames")[0], re.MULTILINE))
lines = {(Path(files[name]).name, line) for name, line in re.findall(r"file_name_id=(\d+) \S+ line=(\d+)", text)}
print(*sorted(f"{name}:{line}" for name, line in lines if name in ("one.py", "two.py")))
PYTHON
cd "$work"
export JAX_PLATFORMS=cpu JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
run() { "$work/venv/bin/python" show.py "$1"; }
echo "jax $("$work/venv/bin/python" -c 'import jax; print(jax.__version__)')"
first=$(JAX_COMPILATION_CACHE_DIR="$work/cache" run one)
second=$(JAX_COMPILATION_CACHE_DIR="$work/cache" run two)
without=$(run two)
echo "first process, traced at one.py:3: $first"
echo "second process, traced at two.py:6: $second"
echo "second process, without the cache: $without"
if [ "$first|$second|$without" = "one.py:3|one.py:3|two.py:6" ]; then echo "as described"; else echo "NOT as described"; exit 1; fi
