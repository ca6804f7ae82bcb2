"""A store and who reads it. No training code is imported here, and JAX only where a model scores."""

from em3_jax.core import public

__all__ = ["Lookup", "Model", "Scores", "Service"]
__getattr__ = public.getter(__name__, dict.fromkeys(__all__, "em3_jax.serving.service"))
