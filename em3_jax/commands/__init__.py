"""`python -m em3_jax.<command>` for every `em3 <command>`: a file each, which the package finds beside its rooms."""
