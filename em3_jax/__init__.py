"""em3_jax: end-to-end training of a multimodal model and a ranking model, on JAX and Flax."""

__version__ = "0.1.0"
