"""The compiled ranking model in a version of a store: a program for each number of candidates.

    scorer-<size>.bin   `jax.export` of the program for `size` candidates
    scorer.bin          of stores made before: one program with an open number of candidates

A program of static shapes runs under the jax that made it, newer ones, and older ones as far as
they know its operations; one with an open dimension holds checks of shapes that an older jax
reads and then cannot run. The manifest names the versions, and opening tries every program.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jaxlib
from jax import export

from em3_jax.core.errors import UserError
from em3_jax.serving.store import Version

SIZES = (16, 64, 256, 512, 1024)  # numbers of candidates: requests are padded, or cut into pieces
OPEN = "scorer.bin"
_PLATFORMS = {"cuda": "gpu", "rocm": "gpu"}  # as `jax.default_backend` calls them


class ProgramError(UserError):
    """The programs of a version need another jax, or another device, than there is here."""


def file_name(size: int) -> str:
    """Of the program for `size` candidates."""
    return f"scorer-{size}.bin"


def versions() -> dict[str, str]:
    """Of the libraries that make and run programs."""
    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__}


def facts(made: Sequence[export.Exported], sizes: Sequence[int]) -> dict[str, Any]:
    """What the manifest says of programs of these numbers of candidates."""
    convention = {"calling_convention": max(one.calling_convention_version for one in made)}
    return {"sizes": list(sizes)} | versions() | convention


class Programs:
    """The programs of a version, ready to run.

    Args:
      version: the opened version.

    Attributes:
      sizes: numbers of candidates that they take, ascending.

    Raises:
      ProgramError: they are for other devices, or cannot be read.
    """

    def __init__(self, version: Version):
        serving = version.manifest["serving"]
        self._folder, self._made = version.folder, serving.get("programs", {})
        self.sizes: tuple[int, ...] = tuple(self._made.get("sizes", SIZES))
        platforms = serving["platforms"]
        if jax.default_backend() not in [_PLATFORMS.get(name, name) for name in platforms]:
            raise ProgramError(
                f"{version.folder}: its scorer is compiled for {', '.join(platforms)}, this "
                f"machine runs {jax.default_backend()}; export again with --platforms"
            )
        names = {size: file_name(size) if self._made else OPEN for size in self.sizes}
        calls = {name: self._call(version, name) for name in set(names.values())}
        self._calls = {size: calls[name] for size, name in names.items()}

    def _call(self, version: Version, name: str) -> Any:
        try:
            return jax.jit(export.deserialize(bytearray(version.read_bytes(name))).call)
        except Exception as error:  # damaged bytes raise what they like
            raise self._problem(f"{name} cannot be read", error) from error

    def size_for(self, number: int) -> int:
        """The least size that takes `number` candidates; the largest where none does."""
        return self.sizes[min(bisect.bisect_left(self.sizes, number), len(self.sizes) - 1)]

    def __call__(self, size: int, *arguments: Any) -> jax.Array:
        """Logits [size] f32 of (params, table, request), see `scorer.scorer`."""
        return self._calls[size](*arguments)

    def try_out(self, arguments: Callable[[int], tuple], compiled: Sequence[int]) -> None:
        """Runs the programs of the sizes `compiled`, and lowers all others to what XLA takes.

        Args:
          arguments: size -> what the program of that size is called with.

        Raises:
          ProgramError: one cannot be run here.
        """
        for size in self.sizes:
            try:
                if size in compiled:
                    jax.block_until_ready(self(size, *arguments(size)))
                else:
                    self._calls[size].lower(*arguments(size))
            except Exception as error:  # of jax, of XLA, of the runtime: whatever they raise
                raise self._problem(f"its program for {size} candidates fails", error) from error

    def _problem(self, what: str, error: Exception) -> ProgramError:
        def named(numbers: Mapping[str, Any]) -> str:
            return " and ".join(f"{name} {numbers[name]}" for name in here if name in numbers)

        here = versions()
        made = named(self._made) or "an unnamed version of jax, for an open number of candidates"
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
        return ProgramError(
            f"{self._folder}: {what} ({reason}); it was exported by {made}, this is "
            f"{named(here)}; export it again, or serve it with the versions of its export"
        )
