"""Devices that are described, not here: the compilers for them, and what has to be true before JAX is imported.

All that leans on names which JAX may change is in this file.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.core.errors import UserError, nearest
from em3_jax.plan import chips

COMPILERS = "EM3_COMPILERS"
"""Environment variable: a folder that has the compilers, made by `pip install --target`."""

MOST_DEVICES = 1024
_ALL_IS_WELL = b"\0all is well\0"
_KEEPER = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
said = sys.stdin.buffer.read()
if not said.endswith({_ALL_IS_WELL!r}):
    sys.stderr.buffer.write(said)
"""
_INSTALL = "pip install 'em3_jax[plan]', best in an environment of its own"
_PACKAGES = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-plugin", "jax-cuda12-pjrt")}
_MODULES = {"tpu": ("libtpu",), "gpu": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12")}


class Target(NamedTuple):
    """What a step is planned for.

    Attributes:
      text: as it was asked for, "v5e:4x4".
      kind: key of `chips.CHIPS`.
      shape: chips along each axis of the interconnect, or their number alone.
    """

    text: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many devices JAX sees."""
        return math.prod(self.shape) * self.chip.cores

    @property
    def chip(self) -> chips.Chip:
        return chips.CHIPS[self.kind]

    @property
    def platform(self) -> str:
        return "cpu" if self.kind == "cpu" else "gpu" if self.chip.gpu else "tpu"


def parse(text: str) -> Target:
    """The target of "v5e:4x4", "h100", "h100:8" or "cpu:8".

    Raises:
      UserError: there is no such chip, or the shape is none of its kind.
    """
    kind, colon, shape_text = text.lower().partition(":")
    if kind not in chips.CHIPS:
        raise UserError(f"--target={text}: no such chip; {nearest(kind, chips.CHIPS)}")
    is_tpu = kind not in ("cpu",) and chips.CHIPS[kind].gpu is None
    three = kind in ("v5p", "tpu7x")
    example = f"{kind}:2x2x1" if three else f"{kind}:2x2" if is_tpu else f"{kind}:8"
    if not colon:
        shape_text = ("1x1x1" if three else "1x1") if is_tpu else "1"
    if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", shape_text):
        raise UserError(f"--target={text}: '{shape_text}' is no shape; write e.g. {example}")
    shape = tuple(map(int, shape_text.split("x")))
    axes = (3 if three else 2) if is_tpu else 1
    if len(shape) != axes:
        raise UserError(f"--target={text}: {kind} has {axes} {'axes' if axes > 1 else 'axis'}; write e.g. {example}")
    count = math.prod(shape) * chips.CHIPS[kind].cores
    if count > MOST_DEVICES:
        raise UserError(f"--target={text}: {count:,} devices; plans go up to {MOST_DEVICES:,}")
    if is_tpu and math.prod(shape) > 1 and (shape[0] % 2 or shape[1] % 2):
        raise UserError(f"--target={text}: the chips of a host are 2x2; write e.g. {example}")
    known = chips.CHIPS[kind].shapes
    if known and shape_text not in known:
        raise UserError(f"--target={text}: no pod of {kind} is {shape_text}; there are {', '.join(known)}")
    return Target(text, kind, shape)


def prepare(target: Target) -> None:
    """Sets what JAX reads when it is imported; to be called before.

    Raises:
      UserError: the compiler for the target is not installed.
    """
    if target.platform == "cpu":
        count = f"--xla_force_host_platform_device_count={target.shape[0]}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
        os.environ["JAX_PLATFORMS"] = "cpu"
        return
    find_compilers()
    check_installed(target)
    os.environ["JAX_PLATFORMS"] = "cpu,cuda" if target.platform == "gpu" else "cpu"
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # compiling does not take the chip that one process may have
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def find_compilers() -> None:
    """Puts the folder of the compilers, if there is one, at the end of the path."""
    given = os.environ.get(COMPILERS)
    if given and not Path(given).is_dir():
        raise UserError(f"{COMPILERS}={given}: no such folder; make it with pip install --target, or leave it out")
    folder = given or str(Path(sys.prefix) / "compilers")
    if Path(folder).is_dir() and folder not in sys.path:
        sys.path.append(folder)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """While a compiler works, what it says on stderr past Python is kept back: that there is no driver, no chip, no host.

    Where it fails, all of it is shown; and where it ends this process from within, too, for another
    one keeps it.
    """
    sys.stderr.flush()
    shown = os.dup(2)
    keeper = subprocess.Popen([sys.executable, "-S", "-c", _KEEPER], stdin=subprocess.PIPE, stderr=shown)
    assert keeper.stdin is not None
    os.dup2(keeper.stdin.fileno(), 2)
    keep = _ALL_IS_WELL
    try:
        yield
    except UserError:
        raise
    except BaseException:
        keep = b""
        raise
    finally:
        sys.stderr.flush()
        os.dup2(shown, 2)
        os.close(shown)
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.write(keep)
            keeper.stdin.close()
        keeper.wait()


def is_installed(platform: str) -> bool:
    """Whether the compiler of a platform, "tpu" or "gpu", can be imported."""
    return platform == "cpu" or all(map(_exists, _MODULES[platform]))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def check_installed(target: Target) -> None:
    """Refuses a target whose compiler is not there, or is of another version than JAX wants."""
    if not is_installed(target.platform):
        missing = " and ".join(_PACKAGES[target.platform])
        raise UserError(f"--target={target.text}: its compiler, {missing}, is not installed; {_INSTALL}")
    wanted = _wanted_versions()
    for package in _PACKAGES[target.platform]:
        have, want = importlib.metadata.version(package), wanted.get(package)
        if want and not (have == want or have.startswith(f"{want}.")):
            jax = importlib.metadata.version("jax")
            raise UserError(
                f"--target={target.text}: {package} {have} is installed, jax {jax} goes with {want}; "
                f"pip install '{package}=={want}'"
            )


def _wanted_versions() -> dict[str, str]:
    """Package -> its version, or the beginning of it, by what the installed JAX says of itself."""
    jax = importlib.metadata.version("jax")
    found = {"jax-cuda12-plugin": jax, "jax-cuda12-pjrt": jax}
    for line in importlib.metadata.requires("jax") or ():
        if pinned := re.match(r"libtpu==([\d.]+?)(\.\*)?;", line.replace(" ", "")):
            found["libtpu"] = pinned[1]
    return found


def devices(target: Target) -> Sequence[Any]:
    """The described devices of a target; of "cpu", simulated ones.

    Raises:
      UserError: the compiler knows no such devices.
    """
    import jax

    if target.platform == "cpu":
        return jax.devices("cpu")[: target.shape[0]]
    from jax.experimental import topologies

    try:
        if target.platform == "gpu":
            _start_cuda(jax)
            config, count = chips.gpu_config(target.chip), target.shape[0]
            topology = topologies.get_topology_desc(
                platform="cuda", topology_name="", target_config=config, topology=f"1x1x{count}"
            )
        else:
            jax.devices()  # before the TPU's library is there
            shape = "x".join(map(str, target.shape))
            alone = {"chips_per_host_bounds": (1, 1, 1)} if set(target.shape) == {1} else {}
            topology = topologies.get_topology_desc(topology_name=f"{target.kind}:{shape}", platform="tpu", **alone)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--target={target.text}: its compiler refuses it ({str(error).splitlines()[0]})") from None
    return topology.devices


def compiled(target: Target, step: Any, arguments: Sequence[Any]) -> Any:
    """`step`, a `training.step.TrainStep`, as compiled for shapes on the devices of a target.

    Raises:
      UserError: the compiler finds no room, or fails.
    """
    import jax

    # A program from a cache has the source lines of when it was compiled.
    jax.config.update("jax_enable_compilation_cache", False)
    ways: list[dict[str, bool]] = [{}]
    if target.platform == "gpu":
        # Without a GPU to try them on, its compiler may choose a kernel that it then cannot make.
        ways.append({"xla_gpu_enable_triton_gemm": False})
    for options in ways:
        try:
            return step.compile(*arguments, **options).program
        except jax.errors.JaxRuntimeError as error:
            failed = error
    reason = str(failed).splitlines()[0][:300]
    if "RESOURCE_EXHAUSTED" in str(failed):
        raise UserError(
            f"--target={target.text}: the compiler finds no room for the step ({reason}); give more devices, a "
            "smaller --batch, or config.data.placement=host"
        )
    raise UserError(f"--target={target.text}: its compiler fails ({reason})")


def _start_cuda(jax: Any) -> None:
    """Makes NVIDIA's compiler known to JAX on a machine without a driver, where it would not try."""
    from jax._src import xla_bridge

    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    if "cuda" not in xla_bridge._topology_factories:
        importlib.import_module(_MODULES["gpu"][1]).initialize()
    jax.config.update("jax_platforms", "cpu,cuda")


def requirements() -> list[str]:
    """What `pip install --no-deps --target <folder>` needs to be told, for the JAX that is installed."""
    wanted = _wanted_versions()
    pins = [f"{name}=={version}.*" if name == "libtpu" else f"{name}=={version}" for name, version in wanted.items()]
    return [*pins, "nvidia-cuda-nvcc-cu12==12.9.86"]


if __name__ == "__main__":
    print("\n".join(requirements()))
