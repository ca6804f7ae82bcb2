"""em3_jax: end-to-end training of a multimodal model and a ranking model, on JAX and Flax."""

from pathlib import Path

from em3_jax.core import public

__version__ = "0.1.0"

__path__.append(str(Path(__file__).parent / "commands"))  # `python -m em3_jax.NAME` for each command

_MODULES = {
    "Service": "em3_jax.serving.service",
    "UserError": "em3_jax.core.errors",
    "open_dataset": "em3_jax.data.format",
}
__all__ = ["Service", "UserError", "__version__", "open_dataset"]
__getattr__ = public.getter(__name__, _MODULES)
