"""How much care XLA takes with the programs of tests, most of whose time goes into compiling small ones."""

import os

import jax
from jax._src import compiler

# Without them those work that XLA's CPU compiler had before: MLIR takes most of its time on small programs.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_FLAG = f"--{_EMITTERS}=false"
# Of whoever runs the tests; a worker has the flag from the process that started it.
_GIVEN = " ".join(flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag != _FLAG)
_QUICKLY = f"{_GIVEN} {_FLAG}".strip()
_quick = False


def begin() -> None:
    """To be called before JAX makes its first program, for XLA reads its flags once in a process.

    They are set for programs that are compiled quickly, which thus have the same key in the cache here
    and in processes that are started; all others ask for the newer emitters in their own options.
    """
    os.environ["XLA_FLAGS"] = _QUICKLY

    def options(*args, env_options_overrides=None, jax_options=compiler.get_compile_options, **kwargs):
        if not _quick:
            env_options_overrides = {_EMITTERS: True} | dict(env_options_overrides or {})
        return jax_options(*args, env_options_overrides=env_options_overrides, **kwargs)

    compiler.get_compile_options = options


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
