"""How much care XLA takes with the programs of tests, most of whose time goes into compiling small ones.

To be imported before JAX makes its first program: XLA reads its flags once in a process. So here they
are those of programs that are compiled quickly, which those of processes that are started then equal
in the cache; and programs of other modules bring theirs with them.
"""

import os

import jax
from jax._src import compiler

# Without them those work that XLA's CPU compiler had before: MLIR takes most of its time on small programs.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_GIVEN = os.environ.get("XLA_FLAGS", "")  # of whoever runs the tests
_QUICKLY = f"{_GIVEN} --{_EMITTERS}=false".strip()
_quick = False
os.environ["XLA_FLAGS"] = _QUICKLY


def choose(quick: bool) -> None:
    """Whether programs are compiled quickly from now on, here and in processes that are started."""
    global _quick
    if quick != _quick:
        jax.clear_caches()  # of functions that modules share
        jax.config.update("jax_disable_most_optimizations", quick)
        _quick = quick
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    os.environ["XLA_FLAGS"] = _QUICKLY if quick else _GIVEN


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many devices, of the CPU, and compiles quickly."""
    quickly = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = f"{_QUICKLY} {quickly} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _options(*args, env_options_overrides=None, options=compiler.get_compile_options, **kwargs):
    if not _quick:
        env_options_overrides = {_EMITTERS: True} | dict(env_options_overrides or {})
    return options(*args, env_options_overrides=env_options_overrides, **kwargs)


compiler.get_compile_options = _options
