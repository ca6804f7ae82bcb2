#!/usr/bin/env bash
# numpy 2.4.6, jax 0.10.2 under Python 3.11: np.load of one and the same valid .npy file in several threads raises
# "SystemError: AST constructor recursion depth mismatch" now and then, in a process that has imported jax.
#
# numpy reads the header with ast.literal_eval. CPython 3.11 counts the depth of that in one place for all threads, which
# does no harm as long as no other thread runs in the middle. jax has a function in gc.callbacks, so where garbage is
# collected in the middle, Python code is run, and the interpreter may go on with the next thread. Without jax, or with its
# callback taken away, there is none. Python 3.12 collects at other moments and shows none either. Loaders with threads,
# services that open new versions in a thread: what fails is one read in some thousands, with an error that is no ValueError
# or OSError, of a file that is fine. (The checks here hasten it with a short switch interval.)
#
# Output seen:
#   jax 0.10.2 numpy 2.4.6 python 3.11.7
#   with jax imported          166,474 reads, 25 of them AST constructor recursion depth mismatch
#   without jax's gc callback  169,136 reads, none failed
#   as described
#
# What to do: read again where SystemError is raised, or hold a lock over all that uses ast.
#
# Exits with 0 while that holds, with 1 once it does not. Needs python3 (3.11) and its package index.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$work/threads.py" <<'PYTHON'
"""Reads one small array in four threads, with jax's hook in the collector of garbage and without."""
import gc
import platform
import sys
import threading
import time

import jax
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__, "python", platform.python_version())
np.save("a.npy", np.zeros((3, 4)))
sys.setswitchinterval(1e-5)


def reads(most):
    """(reads, messages of those that failed) until one failed so often, or 20 seconds are over."""
    count, failed, end = [0] * 4, [], time.monotonic() + 20

    def read(k):
        while time.monotonic() < end and len(failed) < most:
            count[k] += 1
            try:
                np.load("a.npy")
            except SystemError as error:
                failed.append(str(error).split(" (")[0])

    threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(count), failed


number, failed = reads(1000)
print(f"with jax imported          {number:,} reads, {len(failed)} of them {' / '.join(sorted(set(failed)))}")
gc.callbacks[:] = [one for one in gc.callbacks if "jax" not in getattr(one, "__module__", "jax")]
number, without = reads(1000)
print(f"without jax's gc callback  {number:,} reads, {len(without) or 'none'} failed")
holds = set(failed) == {"AST constructor recursion depth mismatch"} and not without
print("as described" if holds else "NOT as described")
sys.exit(not holds)
PYTHON
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" threads.py
