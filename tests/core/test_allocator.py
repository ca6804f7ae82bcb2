"""The allocator's advice, in a process of its own: it is for good."""

import re
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, os, sys, threading
from em3_jax.core import allocator

if {advised}:
    assert allocator.keep_large_blocks()
barrier = threading.Barrier(9)

def hold():
    block = bytearray(10_000)
    barrier.wait()

threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = (ctypes.c_void_p,)
output = libc.fdopen(1, b"w")
libc.malloc_info(0, ctypes.c_void_p(output))
libc.fflush(ctypes.c_void_p(output))
size = 100 << 20
block = libc.malloc(size)
heap = [line for line in open("/proc/self/maps") if "[heap]" in line][-1]
libc.free(block)
first, last = (int(x, 16) for x in heap.split()[0].split("-"))
print("in the first heap" if first <= block < last else "mapped", file=sys.stderr)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has these options")
@pytest.mark.parametrize("advised", [False, True])
def test_few_heaps_and_large_blocks_inside(advised):
    program = PROGRAM.format(advised=advised)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heaps = len(re.findall(r"<heap nr=", done.stdout))
    assert (heaps == 2) == advised
    assert done.stderr.strip() == ("in the first heap" if advised else "mapped")
