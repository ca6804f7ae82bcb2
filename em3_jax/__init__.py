"""em3_jax: end-to-end training of a multimodal model and a ranking model, on JAX and Flax.

    import em3_jax as em3

What a notebook needs is here, imported when it is first used; docs/python.md shows it.
"""

from pathlib import Path

from em3_jax.core import public

__version__ = "0.1.0"

__path__.append(str(Path(__file__).parent / "commands"))  # `python -m em3_jax.NAME` for each command

_MODULES = {
    "Experiment": "em3_jax.notebook.experiment",
    "Service": "em3_jax.serving.service",
    "UserError": "em3_jax.core.errors",
    "load_config": "em3_jax.config.recipes",
    "open_dataset": "em3_jax.data.format",
}
__all__ = ["Experiment", "Service", "UserError", "__version__", "load_config", "open_dataset"]
__getattr__ = public.getter(__name__, _MODULES)


def __dir__() -> list[str]:
    """What a notebook completes to, before it has been used."""
    return sorted({*globals(), *__all__})
