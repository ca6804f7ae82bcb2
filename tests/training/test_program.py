"""training.program: how its functions are compiled changes none of their bits."""

import jax
import numpy as np
import pytest

from em3_jax.training import experiment, program
from tests.small_runs import small


@pytest.fixture(scope="module")
def parts(planted) -> experiment.Experiment:
    return experiment.build(small(planted))


def values(state) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def test_a_state_that_is_compiled_cheaply_has_the_same_bits(parts, monkeypatch):
    options = []
    compiled = jax.jit
    monkeypatch.setattr(
        jax, "jit", lambda f, **given: options.append(given["compiler_options"]) or compiled(f, **given)
    )
    cheap = values(parts.program.init())
    shapes = jax.eval_shape(parts.program.init)  # in which JAX takes no options
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(parts.program.shapes)]
    monkeypatch.setattr(program, "_of_one_call", lambda mesh: {})
    assert values(parts.program.init()) == cheap
    assert options == [{"xla_backend_optimization_level": "1"}, {}, {}]
