"""How much care XLA takes with the programs of tests, most of whose time goes into compiling small ones."""

import os

import jax
from jax._src import compiler

# The emitters of XLA's CPU compiler that came before those by MLIR, which take most of its time on small programs.
_EMITTERS = "xla_cpu_use_fusion_emitters"
QUICK_FLAGS = f"--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --{_EMITTERS}=false"
_FLAGS = os.environ.get("XLA_FLAGS", "")  # of whoever runs the tests
_quick = False


def choose(quick: bool) -> None:
    """Whether programs are compiled quickly from now on, here and in processes that are started."""
    global _quick
    if quick != _quick:
        jax.clear_caches()  # of functions that modules share
        jax.config.update("jax_disable_most_optimizations", quick)
        _quick = quick
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    os.environ["XLA_FLAGS"] = f"{_FLAGS} {QUICK_FLAGS}" if quick else _FLAGS


def on_devices(count: int) -> dict[str, str]:
    """The environment of a process that has so many devices, of the CPU, and compiles quickly."""
    flags = f"{QUICK_FLAGS} --xla_force_host_platform_device_count={count}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def _options(*args, env_options_overrides=None, options=compiler.get_compile_options, **kwargs):
    """JAX's options of a program: XLA reads its flags once in a process, but these with each program."""
    if _quick:
        env_options_overrides = {_EMITTERS: False} | dict(env_options_overrides or {})
    return options(*args, env_options_overrides=env_options_overrides, **kwargs)


compiler.get_compile_options = _options
