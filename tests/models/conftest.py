"""What the tests of all models share."""

import jax
import pytest


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):  # accelerators round f32 products to TF32 or bf16 unless told not to
        yield
