"""What pyproject.toml cannot say: the recipes lie beside the package and travel inside it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["em3_jax*"]), "em3_jax.configs"], package_dir={"em3_jax.configs": "configs"})
