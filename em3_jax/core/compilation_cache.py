"""Compiled programs, kept between processes by JAX's own cache: where, how many, and for which machines.

JAX's key holds the program, the versions of jax and XLA, the flags and the devices. It does not hold the number of
cores, by which XLA's CPU programs are cut, nor what the cores can do. So each kind of machine has a folder of its own.
"""

import hashlib
import os
import sys
from pathlib import Path

OFF = "off"
MOST_BYTES = 1 << 28  # of a machine's folder; JAX deletes what was used longest ago
SHORTEST_SECONDS = 0.1  # of compiling; what takes less is hardly slower than a file, and would make thousands of them
_FOLDER, _ENABLED = "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"
_FALSE = ("0", "false", "off", "no", "f", "n")  # as JAX reads it
_LIMITS: dict[str, int | float] = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": MOST_BYTES,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": SHORTEST_SECONDS,
}
_PROGRAM, _USED = "-cache", "-atime"  # the two files of a program, as `jax._src.lru_cache` names them
_OF_CORES = ("vendor_id", "cpu family", "model", "model name", "flags", "CPU part", "Features")


def keep() -> None:
    """Has JAX keep what it compiles in the user's cache folder, from this process on and in those that it starts.

    To be called before jax is imported. `JAX_COMPILATION_CACHE_DIR` and `JAX_ENABLE_COMPILATION_CACHE` are the user's
    to set, and then nothing is changed. A folder that cannot be written is a line on stderr, and nothing is kept.
    """
    root = default_folder()
    given = os.environ.get(_FOLDER, "")
    is_own = Path(given).parent == root  # of a process that started this one, perhaps on other cores
    if (given and not is_own) or os.environ.get(_ENABLED, "1").lower() in _FALSE:
        return
    folder = root / machine()
    if problem := _prepare(folder):
        os.environ.pop(_FOLDER, None)
        print(f"warning: compiled programs are not kept: {problem}; set {_FOLDER}", file=sys.stderr)
        return
    os.environ[_FOLDER] = str(folder)
    for name, value in _LIMITS.items():
        os.environ.setdefault(name, str(value))


def use(choice: str) -> None:
    """Follows a config's `train.compilation_cache`, once jax is imported and before it compiles.

    Args:
      choice: a folder, "off", or "" for what `keep` has found.
    """
    if not choice:
        return
    import jax  # `keep` comes before it
    from jax.experimental.compilation_cache import compilation_cache

    folder = Path(choice) / machine()
    problem = "" if choice == OFF else _prepare(folder)
    if problem:
        print(f"warning: compiled programs are not kept: {problem}", file=sys.stderr)
    if choice == OFF or problem:
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        for name, most in _LIMITS.items():
            jax.config.update(name.lower(), type(most)(os.environ.get(name, most)))
    compilation_cache.reset_cache()  # JAX looks at these settings once


def default_folder() -> Path:
    """The folder of compiled programs in the user's cache folder, as the XDG Base Directory Specification has it."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~")) / ".cache"
    return home / "em3_jax" / "compiled"


def machine() -> str:
    """The name of a folder for programs of this kind of processor and of as many cores as this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = [f"{name}={os.environ[name]}" for name in ("NPROC", "PJRT_NPROC") if name in os.environ]  # XLA asks them
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8").partition("\n\n")[0]
    except OSError:
        first = ""
    facts = [line for line in first.splitlines() if line.partition(":")[0].strip() in _OF_CORES]
    digest = hashlib.sha256("\n".join([os.uname().machine, *facts, *told]).encode())
    return f"{cores}-core{'s' * (cores != 1)}-{digest.hexdigest()[:12]}"


def _prepare(folder: Path) -> str:
    """Makes the folder, and rids it of what a process left half written when it was killed; returns what is wrong."""
    import filelock  # commands that keep nothing do not wait for it

    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = filelock.FileLock(folder / ".lockfile")  # JAX's
        with lock.acquire(timeout=5):
            if os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE") != "-1":  # else JAX notes no times
                _mend(folder)
    except filelock.Timeout:  # others are at it
        return ""
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return f"{folder} cannot be written ({reason})"
    return ""


def _mend(folder: Path) -> None:
    """Removes programs without the time of their last use, which is written after them: JAX would stumble over them for ever."""
    names = set(os.listdir(folder))
    for name in names:
        for ending, other in ((_PROGRAM, _USED), (_USED, _PROGRAM)):
            if name.endswith(ending) and name.removesuffix(ending) + other not in names:
                (folder / name).unlink(missing_ok=True)
